"""How numbers become words: plurals."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """ "1 row", "2 rows"."""
    return f"{count} {noun}{'s' * (count != 1)}"
