"""Cancel or retry selected cells of a sweep.

A selection is a list of words: signatures or unique beginnings, states or failure classes (failed, running,
out_of_memory, ...), or KEY=VALUE with a short or dotted config key (groups=4). Words of one kind are alternatives,
different kinds must all match: ``failed groups=1 groups=4`` selects the failed cells with 1 or 4 groups.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
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
    """Result of ``cancel``, as signatures."""

    sweep: str
    waiting: tuple[str, ...]
    """Queued cells, which will not start."""
    running: tuple[str, ...]
    """Running cells, which stop after their step with a checkpoint."""


def cancellable(
    sweep: str | SweepFolder, selection: Sequence[str] = (), *, runs: Path | None = None
) -> list[CellStatus]:
    """Return the cells that ``cancel`` would stop. Raises UserError for an unknown sweep or selection."""
    folder = sweep_folder(sweep, runs)
    return _cancellable(folder, selection, slurm_jobs(folder))


def _cancellable(folder: SweepFolder, selection: Sequence[str], on_slurm: Mapping[str, Job]) -> list[CellStatus]:
    """Selected cells that are queued, running, or would be resumed by a queue on this machine."""
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
    """Stop the queued and running cells of a selection, by default all. Returns without waiting for their end.

    Running cells receive SIGTERM, on SLURM by one call of scancel for each job array, and are recorded as cancelled. A
    queue on another machine stops its own workers. The next submission resumes the cells. Raises UserError for an
    unknown sweep or selection, if SLURM or the system refuses, and, after cancelling the rest, if SLURM does not report
    the state of a job.
    """
    folder = sweep_folder(sweep, runs)
    jobs = slurm_jobs(folder)
    chosen = _cancellable(folder, selection, jobs)
    # The markers come first, so that a queue stops whatever starts after them.
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
            "cancelled. Pending jobs will stop when they start, running jobs continue; run the command again once "
            "squeue --me lists them"
        )
    running = {cell.signature for cell in chosen if cell.state == RUNNING or records[cell.signature].state == RUNNING}
    return Cancellation(
        folder.name,
        tuple(cell.signature for cell in chosen if cell.signature not in running),
        tuple(cell.signature for cell in chosen if cell.signature in running),
    )


def _cancel_on_slurm(jobs: Mapping[str, Job], chosen: Collection[str]) -> None:
    """Cancel the chosen cells' jobs that SLURM lists under their own names."""
    sharing: dict[tuple[str, str], set[str]] = defaultdict(set)
    for signature, job in jobs.items():
        if job.state in ("pending", "running") and not (job.turns and signature in job.turns.ended):
            sharing[job.array, job.name].add(signature)
    clusters = {job.array: job.clusters for job in jobs.values()}
    for array in sorted({array for array, _ in sharing}):
        mine = {job_id: cells for (name, job_id), cells in sharing.items() if name == array}
        cancel_jobs(
            (job_id for job_id, cells in mine.items() if cells <= set(chosen)), name=array, clusters=clusters[array]
        )
        # Cells that share a job know by their markers which of them is cancelled.
        some = (job_id for job_id, cells in mine.items() if cells & set(chosen) and not cells <= set(chosen))
        cancel_jobs(some, "--signal=TERM", name=array, clusters=clusters[array])


def _terminate(record: RunRecord) -> None:
    try:
        with suppress(ProcessLookupError):  # It has just ended.
            os.kill(record.pid, signal.SIGTERM)
    except PermissionError:
        raise UserError(
            f"{record.signature}: process {record.pid} belongs to another user, who must cancel it"
        ) from None


def failed_cells(sweep: str | SweepFolder, selection: Sequence[str] = (), *, runs: Path | None = None) -> Plan:
    """Return a plan, perhaps empty, of the failed cells of a selection as they were submitted.

    Raises UserError for an unknown sweep or selection.
    """
    folder = sweep_folder(sweep, runs)
    plan = folder.read_plan()
    chosen = {cell.signature for cell in select(plan, status(folder), selection) if cell.state == FAILED}
    return Plan(plan.name, tuple(cell for cell in plan.cells if cell.signature in chosen))


def stopping_cells(sweep: str | SweepFolder, *, runs: Path | None = None) -> int:
    """Return how many cancelled cells have not ended yet. Raises UserError for an unknown sweep."""
    folder = sweep_folder(sweep, runs)
    cancelled = marked(folder)
    return sum(c.signature in cancelled and c.state in (QUEUED, RUNNING) for c in status(folder).cells)


def last_cluster(sweep: str | SweepFolder, *, runs: Path | None = None) -> str:
    """Return the cluster of the last submission, "local" if the sweep was never on SLURM.

    Raises UserError if that was a cluster file that its name alone does not find.
    """
    folder = sweep_folder(sweep, runs)
    *_, name = "local", *(entry.cluster for entry in journal.entries(folder))
    try:
        load_cluster(name)
    except UserError:
        raise UserError(
            f"sweep '{folder.name}' was submitted to cluster '{name}': name its file with --cluster FILE, or use "
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

    cluster: by default that of the last submission. Returns None if no such cell failed; else acts, blocks and raises
    like ``submit`` with ``retry``.
    """
    folder = sweep_folder(sweep, runs)
    plan = failed_cells(folder, selection)
    if not plan.cells:
        return None
    return submit(plan, cluster or last_cluster(folder), runs=folder.runs, retry=True, on_update=on_update)
