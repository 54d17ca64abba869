"""The type check of config values, the same for files, ``set``, axes, searches and the command line."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from gsq.config.run import SECTIONS
from gsq.config.types import check_type, fix
from gsq.errors import UserError


@cache
def key_types() -> dict[str, tuple[type, type | None]]:
    """The type of every config key, and for a tuple the type of its entries."""
    found: dict[str, tuple[type, type | None]] = {}
    for name, section in SECTIONS.items():
        for key, hint in get_type_hints(section).items():
            origin = get_origin(hint)
            found[f"{name}.{key}"] = (tuple, get_args(hint)[0]) if origin is tuple else (origin or hint, None)
    return found


def checked(key: str, value: Any, where: str) -> Any:
    """``value`` as the config holds it: a list becomes a tuple, a whole number for a float key a float.

    key: ``section.key``. where: the start of an error. Raises UserError, with the likely fix, for another type.
    """
    wanted, entry = key_types()[key]
    if wanted is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where}: {value!r} is not a mapping of options to values")
        return value
    if wanted is str and not isinstance(value, str) and (choices := _choices(key, value)):
        raise UserError(f"{where}: {value!r} is not allowed; {choices}; {fix(value, wanted)}")
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
