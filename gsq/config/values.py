"""The type check of config values, the same for files, ``set``, axes, searches and the command line."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args, get_type_hints

from gsq.config.run import SECTIONS
from gsq.errors import UserError

NEEDED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list"}


@cache
def key_types() -> dict[str, tuple[type, type | None]]:
    """The type of every config key, and for a tuple the type of its entries."""
    found: dict[str, tuple[type, type | None]] = {}
    for name, section in SECTIONS.items():
        for key, hint in get_type_hints(section).items():
            found[f"{name}.{key}"] = (tuple, get_args(hint)[0]) if get_args(hint) else (hint, None)
    return found


def checked(key: str, value: Any, where: str) -> Any:
    """``value`` as the config holds it: a list becomes a tuple, a whole number for a float key a float.

    key: ``section.key``. where: the start of an error. Raises UserError, with the likely fix, for another type.
    """
    wanted, entry = key_types()[key]
    if wanted is str and not isinstance(value, str) and (choices := _choices(key, value)):
        raise UserError(f"{where}: {value!r} is not allowed; {choices}; {_fix(value, wanted)}")
    if entry is None:
        check_type(value, wanted, where)
        return float(value) if wanted is float else value
    check_type(value, tuple, where)
    for number, one in enumerate(value, 1):
        check_type(one, entry, f"{where}: entry {number} of {list(value)}")
    return tuple(value)


def _choices(key: str, value: Any) -> str:
    """``choose one of ...`` from the section's own error, for a key that only takes certain words; else empty."""
    section, name = key.split(".")
    try:
        SECTIONS[section](**{name: str(value)})
    except UserError as error:
        found = str(error)
        return found[found.index("choose one of") :] if "choose one of" in found else ""
    return ""


def check_type(value: Any, wanted: type, where: str) -> None:
    """Raise UserError unless ``value`` has the type; a whole number can stand for a float, a list for a tuple."""
    if type(value) is wanted or (wanted, type(value)) in ((float, int), (tuple, list)):
        return
    name = "list" if wanted is tuple else wanted.__name__
    raise UserError(f"{where}: {value!r} is not of type {name}; {_fix(value, wanted)}")


def _fix(value: Any, wanted: type) -> str:
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
