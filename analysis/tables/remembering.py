"""Results that several parts of one report need, computed once: figures, their texts and laws read the same panels."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_kept: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("_kept", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Inside, ``remembered`` functions return what they returned for the same tables and values. Change neither. May
    be nested, and decorate a function."""
    kept = _kept.get()
    token = _kept.set({} if kept is None else kept)
    try:
        yield
    finally:
        _kept.reset(token)


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """Look results up within ``remembering``; elsewhere, the function as it is. Errors are not kept."""
    parameters = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        kept = _kept.get()
        if kept is None:
            return function(*args, **kwargs)
        given = parameters.bind(*args, **kwargs)
        given.apply_defaults()
        key = (function, _key(tuple(given.arguments.values())))
        if key not in kept:
            # The arguments stay alive as long as their ids stand for them.
            kept[key] = (function(*args, **kwargs), (args, kwargs))
        result: R = kept[key][0]
        return result

    return wrapper


def _key(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return value if value is None or isinstance(value, str | int | float) else ("id", id(value))
