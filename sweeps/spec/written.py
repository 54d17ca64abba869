"""Values of a YAML file as written. YAML itself reads 3.10 as 3.1, on as true, and 16:30:00 as 59400."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gsq.errors import UserError

# Plain scalars that switch an option on or off.
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
NULL = ("", "~", "null", "Null", "NULL")


class Plain(str):
    """A scalar that the file has without quotes."""


def as_written(path: Path) -> dict[str, Any]:
    """Read a YAML file with every scalar as its text (Plain if unquoted), at any depth.

    gsq.config.overrides.read_yaml must have read the file before, because it reports errors.
    """
    import yaml

    loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))

    def text_of(node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            return {str(key.value): text_of(value) for key, value in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [text_of(inner) for inner in node.value]
        return str(node.value) if node.style else Plain(node.value)

    try:
        found = text_of(loader.get_single_node())
    finally:
        loader.dispose()
    return found if isinstance(found, dict) else {}


def option(key: str, text: Any, read: Any) -> str | bool:
    """Return the value of an sbatch option: True for an option without a value, False to leave it out.

    text: the value as written. read: as YAML reads it; text there is the value itself, which may refer to another key.
    Raises UserError for a value that no option can have.
    """
    if isinstance(text, list):
        return ",".join(str(option(f"{key}[{i}]", t, r)) for i, (t, r) in enumerate(zip(text, read, strict=True)))
    if isinstance(text, dict):
        raise UserError(
            f"{key}: {read!r} is a mapping; an option takes a text, a number, a list of these, true or false"
        )
    if isinstance(text, Plain) and text in (*TRUE, *NULL):
        return True
    if isinstance(text, Plain) and text in FALSE:
        return False
    found = variable(key, text, read)
    if "\n" in found or "\r" in found:
        raise UserError(f"{key}: {found!r}: an sbatch option must be on one line")
    return found


def variable(key: str, text: Any, read: Any) -> str:
    """Return the value of an environment variable. Raises UserError for a list or a mapping."""
    if isinstance(text, list | dict):
        raise UserError(f"{key}: {read!r} is not one value; write the variable's value in quotes")
    if isinstance(text, Plain) and text in NULL:
        return ""
    if isinstance(read, str):
        return read
    # OmegaConf has replaced a reference to another key by its value.
    return str(read) if "${" in text else str(text)


def whole_number(key: str, text: Any, read: Any) -> Any:
    """Return ``read``. Raises UserError for text that YAML turns into another number: 1:30 (90), 010 (8)."""
    if isinstance(read, int) and not isinstance(read, bool) and isinstance(text, Plain):
        plain = text.replace("_", "").lstrip("+-")
        if "${" not in text and (not plain.isdigit() or (plain.startswith("0") and plain != "0")):
            raise UserError(f"{key}: {text} is not a whole number; YAML would read it as {read}")
    return read


_WALL_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


def minutes(key: str, text: Any, read: Any) -> Any:
    """Return a wall time in whole minutes, rounded up; expressions stay as they are.

    Accepts a number, hours:minutes:seconds, and sbatch's forms with days (1-12, 1-12:30, 1-12:30:00). Raises UserError
    for 24:00, which sbatch reads as 24 minutes and many people as 24 hours.
    """
    written = str(text).strip() if isinstance(text, str) and "${" not in text else str(read)
    match = _WALL_TIME.fullmatch(written)
    if match is None or not ("-" in written or ":" in written):
        return whole_number(key, text, read)
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match["days"] is None and match["third"] is None:
        raise UserError(
            f"{key}: {written} may be hours and minutes, or minutes and seconds; write {written}:00 for {first} hours "
            f"and {second} minutes, or {first} for minutes"
        )
    if second > 59 or third > 59 or (match["days"] and first > 23):
        raise UserError(
            f"{key}: {written} is not a time of the form hours:minutes:seconds or days-hours:minutes:seconds"
        )
    return (days * 24 + first) * 60 + second + (third > 0)
