"""Run folders -> results table."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from gsq.record import RunFolder, newest_file, read_evaluations, read_json
from sweeps.folder import SweepFolder, sweep_folder
from sweeps.monitoring import CellStatus, status
from sweeps.planning import Cell, axis_columns, other_axes
from sweeps.schema import BY_NAME, write_table

RESULTS = Path("results")
# Columns in which the runs of a sweep should agree, with what their values are.
MIXED = {"source": "versions of gsq's source", "versions": "sets of package versions", "device": "devices"}


def gather(sweep: str | SweepFolder, output: Path | None = None, runs: Path | None = None) -> Path:
    """Write the results table of a sweep, by default results/<sweep>.parquet, and return its path.

    One row for each evaluation of each planned cell; a cell without one has a row of its own. Raises UserError for
    an unknown sweep. Warns on stderr where runs were made by different code or on different devices.
    """
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    cells = {cell.signature: cell for cell in folder.read_plan().cells}
    rows: list[dict[str, Any]] = []
    for cell_status in status(folder).cells:
        rows += _rows(folder, cells[cell_status.signature], cell_status)
    path = output or RESULTS / f"{folder.name}.parquet"
    write_table(rows, path)
    if (warning := mixture(folder.name, rows)) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    return path


def mixture(sweep: str, rows: list[dict[str, Any]]) -> str | None:
    """A sentence that says so where rows were made by different code or on different devices, with runs of each."""
    parts = []
    runs = {row["signature"]: row for row in rows}.values()
    for column, words in MIXED.items():
        counted = Counter(row[column] for row in runs if row.get(column))
        if len(counted) > 1:
            # Versions are long, and their number says enough.
            named = [f"{value}: {n}" if column != "versions" else str(n) for value, n in counted.most_common()]
            parts.append(f"{len(counted)} {words} ({', '.join(named)} runs)")
    if not parts:
        return None
    return f"sweep '{sweep}' mixes runs of {' and of '.join(parts)}; the columns {', '.join(MIXED)} tell them apart"


def _rows(folder: SweepFolder, cell: Cell, cell_status: CellStatus) -> list[dict[str, object]]:
    run = RunFolder.of(folder.runs, cell.signature)
    record = folder.records([cell.signature])[cell.signature]
    environment_file = newest_file(run, "env.json")
    environment = (read_json(environment_file) if environment_file else None) or {}
    common: dict[str, object] = {
        "sweep": folder.name,
        "signature": cell.signature,
        **axis_columns(cell.config, cell.data_label),
        "other_axes": other_axes(cell.axes),
        "parameters": cell.cost.parameters,
        "device_seconds": record.seconds if record.attempts else None,
        "peak_memory_bytes": record.peak_memory_bytes,
        "attempts": record.attempts,
        "started_from": record.started_from,
        "execution_signature": environment.get("execution_signature"),
        "source": environment.get("source"),
        "commit": environment.get("commit"),
        "versions": json.dumps(environment["versions"], sort_keys=True) if "versions" in environment else None,
        "device": environment.get("device"),
        "state": cell_status.state,
        "failure": cell_status.failure,
        "message": cell_status.message,
    }
    evaluations = [
        {**common, **{name: value for name, value in evaluation.items() if name in BY_NAME}}
        for evaluation in read_evaluations(run)
    ]
    return evaluations or [common]
