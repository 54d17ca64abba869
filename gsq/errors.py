"""Errors that a user can fix. The command line prints them as one message, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: names the key or file, the value received, what is allowed and the likely fix."""

    exit_code = 2


class Missing(UserError):
    """Images or weights that a run needs are not on this machine. A plan can do without them."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` (did you mean ...?)`` for the valid name closest to ``name``, or an empty string."""
    names = {one.lower(): one for one in valid}
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return f" (did you mean '{names[close[0]]}'?)" if close else ""


def choose(key: str, value: object, allowed: Iterable[object]) -> None:
    """Raise UserError unless ``value`` is one of ``allowed``."""
    options = list(allowed)
    if value not in options:
        hint = nearest(value, map(str, options)) if isinstance(value, str) else ""
        raise UserError(f"{key}: {value!r} is not allowed; choose one of {', '.join(map(str, options))}{hint}")


def choose_each(section: str, values: object, **allowed: Iterable[object]) -> None:
    """``choose`` for each of these keys of a config section."""
    for key, options in allowed.items():
        choose(f"{section}.{key}", getattr(values, key), options)


def at_least(section: str, values: object, minimum: float, *keys: str) -> None:
    """``positive`` for each of these keys of a config section."""
    for key in keys:
        positive(f"{section}.{key}", getattr(values, key), minimum)


def positive(key: str, value: float, minimum: float = 1) -> None:
    """Raise UserError unless ``value`` is at least ``minimum``."""
    if not value >= minimum:
        raise UserError(f"{key}: {value!r} is too small; it must be at least {minimum}")
    if value == float("inf"):
        raise UserError(f"{key}: {value!r} is not a finite number")
