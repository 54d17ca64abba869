"""How numbers become words: plurals."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """``1 cell``, ``2 cells``, ``1,200 cells``; ``plural``: where it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
