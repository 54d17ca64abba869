"""Choose cells of a sweep and act on them: cancel, retry.

A selection is a list of words, each of them a signature or its unique beginning, a state or failure class (failed,
running, out_of_memory, ...), or KEY=VALUE with a key of the config, short or dotted (groups=4). Words on the same
thing are alternatives, words on different things must all hold: ``failed groups=1 groups=4`` is the failed cells with
1 or 4 groups.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsq.errors import UserError, nearest
from gsq.loading import config_key
from gsq.record import FAILED, FAILURES, RUNNING, RunRecord
from gsq.words import counted
from sweeps import journal
from sweeps.cancellation import claim_signal, mark, marked, resumes_by_itself
from sweeps.cluster import Cluster, load_cluster
from sweeps.folder import SweepFolder, sweep_folder
from sweeps.monitoring import CellStatus, SweepStatus, status
from sweeps.planning import Cell, Plan
from sweeps.queue import local_jobs
from sweeps.reconcile import CANCELLED, PLANNED, QUEUED, STATES, STOPPED, Action, Job
from sweeps.scheduler import cancel_jobs, slurm_jobs
from sweeps.submission import Submission, submit

# How many signatures an error names.
NAMED = 8


def select(plan: Plan, found: SweepStatus, words: Sequence[str]) -> list[CellStatus]:
    """The cells that a selection names, in the plan's order; without words, all of them.

    Raises UserError, with what there is, for a word that is no state and fits no cell.
    """
    cells = {cell.signature: cell for cell in plan.cells}
    signatures: set[str] = set()
    states: set[str] = set()
    values: dict[str, set[str]] = defaultdict(set)
    for word in words:
        if "=" in word:
            name, _, text = word.partition("=")
            key = config_key(name, "selection")
            chosen = {s for s, cell in cells.items() if _holds(_value(cell, key), text)}
            if not chosen:
                there = Counter(_text(_value(cell, key)) for cell in cells.values())
                listed = ", ".join(f"{value} ({counted(count, 'cell')})" for value, count in there.items())
                raise UserError(f"selection: no cell of sweep '{plan.name}' has {word}; {name} is {listed}")
            values[key] |= chosen
        elif word in STATES or word in FAILURES:
            # To a user a cell that waits for a worker is queued, whether a scheduler knows it or not.
            states |= {word, PLANNED} if word == QUEUED else {word}
        elif word == STOPPED:
            states.add(CANCELLED)
        else:
            signatures.add(_signature(plan, found, word))
    return [
        cell
        for cell in found.cells
        if (not signatures or cell.signature in signatures)
        and (not states or cell.state in states or cell.failure in states)
        and all(cell.signature in chosen for chosen in values.values())
    ]


def select_one(plan: Plan, found: SweepStatus, words: Sequence[str]) -> CellStatus:
    """The only cell that a selection names. Raises UserError where it names none or several."""
    chosen = select(plan, found, words)
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UserError(
            f"selection: no cell of sweep '{plan.name}' is {' '.join(words)}; {_what_is_there(plan, found)}"
        )
    listed = "; ".join(f"{cell.signature} {cell.title}" for cell in chosen[:NAMED])
    more = f"; and {len(chosen) - NAMED} more" if len(chosen) > NAMED else ""
    raise UserError(
        f"selection: '{' '.join(words)}' is {len(chosen)} cells of sweep '{plan.name}', name one: {listed}{more}"
        if words
        else f"name one of the {len(chosen)} cells of sweep '{plan.name}': {listed}{more}"
    )


def _signature(plan: Plan, found: SweepStatus, word: str) -> str:
    fitting = [cell for cell in plan.cells if cell.signature.startswith(word)]
    if len(fitting) == 1:
        return fitting[0].signature
    if fitting and word:
        listed = "; ".join(f"{cell.signature} {cell.title}" for cell in fitting[:NAMED])
        raise UserError(f"selection: {len(fitting)} cells begin with '{word}', give more of one: {listed}")
    names = [*STATES, *FAILURES, *(cell.signature for cell in plan.cells)]
    raise UserError(
        f"selection: '{word}' is no signature in sweep '{plan.name}', no state, failure class or KEY=VALUE"
        f"{nearest(word, names)}; {_what_is_there(plan, found)}"
    )


def _what_is_there(plan: Plan, found: SweepStatus) -> str:
    failures = {STOPPED if name == CANCELLED else name: n for name, n in found.failures.items()}
    states = [f"{state} ({count})" for state, count in (found.counts | failures).items() if count]
    axes: dict[str, dict[str, None]] = defaultdict(dict)
    for cell in plan.cells:
        for name, value in cell.axes.items():
            axes[name][_text(value)] = None
    parts = [
        f"states: {', '.join(states)}",
        *(f"{name}={'|'.join(values)}" for name, values in axes.items()),
        f"signatures: {', '.join(cell.signature for cell in plan.cells[:NAMED])}"
        + (f" and {len(plan.cells) - NAMED} more (gsq status --all)" if len(plan.cells) > NAMED else ""),
    ]
    return "there are " + "; ".join(parts)


def _value(cell: Cell, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(cell.config, section), name)


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _holds(value: Any, text: str) -> bool:
    if isinstance(value, tuple):
        return re.findall(r"\d+", text) == [str(v) for v in value]
    if isinstance(value, bool):
        return str(value).lower() == text.lower()
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


@dataclass(frozen=True)
class Cancellation:
    """What a call of ``cancel`` did, by signature."""

    sweep: str
    waiting: tuple[str, ...]
    """Cells that waited and will not start."""
    running: tuple[str, ...]
    """Cells that were asked to stop; each ends its step and writes a checkpoint first."""


def cancellable(
    sweep: str | SweepFolder, selection: Sequence[str] = (), *, runs: Path | None = None
) -> list[CellStatus]:
    """The cells that ``cancel`` would stop. Raises UserError for an unknown sweep or selection."""
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    return _cancellable(folder, selection, slurm_jobs(folder))


def _cancellable(folder: SweepFolder, selection: Sequence[str], on_slurm: Mapping[str, Job]) -> list[CellStatus]:
    """Those that wait or run, those included that a queue on this machine resumes by itself."""
    chosen = select(folder.read_plan(), status(folder, on_slurm=on_slurm), selection)
    records = folder.records([cell.signature for cell in chosen])
    return [
        cell
        for cell in chosen
        if cell.state in (PLANNED, QUEUED, RUNNING)
        or (
            cell.signature not in on_slurm
            and cell.failure != CANCELLED
            and (cell.failure == "lost" or resumes_by_itself(records[cell.signature]))
        )
    ]


def cancel(sweep: str | SweepFolder, selection: Sequence[str] = (), *, runs: Path | None = None) -> Cancellation:
    """Stop the waiting and running cells of a selection, by default all. Returns without waiting for their end.

    What runs is sent SIGTERM, on SLURM by one call of scancel for each job array, and is recorded as cancelled. A
    queue on another machine stops its own workers. The next submission takes the cells up again where they stopped.
    Raises UserError for an unknown sweep or selection, where SLURM or the system refuses, and, when all else is
    cancelled, where SLURM does not say what became of a cell's job.
    """
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    jobs = slurm_jobs(folder)
    chosen = _cancellable(folder, selection, jobs)
    # The markers first: what starts after them is stopped by its queue.
    mark(folder, [cell.signature for cell in chosen])
    _cancel_on_slurm(jobs, {cell.signature for cell in chosen})
    records = folder.records([cell.signature for cell in chosen])
    for signature, job in local_jobs(records).items():
        if job.state == "running" and claim_signal(folder, signature, records[signature].pid):
            _terminate(records[signature])
    if unknown := sorted({s for s in records if s in jobs and jobs[s].state == "unknown"}):
        why = jobs[unknown[0]].reason or "SLURM does not answer"
        raise UserError(
            f"{why}. It is not known whether jobs of {counted(len(unknown), 'cell')} wait or run, so none of them was "
            "cancelled. A job that starts from now on stops by itself, one that runs goes on; run the command again "
            "once squeue --me lists them"
        )
    running = {cell.signature for cell in chosen if cell.state == RUNNING or records[cell.signature].state == RUNNING}
    return Cancellation(
        folder.name,
        tuple(cell.signature for cell in chosen if cell.signature not in running),
        tuple(cell.signature for cell in chosen if cell.signature in running),
    )


def _cancel_on_slurm(jobs: Mapping[str, Job], chosen: Collection[str]) -> None:
    """Of the jobs that SLURM lists under their own names; what nobody knows of is not touched."""
    sharing: dict[tuple[str, str], set[str]] = defaultdict(set)
    for signature, job in jobs.items():
        if job.state in ("pending", "running"):
            sharing[job.array, job.name].add(signature)
    clusters = {job.array: job.clusters for job in jobs.values()}
    for array in sorted({array for array, _ in sharing}):
        mine = {job_id: cells for (name, job_id), cells in sharing.items() if name == array}
        cancel_jobs(
            (job_id for job_id, cells in mine.items() if cells <= set(chosen)), name=array, clusters=clusters[array]
        )
        # Of cells that share a job each knows by its marker whether it is meant.
        some = (job_id for job_id, cells in mine.items() if cells & set(chosen) and not cells <= set(chosen))
        cancel_jobs(some, "--signal=TERM", name=array, clusters=clusters[array])


def _terminate(record: RunRecord) -> None:
    try:
        os.kill(record.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # It has just ended.
    except PermissionError:
        raise UserError(
            f"{record.signature}: process {record.pid} belongs to another user, who must cancel it"
        ) from None


def failed_cells(sweep: str | SweepFolder, selection: Sequence[str] = (), *, runs: Path | None = None) -> Plan:
    """The failed cells of a selection, as they were submitted; the plan may be empty.

    Raises UserError for an unknown sweep or selection.
    """
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    plan = folder.read_plan()
    chosen = {cell.signature for cell in select(plan, status(folder), selection) if cell.state == FAILED}
    return Plan(plan.name, tuple(cell for cell in plan.cells if cell.signature in chosen))


def stopping_cells(sweep: str | SweepFolder, *, runs: Path | None = None) -> int:
    """How many cells were cancelled and have not ended yet. Raises UserError for an unknown sweep."""
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    cancelled = marked(folder)
    return sum(c.signature in cancelled and c.state in (QUEUED, RUNNING) for c in status(folder).cells)


def last_cluster(sweep: str | SweepFolder, *, runs: Path | None = None) -> str:
    """Where the sweep was last submitted to, "local" where never to SLURM.

    Raises UserError where that was a cluster file that is not found by its name alone.
    """
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    *_, name = "local", *(entry.cluster for entry in journal.entries(folder))
    try:
        load_cluster(name)
    except UserError:
        raise UserError(
            f"sweep '{folder.name}' was submitted to cluster '{name}': give its file again, --cluster FILE, or "
            "--cluster local for this machine"
        ) from None
    return name


def retry(
    sweep: str | SweepFolder,
    selection: Sequence[str] = (),
    *,
    cluster: Cluster | str | None = None,
    runs: Path | None = None,
    on_update: Callable[[list[Action], dict[str, RunRecord]], None] = lambda actions, records: None,
) -> Submission | None:
    """Submit the failed cells of a selection again, by default all, whatever their failure class, and nothing else.

    cluster: by default where the sweep was last submitted to. Returns None where no such cell has failed; else it
    acts, blocks and raises as ``submit`` does with ``retry``.
    """
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    plan = failed_cells(folder, selection)
    if not plan.cells:
        return None
    return submit(plan, cluster or last_cluster(folder), runs=folder.runs, retry=True, on_update=on_update)
