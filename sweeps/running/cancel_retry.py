"""Choose cells of a sweep and act on them: cancel, retry.

A selection is a list of words, each of them a signature or its unique beginning, a state or failure class (failed,
running, out_of_memory, ...), or KEY=VALUE with a key of the config, short or dotted (groups=4). Words on the same
thing are alternatives, words on different things must all hold: ``failed groups=1 groups=4`` is the failed cells with
1 or 4 groups.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gsq.errors import UserError
from gsq.records.attempt import FAILED, RUNNING
from gsq.records.read import RunRecord
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder
from gsq.sweeps.running.slurm_arrays import Submission
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster, load_cluster
from gsq.sweeps.spec.states import CANCELLED, PLANNED, QUEUED
from gsq.sweeps.state import journal
from gsq.sweeps.state.cancellation import claim_signal, mark, marked, resumes_by_itself
from gsq.sweeps.state.local import local_jobs
from gsq.sweeps.state.reconcile import Job, OnUpdate, no_update
from gsq.sweeps.state.selection import select
from gsq.sweeps.state.slurm import cancel_jobs, slurm_jobs
from gsq.sweeps.state.status import CellStatus, status
from gsq.words import counted


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
    folder = sweep_folder(sweep, runs)
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
    folder = sweep_folder(sweep, runs)
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
    folder = sweep_folder(sweep, runs)
    plan = folder.read_plan()
    chosen = {cell.signature for cell in select(plan, status(folder), selection) if cell.state == FAILED}
    return Plan(plan.name, tuple(cell for cell in plan.cells if cell.signature in chosen))


def stopping_cells(sweep: str | SweepFolder, *, runs: Path | None = None) -> int:
    """How many cells were cancelled and have not ended yet. Raises UserError for an unknown sweep."""
    folder = sweep_folder(sweep, runs)
    cancelled = marked(folder)
    return sum(c.signature in cancelled and c.state in (QUEUED, RUNNING) for c in status(folder).cells)


def last_cluster(sweep: str | SweepFolder, *, runs: Path | None = None) -> str:
    """Where the sweep was last submitted to, "local" where never to SLURM.

    Raises UserError where that was a cluster file that is not found by its name alone.
    """
    folder = sweep_folder(sweep, runs)
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
    on_update: OnUpdate = no_update,
) -> Submission | None:
    """Submit the failed cells of a selection again, by default all, whatever their failure class, and nothing else.

    cluster: by default where the sweep was last submitted to. Returns None where no such cell has failed; else it
    acts, blocks and raises as ``submit`` does with ``retry``.
    """
    folder = sweep_folder(sweep, runs)
    plan = failed_cells(folder, selection)
    if not plan.cells:
        return None
    return submit(plan, cluster or last_cluster(folder), runs=folder.runs, retry=True, on_update=on_update)
