"""Gather run folders into the results table."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gsq
from gsq.config.flops import cost
from gsq.config.program import ProgramConfig
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.files import read_json, write_json
from gsq.outputs import output_problem
from gsq.records.attempt import DONE, PRUNED
from gsq.records.folder import RunFolder
from gsq.records.read import read_results, results_changed
from gsq.sweeps.planning.cells import Cell, axis_columns, collector_paused
from gsq.sweeps.planning.folder import ASKED_FILE, SweepFolder, read_asked, sweep_folder
from gsq.sweeps.schema.columns import BY_NAME, SCHEMA_VERSION, Column, fits, write_table
from gsq.sweeps.spec.programs import FREE, own_columns, own_keys
from gsq.sweeps.spec.states import PLANNED
from gsq.sweeps.state.status import Survey, survey
from gsq.sweeps.tables.lookalikes import changed_text, hidden_keys, told_apart
from gsq.sweeps.tables.missing import Coverage, coverage_of
from gsq.sweeps.tables.pooling import Comparison, Made, Run, compare, made_by, mixture, versions_text
from gsq.sweeps.tables.spending import Spent, failed_seconds, spent

RESULTS = Path("results")
# A file may change again within this time [s] without a new modification time.
SETTLED_SECONDS = 2.0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Gathered:
    """A results table, and what to know about it."""

    table: Path
    coverage: Coverage
    """State of the planned cells, and whether failure depends on an axis."""
    problems: tuple[str, ...]
    """Sentences about damaged runs, mixtures of code or devices, and failures that would bias a fit."""
    spent: Spent
    """Device time of each cell, including failed attempts."""
    comparisons: tuple[str, ...] = ()
    """For repeats under other code, versions or devices, the test whether old and new rows can be pooled."""


def gather(
    sweep: str | SweepFolder,
    output: Path | None = None,
    runs: Path | None = None,
    warn: Callable[[str], None] = _warn,
) -> Path:
    """Write the results table of a sweep, by default results/<sweep>.parquet, and return its path.

    The table has a row for each evaluation of each planned cell, or one for a cell without any. ``warn`` (by default to
    stderr) receives unreadable files, which are skipped, mixtures of code or devices, and failures that depend on an
    axis (see ``missing``). The table is replaced whole, also by several processes, unless nothing has changed since it
    was written, which ``gathered.json`` in the sweep folder tells. Raises UserError for an unknown sweep.
    """
    done = gathered(sweep, output, runs)
    for problem in done.problems:
        warn(problem)
    return done.table


def require_table(path: Path) -> None:
    """Raise UserError unless a results table can be written to ``path`` without replacing another file's content."""
    if problem := output_problem(path):
        raise UserError(f"results table {path} {problem}")
    if path.suffix != ".parquet":
        raise UserError(f"results table {path} must end in .parquet; gsq export writes CSV, Markdown and LaTeX")
    if path.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        with suppress(OSError, pa.ArrowInvalid):  # A damaged table may be replaced.
            if b"gsq_schema_version" not in (pq.read_schema(path).metadata or {}):
                raise UserError(f"results table {path} is there already, as another Parquet file; name another")


@collector_paused()
def gathered(sweep: str | SweepFolder, output: Path | None = None, runs: Path | None = None) -> Gathered:
    """Like ``gather``, but returns its findings instead of printing warnings."""
    folder = sweep_folder(sweep, runs)
    path = output or RESULTS / f"{folder.name}.parquet"
    note = folder.path / "gathered.json"
    known = read_json(note)
    ours = isinstance(known, dict) and known.get("table") == _identity(path)
    if not ours:  # To read whose table it is takes longer than all the rest where nothing has changed.
        require_table(path)
    # Jobs, which take as much memory as records, have done their part once the states are known.
    found = replace(survey(folder), jobs={})
    begun = time.time()
    inputs, last_change = _inputs(folder, found)
    if not isinstance(known, dict) or not ours or known.get("inputs") != inputs:
        problems: list[str] = []
        made: dict[str, Made] = {}
        values: dict[str, dict[tuple[str, int], float]] = {}
        repeats = any(cell.config.train.repeat for cell in found.plan.cells)
        extra = own_columns(cell.config for cell in found.plan.cells)
        rows = _rows(folder, found, problems.append, extra)
        write_table(_noting(rows, made, values if repeats else None), path, extra)
        comparisons: list[Comparison] = []
        if repeats:
            done = [cell for cell in found.plan.cells if found.states[cell.signature].state == DONE]
            comparisons = compare([Run(c, made[c.signature], values.get(c.signature, {})) for c in done])
        became = coverage_of(folder.name, found)
        known_made = [one for one in made.values() if any(one)]
        problems += [*mixture(folder.name, known_made, comparisons), *became.biased]
        known = {
            "inputs": inputs,
            "table": _identity(path),
            "problems": problems,
            "coverage": became.to_dict(),
            "comparisons": [comparison.sentence for comparison in comparisons],
        }
        # The note only saves time, so a read-only folder does without.
        with suppress(OSError):
            if begun - last_change / 1e9 > SETTLED_SECONDS:
                write_json(note, known, sync=False)
            else:
                note.unlink(missing_ok=True)
    return Gathered(
        path,
        Coverage.from_dict(known["coverage"]),
        tuple(known["problems"]),
        spent(found.records, found.states),
        tuple(known["comparisons"]),
    )


def _noting(
    rows: Iterable[dict[str, Any]], made: dict[str, Made], values: dict[str, dict[tuple[str, int], float]] | None
) -> Iterator[dict[str, Any]]:
    shared: dict[Made, Made] = {}
    for row in rows:
        # Share equal values: thousands of runs have few distinct ones.
        made[row["signature"]] = shared.setdefault(found := made_by(row), found)
        if values is not None and row.get("rfid") is not None and 0 < row["rfid"] < math.inf:
            values.setdefault(row["signature"], {})[row["protocol"], row["step"]] = row["rfid"]
        yield row


def _identity(table: Path) -> list[Any] | None:
    """Identify a file, so that a replacement is noticed."""
    try:
        stat = table.stat()
    except OSError:
        return None
    return [str(table.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns]


def _inputs(folder: SweepFolder, found: Survey) -> tuple[str, int]:
    """Return a digest of everything that decides the table, and the last change of an evaluation [ns]."""
    hashed, last = hashlib.sha256(), 0
    # The code decides costs and derived columns.
    code = sorted(path for room in (_SOURCE, _SOURCE / "sweeps") for path in room.rglob("*.py"))
    sizes = [(path.name, stat.st_size, stat.st_mtime_ns) for path in code for stat in [path.stat()]]
    hashed.update(repr((SCHEMA_VERSION, folder.name, sizes, [p.name for p in folder.plan_files()])).encode())
    with suppress(OSError):
        hashed.update((folder.path / ASKED_FILE).read_bytes())
    for signature, record in found.records.items():
        changed = results_changed(RunFolder.of(folder.runs, signature)) if record.attempts else ()
        last = max(last, *changed, 0)
        spent_so_far = (record.seconds, record.failed_seconds, record.peak_memory_bytes, record.attempts)
        facts = (found.states[signature], *spent_so_far)
        hashed.update(repr((facts, record.started_from, record.unreadable, changed)).encode())
    return hashed.hexdigest(), last


_SOURCE = Path(gsq.__file__).resolve().parent


def _rows(
    folder: SweepFolder, found: Survey, problem: Callable[[str], None], extra: dict[str, Column]
) -> Iterator[dict[str, Any]]:
    """extra: is given the columns that these rows have beside those of every table."""
    asked = read_asked(folder)
    hidden = hidden_keys(found.plan.cells) if len(folder.plan_files()) > 1 else ()
    if hidden:
        problem(changed_text(folder.name, found.plan.cells, hidden))
    for cell in found.plan.cells:
        others = own_keys(cell.config) or told_apart(cell, hidden)
        yield from _cell_rows(folder, cell, found, problem, asked.get(cell.signature, ()), others, extra)


def metric_columns(metrics: object, extra: dict[str, Column], config: RunConfig | None = None) -> dict[str, object]:
    """Values of metrics of a user's own, or of a program. One with the name of a column of every table is called
    ``own_<name>``, unless a program may fill that column."""
    if not isinstance(metrics, dict):
        return {}
    program = isinstance(config, ProgramConfig)
    free, units = (FREE, config.units) if isinstance(config, ProgramConfig) else ((), {})
    about = "metric of the program" if program else "metric of a user's own, mean over images"
    named = {str(n) if n in free or n not in BY_NAME else f"own_{n}": v for n, v in metrics.items()}
    for name, value in named.items():
        if name not in BY_NAME:
            extra.setdefault(name, Column(name, "float64", units.get(name, ""), "metric", about))
        elif BY_NAME[name].type == "int64" and isinstance(value, float) and value == int(value):
            named[name] = int(value)
    return named


def _cell_rows(
    folder: SweepFolder,
    cell: Cell,
    found: Survey,
    problem: Callable[[str], None],
    asked: tuple[tuple[str, str], ...],
    others: str,
    extra: dict[str, Column],
) -> Iterator[dict[str, Any]]:
    run = RunFolder.of(folder.runs, cell.signature)
    record, state = found.records[cell.signature], found.states[cell.signature]
    results = read_results(run)
    environment, evaluations, unreadable = results.environment, [], [*record.unreadable, *results.unreadable]
    for file, evaluation in results.evaluations.items():
        values = {name: value for name, value in evaluation.items() if name in BY_NAME}
        values |= metric_columns(evaluation.get("metrics"), extra, cell.config)
        wrong = [name for name, value in values.items() if not fits(BY_NAME.get(name) or extra[name], value)]
        if not wrong and not file.endswith(f"/{values.get('protocol')}-{values.get('step', -1):08d}.json"):
            wrong = ["protocol or step"]
        probes = results.probes.get((str(values.get("protocol")), values.get("step", -1)), [])
        added = [{name: value for name, value in one.items() if name in BY_NAME} for one in probes]
        wrong += [name for one in added for name, value in one.items() if not fits(BY_NAME[name], value)]
        if wrong:
            unreadable.append(f"{file} ({', '.join(wrong)})")
        else:
            evaluations += [{**values, **one} for one in added or [{}]]
    provenance = {
        name: environment.get(name) for name in ("execution_signature", "source", "commit", "device", "parts")
    }
    if wrong := [name for name, value in provenance.items() if not fits(BY_NAME[name], value)]:
        unreadable.append(f"env.json ({', '.join(wrong)})")
        provenance = {}
    damage = f"cannot be read: {', '.join(unreadable)}" if unreadable else None
    if damage:
        problem(f"{run.path}: {damage}")
    common: dict[str, object] = {
        "sweep": folder.name,
        "signature": cell.signature,
        **axis_columns(cell.config, cell.data_label),
        "other_axes": others,
        "parameters": cost(cell.config).parameters or None,
        "device_seconds": record.seconds if record.attempts else None,
        "failed_seconds": failed_seconds(record, state) if record.attempts else None,
        "peak_memory_bytes": record.peak_memory_bytes,
        "attempts": record.attempts,
        "started_from": record.started_from,
        **provenance,
        "versions": versions_text(environment.get("versions")),
        # Only the queue needs to know that a run pruned by another sweep waits for more training.
        "state": PRUNED if record.state == PRUNED and state.state == PLANNED else state.state,
        "failure": state.failure,
        "message": state.message or damage,
    }
    there = {values["protocol"] for values in evaluations}
    # Without a row of today's protocol, the earlier protocol of the same evaluation stands for it.
    protocols = {now if now in there else before for now, before in asked}
    for values in evaluations or [{}]:
        yield {**common, **values, "asked": values["protocol"] in protocols if values and asked else None}
