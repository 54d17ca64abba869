"""Printed tables whose heads are whole words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gsq.config.axes import AXES, SOFT

# Where a table is wider than the terminal, its heads are broken at spaces, and then at these places too.
HEADS = {
    **{axis.name: axis.head for axis in AXES if axis.head},
    "parameters": f"param{SOFT}eters",
    "perplexity": f"perp{SOFT}lexity",
    "rfid": "rFID",
    "psnr_db": "PSNR dB",
    "device_seconds": "seconds",
}
# What is left out first where a terminal is narrow.
SPARE = ("images", "train FLOPs", "memory", "param. in paper")


def head_of(column: str) -> str:
    """The head of a column of a table, with the places where it may be broken."""
    return HEADS.get(column, column.split(".")[-1].replace("_", " "))


def broken_head(head: str, how: int) -> list[str]:
    """A head in pieces: 0 whole, 1 in words, 2 in parts of words."""
    if how == 2:
        head = head.replace(f"/{SOFT}", "/ ").replace(SOFT, "- ")
    head = head.replace(SOFT, "")
    return head.split(" ") if how else [head]


def fitting_table(
    console: Console, columns: Mapping[str, Sequence[str]], spare: Sequence[str] = (), left: Sequence[str] = ()
) -> Table:
    """The columns, by heads as ``head_of`` gives them. Heads are broken and ``spare`` columns left out only as far as
    the width of the console demands, and values are broken only where even that is too wide.

    ``left``: columns that are aligned to the left.
    """
    for how, without in [(0, 0), (1, 0), *((2, count) for count in range(len(spare) + 1))]:
        kept = {head: values for head, values in columns.items() if head not in spare[:without]}
        table = _table(kept, how, left)
        if console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width:
            return table
    return table if spare else _table(kept, 2, left, fold=True)


def _table(columns: Mapping[str, Sequence[str]], how: int, left: Sequence[str], fold: bool = False) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
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
        )
    for row_values in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row_values))
    return table
