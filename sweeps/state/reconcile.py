"""What is the state of each cell, and what should be done about it: one function of what the run folders and the
scheduler say. It looks at the disk only where a job left nothing but its log.

submit, run, status and the local queue only carry out or print its actions. There is no daemon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gsq.records.attempt import DONE, FAILED, PRUNED, RUNNING
from gsq.records.read import RunRecord
from gsq.sweeps.spec.states import CANCELLED, PLANNED, QUEUED, RESUMED, RESUMED_ON_SUBMIT
from gsq.sweeps.state import deaths
from gsq.sweeps.state.reasons import explained, waits_for_ever

# What people are told of a cell that was cancelled, by gsq cancel, Ctrl-C or scancel: nothing of it has failed.
STOPPED = "stopped"
# Attempts in a row of one driver that may end without a further step before it gives up.
PATIENCE = 3

SchedulerState = Literal["pending", "running", "gone", "unknown"]


@dataclass(frozen=True)
class Job:
    """What the scheduler says of the newest job of a cell."""

    state: SchedulerState
    failure: str | None = None
    """Failure class, where the scheduler says why a job is gone."""
    name: str = ""
    earlier: tuple[str, ...] = ()
    """Jobs of the cell before this one, which were over when it was submitted."""
    reason: str | None = field(default=None, compare=False)
    """Why it waits, in the scheduler's word; of an unknown job, why nothing is known."""
    exit_code: str | None = field(default=None, compare=False)
    """Of a job that is gone, as sacct prints it (code:signal)."""
    log: Path | None = field(default=None, compare=False)
    """What the job printed."""
    submitted: float = field(default=0.0, compare=False)
    """Seconds since the epoch; 0 where it is not known."""
    clusters: str = field(default="", compare=False)
    """Where it was submitted to, if not to the cluster of this machine."""
    array: str = field(default="", compare=False)
    """The name that tells the job from others that were given its number."""


@dataclass(frozen=True)
class CellState:
    """State of a cell, as run folders and tables have it: one that was stopped is failed, with failure cancelled."""

    signature: str
    state: str
    failure: str | None = None
    message: str | None = None
    reason: str | None = field(default=None, compare=False, repr=False)
    """Why a queued cell waits, as the scheduler says, in words; or why it is not known what became of its job."""
    blocked: bool = field(default=False, compare=False, repr=False)
    """Whether a queued cell will not start unless somebody changes something."""


@dataclass(frozen=True)
class Action:
    """``submit`` the cell, ``wait`` for its job, or nothing: it is ``finished`` or the driver will ``leave`` it."""

    kind: Literal["submit", "wait", "finished", "leave"]
    cell: CellState


def shown_state(state: str, failure: str | None) -> str:
    """The state of a cell as people are told it: stopped where it was cancelled, else ``state``."""
    return STOPPED if failure == CANCELLED else state


def given_up(record: RunRecord, search: str | None) -> bool:
    """Whether a run is pruned to the search of that id: what others pruned is unfinished."""
    return record.state == PRUNED and search is not None and record.pruned_by == search


def cell_state(record: RunRecord, job: Job | None, now: float, search: str | None = None) -> CellState:
    """State of one cell. Its own status file speaks first; the scheduler decides what the file cannot know.

    job: None where no scheduler was asked or none knows the cell. now: seconds since the epoch; it only tells a
    silent attempt from a live one where no scheduler can. search: the id of the search that asks, if it is one.
    """
    sig = record.signature
    if record.state == DONE or given_up(record, search):
        return CellState(sig, str(record.state))
    if job is not None and job.state == "pending":
        return CellState(sig, QUEUED, reason=explained(job.reason), blocked=waits_for_ever(job.reason))
    if job is not None and job.state == "running":
        # Between the start of a job and its first status the cell is still waiting for its turn.
        return CellState(sig, RUNNING if record.state == RUNNING else QUEUED)
    if job is not None and job.state == "unknown":
        # It cannot be asked: a job that may be alive is never given up, nor submitted twice.
        why = f"not known whether waiting or running ({job.reason or 'SLURM does not answer'})"
        return CellState(sig, RUNNING if record.state == RUNNING else QUEUED, reason=why)
    gone = job is not None and job.state == "gone"
    if gone and job is not None and record.state is not None and _is_news(job, record):
        # The record is of an earlier job or start. That this one failed before it wrote anything must not be lost, for
        # the next one would fail alike; what stopped it from outside says nothing new.
        died = death(sig, job, again=record.job == job.name)
        if died.failure in ("error", "disk_full"):
            return died
    if record.state == RUNNING:
        # Another job, or a worker elsewhere, may be training it for another sweep.
        ours = job is not None and (str(record.pid) == job.name or record.job in (job.name, *job.earlier))
        if (gone and ours) or record.stale(now):
            why = job.failure if job is not None and job.failure else "lost"
            return CellState(sig, FAILED, why, f"no sign of life since step {record.step}")
        return CellState(sig, RUNNING)
    if record.state == FAILED:
        # The scheduler knows better why a run was stopped from outside.
        failure = record.failure
        if failure == "preempted" and job is not None and job.failure in ("timeout", "node_failure"):
            failure = job.failure
        return CellState(sig, FAILED, failure, record.message)
    if record.state == PRUNED:
        return CellState(sig, PLANNED)
    if gone and job is not None:
        return death(sig, job)
    return CellState(sig, PLANNED)


def _is_news(job: Job, record: RunRecord) -> bool:
    """Whether a job, or its last start where SLURM has started it again, ended after the last sign of life in the run
    folder."""
    if record.job == job.name:
        # What a cell that shares the job has come to stands, whatever SLURM starts the job again for.
        return (record.state == RUNNING or record.failure in RESUMED) and deaths.before_python(job.log)
    return job.submitted > 0 and record.heartbeat < job.submitted


def death(signature: str, job: Job, again: bool = False) -> CellState:
    """State of a cell whose newest job is gone and has written nothing to the run folder.

    again: it had written there, and SLURM has started it again since.
    """
    failure = job.failure or deaths.failure_of(job.exit_code, job.log)
    how, last_line = deaths.described(job.exit_code, job.log)
    ended = how if job.failure is None else ""
    message = f"job {job.name} ended{ended} before the run wrote anything{' more' if again else ''}{last_line}"
    return CellState(signature, FAILED, failure, message)


def can_shrink(record: RunRecord, failure: str | None) -> bool:
    """Whether a run that is out of memory can try again with a smaller micro-batch."""
    return failure == "out_of_memory" and record.next_micro_batch is not None


def reconcile(
    signatures: Iterable[str],
    records: Mapping[str, RunRecord],
    jobs: Mapping[str, Job],
    now: float,
    *,
    resumed: Collection[str] = RESUMED_ON_SUBMIT,
    fruitless: Mapping[str, int] | None = None,
    search: str | None = None,
) -> list[Action]:
    """One action a cell, in the order of ``signatures``.

    resumed: failure classes that are submitted again. fruitless: attempts of this driver in a row that ended
    without a further step; at PATIENCE of them a cell is left alone, unless its micro-batch has become smaller.
    search: the id of the search whose cells these are; what it pruned is finished, what another pruned is trained on.
    """
    actions = []
    for sig in signatures:
        record = records.get(sig) or RunRecord(sig)
        cell = cell_state(record, jobs.get(sig), now, search)
        again = can_shrink(record, cell.failure)
        again |= cell.failure in resumed and (fruitless or {}).get(sig, 0) < PATIENCE
        if cell.state == DONE or given_up(record, search):
            actions.append(Action("finished", cell))
        elif cell.state in (QUEUED, RUNNING):
            actions.append(Action("wait", cell))
        elif cell.state == FAILED and not again:
            actions.append(Action("leave", cell))
        else:
            actions.append(Action("submit", cell))
    return actions
