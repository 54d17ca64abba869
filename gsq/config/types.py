"""The type of a value: what is accepted, and what an error proposes."""

from __future__ import annotations

import sys
from typing import Any

from gsq.errors import UserError

NEEDED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list"}


def check_type(value: Any, wanted: type, where: str) -> None:
    """Raise UserError unless ``value`` has the type; a whole number can stand for a float, a list for a tuple."""
    if wanted is float and type(value) is int and abs(value) > sys.float_info.max:
        raise UserError(f"{where}: the whole number is larger than any float; write a smaller one")
    if type(value) is wanted or (wanted, type(value)) in ((float, int), (tuple, list)):
        return
    name = "list" if wanted is tuple else wanted.__name__
    raise UserError(f"{where}: {value!r} is not of type {name}; {fix(value, wanted)}")


def fix(value: Any, wanted: type) -> str:
    if value is None:
        return "leave the key out for its default"
    if wanted is tuple:
        return f"write a list: [{value}]"
    if isinstance(value, list | tuple | dict):
        return f"{NEEDED[wanted]} is needed here, and several values belong in axes"
    if wanted is str and isinstance(value, bool):
        return "write the word in quotes, since YAML reads yes, no, on and off as true and false"
    if wanted is str:
        return f"write it in quotes: '{value}'"
    if isinstance(value, str) and (meant := _meant(value, wanted)):
        return f"write {meant} without quotes"
    if wanted is int and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return f"{NEEDED[wanted]} is needed"


def _meant(text: str, wanted: type) -> str:
    """The text without its quotes if that has the type; else an empty text."""
    text = text.strip()
    if wanted is bool:
        return text.lower() if text.lower() in ("true", "false") else ""
    try:
        wanted(text)
    except ValueError:
        return ""
    return text
