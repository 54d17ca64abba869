"""Printed tables, whose heads are broken between words alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gsq.config.axes import AXES

HEADS = {
    **{axis.name: axis.head for axis in AXES if axis.head},
    "rfid": "rFID",
    "psnr_db": "PSNR dB",
    "device_seconds": "seconds",
}
# Columns that a narrow terminal loses first.
SPARE = ("images", "train FLOPs", "memory", "param. in paper")


def head_of(column: str) -> str:
    """Return the head of a column."""
    return HEADS.get(column, column.split(".")[-1].replace("_", " "))


# In a table that is wider than the terminal even with broken heads.
SYMBOLS = {head_of(axis.name): axis.symbol for axis in AXES if axis.symbol and axis.order}


def broken_head(head: str, how: int) -> list[str]:
    """Break a head: 0 keeps it whole, 1 breaks it into words, 2 also after a slash and puts the symbol of an axis."""
    if how == 2:
        head = SYMBOLS.get(head, head.replace("/", "/ "))
    return head.split(" ") if how else [head]


def fitting_table(
    console: Console, columns: Mapping[str, Sequence[str]], spare: Sequence[str] = (), left: Sequence[str] = ()
) -> Table:
    """Return a table of columns, by heads from ``head_of``, that fits the console.

    It breaks heads, then writes D, G, V and f for the axes, then drops ``spare`` columns, only as far as necessary;
    values are broken only if even that is too wide. left: columns aligned to the left.
    """
    for how, without in [(0, 0), (1, 0), *((2, count) for count in range(len(spare) + 1))]:
        kept = {head: values for head, values in columns.items() if head not in spare[:without]}
        table = _table(kept, how, left)
        if console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width:
            return table
    return table if spare else _table(kept, 2, left, fold=True)


def plain_table(*heads: str, right: Collection[str] = (), no_wrap: Collection[str] = (), gap: int = 2) -> Table:
    """Return an empty table without lines. right: heads of right-aligned columns. gap: spaces between columns."""
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="right" if head in right else "left", overflow="fold", no_wrap=head in no_wrap)
    return table


def _table(columns: Mapping[str, Sequence[str]], how: int, left: Sequence[str], fold: bool = False) -> Table:
    table = plain_table(gap=1)
    for head, values in columns.items():
        pieces = broken_head(head, how)
        least, width = max(map(len, pieces)), max(map(len, (*pieces, *values)))
        justify: Literal["left", "right"] = "left" if head in left else "right"
        table.add_column(
            escape("\n".join(pieces)),
            justify=justify,
            vertical="bottom",
            overflow="fold",
            min_width=least if fold else width,
            max_width=width,
            no_wrap=fold and width == least,
        )
    for row_values in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row_values))
    return table
