"""Counts with their nouns."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count and its noun: ``1 cell``, ``1,200 cells``. ``plural`` overrides the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def span(low: str, high: str) -> str:
    """Both ends of a range, ``2 s to 5 s``, or the one value that it has."""
    return low if low == high else f"{low} to {high}"
