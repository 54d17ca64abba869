"""Commands that take the fields of a dataclass as options: each is declared once, with its default and its help."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

Command = Callable[..., None]


def takes(kind: type[Any], *names: str) -> Callable[[Command], Command]:
    """Decorate a command so that one option for each field of the dataclass ``kind`` (or of those in ``names``) stands
    in place of its keyword parameter of that type. The metadata of a field are the arguments of ``typer.Option``."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        place = next(one.name for one in signature.parameters.values() if one.annotation is kind)
        types = get_type_hints(kind)
        taken = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=Annotated[types[one.name], typer.Option(f"--{one.name.replace('_', '-')}", **one.metadata)],
            )
            for one in fields(kind)
            if one.name in (names or types)
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            given[place] = kind(**{one.name: given.pop(one.name) for one in taken})
            command(**given)

        spread = [new for old in signature.parameters.values() for new in (taken if old.name == place else [old])]
        run.__signature__ = signature.replace(parameters=spread)  # type: ignore[attr-defined]
        return run

    return decorate
