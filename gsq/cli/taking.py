"""Options of commands, declared once: in the docstring of the command, or of a dataclass whose fields it takes."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

Command = Callable[..., None]


def documented(doc: str) -> tuple[str, dict[str, dict[str, str]]]:
    """Split a docstring into its text and the options that it declares at its end, by their parameters' names::

    Options:
        --budget FLOPS  The value's name and the help stand two spaces apart; the help may take
            several lines. A switch has no name for a value.
    """
    text, _, section = inspect.cleandoc(doc).partition("\nOptions:\n")
    entries = re.findall(r"^    --([\w-]+) ?(.*?)  (.*(?:\n     +.*)*)", section, re.MULTILINE)
    found = {
        name.replace("-", "_"): {"help": " ".join(help_.split())} | ({"metavar": value} if value else {})
        for name, value, help_ in entries
    }
    return text.strip(), found


def _option(name: str, kind: Any, how: Mapping[str, Any]) -> Any:
    return Annotated[kind, typer.Option(f"--{name.replace('_', '-')}", **how)]


@functools.cache  # the options of a command are declared once
def declare(command: Command) -> str:
    """Give the parameters of ``command`` the options of its docstring; returns the rest of the docstring.

    Raises TypeError for an option that is no parameter.
    """
    text, options = documented(command.__doc__ or "")
    if options:
        signature = inspect.signature(command, eval_str=True)
        if unknown := options.keys() - signature.parameters.keys():
            raise TypeError(f"{command.__name__} has no parameter {' or '.join(sorted(unknown))}")
        parameters = [
            one.replace(annotation=_option(name, one.annotation, options[name])) if name in options else one
            for name, one in signature.parameters.items()
        ]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return text


def takes(kind: type[Any], *names: str) -> Callable[[Command], Command]:
    """Decorate a command so that one option for each field of the dataclass ``kind`` (or of those in ``names``) stands
    in place of its keyword parameter of that type. The docstring of ``kind`` declares them; a field's metadata are
    further arguments of ``typer.Option``."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        place = next(one.name for one in signature.parameters.values() if one.annotation is kind)
        types, (_, options) = get_type_hints(kind), documented(kind.__doc__ or "")
        taken = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=_option(one.name, types[one.name], {**options.get(one.name, {}), **one.metadata}),
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
