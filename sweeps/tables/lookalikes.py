"""Tell cells apart whose axes are the same because the sweep file was edited between submissions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gsq.config.overrides import differences
from gsq.config.program import ProgramConfig
from gsq.config.signature import SCIENCE_SECTIONS
from gsq.sweeps.planning.cells import Cell, axis_columns, other_axes
from gsq.sweeps.planning.names import value_of


def hidden_keys(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Return the fixed keys by which some of these cells differ although no axis of theirs does."""
    first: dict[str, Cell] = {}
    keys: dict[str, None] = {}
    for cell in cells:
        if isinstance(cell.config, ProgramConfig):
            continue  # all its keys are columns
        columns = axis_columns(cell.config, cell.data_label)
        alike = first.setdefault(repr((columns, other_axes(cell.axes))), cell)
        if alike is not cell:
            changed = (*differences(cell.config, alike.config), *differences(alike.config, cell.config))
            keys |= dict.fromkeys(key for key in changed if key.split(".")[0] in SCIENCE_SECTIONS)
    return tuple(keys)


def told_apart(cell: Cell, hidden: Iterable[str]) -> str:
    """Return the cell's ``other_axes``, with the values of ``hidden`` keys."""
    axes: dict[str, Any] = {key: value_of(cell.config, key) for key in hidden}
    return other_axes({**cell.axes, **axes}) if axes else other_axes(cell.axes)


def changed_text(sweep: str, cells: Iterable[Cell], hidden: Iterable[str]) -> str:
    """Say which fixed keys differ, and what to do."""
    cells = tuple(cells)
    listed = []
    for key in hidden:
        values = sorted({json.dumps(value_of(cell.config, key), default=str) for cell in cells})
        listed.append(f"{key} ({', '.join(values[:4])}{', ...' if len(values) > 4 else ''})")
    return (
        f"{sweep}: the sweep file was edited, and cells with the same axes differ in {', '.join(listed)}. These keys "
        "are columns of the table: choose rows by them (--where), or give the edited sweep a name of its own"
    )
