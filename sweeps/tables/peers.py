"""Rows of models beside those of a sweep: other people's tokenizers, and runs evaluated by their protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gsq.config.flops import cost
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.sweeps.planning.cells import axis_columns
from gsq.sweeps.schema.columns import BY_NAME, KEY, Column, SchemaError, describe, read_table, write_table
from gsq.sweeps.tables.gather import metric_columns


def trained_columns(config: RunConfig, data_label: str, signature: str, title: str) -> dict[str, Any]:
    """The columns of a run of gsq's own that its evaluation lacks."""
    return {
        **axis_columns(config, data_label),
        "signature": signature,
        "step": config.train.steps,
        "images_seen": config.train.steps * config.train.batch_size,
        "other_axes": json.dumps({"model": title, "weights": "trained"}, sort_keys=True),
        "parameters": cost(config).parameters,
        "train_flops": cost(config).train_flops,
        "state": "done",
    }


def check_table(path: Path) -> None:
    """Raise UserError if ``path`` is not named like a results table, or exists and is another file."""
    if path.suffix != ".parquet":
        raise UserError(f"--output: {path} must end in .parquet, as results tables do")
    try:
        if path.exists():
            read_table(path)
    except SchemaError as error:
        raise UserError(f"--output: {error}; or name another file") from None


def add_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Add rows to a results table, or begin one; a row of the same key is replaced. Returns the number of rows.

    rows: with the columns of results, and ``metrics`` of a user's own. Raises UserError if the file is another one.
    """
    extra: dict[str, Column] = {}
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    check_table(path)
    if path.exists():
        import pyarrow.parquet as pq

        extra = {column.name: column for column in describe(path) if column.name not in BY_NAME}
        known = {tuple(row[name] for name in KEY): row for row in pq.read_table(path).to_pylist()}
    for row in rows:
        own = metric_columns(row.get("metrics"), extra)
        values = {name: value for name, value in row.items() if name in BY_NAME} | own
        known[tuple(values.get(name) for name in KEY)] = values
    write_table(known.values(), path, extra)
    return len(known)
