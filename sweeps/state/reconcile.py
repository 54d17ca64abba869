"""Decide the state of each cell and what to do about it, from the run folders and the scheduler.

It reads the disk only for a job that left nothing but its log. submit, run, status and the local queue carry out or
print the actions. There is no daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gsq.records.attempt import DONE, FAILED, PRUNED, RUNNING
from gsq.records.read import RunRecord
from gsq.sweeps.spec.states import CANCELLED, PLANNED, QUEUED, RESUMED, RESUMED_ON_SUBMIT
from gsq.sweeps.state import deaths
from gsq.sweeps.state.reasons import explained, waits_for_ever
from gsq.sweeps.state.turns import Turns

# The state that people see of a cell cancelled by gsq cancel, Ctrl-C or scancel, because nothing failed.
STOPPED = "stopped"
# A driver gives up after so many attempts in a row without a further step.
PATIENCE = 3

SchedulerState = Literal["pending", "running", "gone", "unknown"]


@dataclass(frozen=True)
class Job:
    """The scheduler's view of a cell's newest job."""

    state: SchedulerState
    failure: str | None = None
    """Failure class, if the scheduler says why the job is gone."""
    name: str = ""
    earlier: tuple[str, ...] = ()
    """Earlier jobs of the cell, which had ended when this one was submitted."""
    reason: str | None = field(default=None, compare=False)
    """The scheduler's reason for waiting, or why the state is unknown."""
    exit_code: str | None = field(default=None, compare=False)
    """Exit code of a job that is gone, as sacct prints it (code:signal)."""
    log: Path | None = field(default=None, compare=False)
    """Output file of the job."""
    submitted: float = field(default=0.0, compare=False)
    """Seconds since the epoch; 0 if unknown."""
    clusters: str = field(default="", compare=False)
    """The cluster that has the job, if not this machine's."""
    array: str = field(default="", compare=False)
    """Unique name of the job, because SLURM reuses numbers."""
    turns: Turns | None = field(default=None, compare=False, repr=False)
    """The cells that have begun and ended in a shared job; None if it has one cell, or has not begun any."""


@dataclass(frozen=True)
class CellState:
    """State of a cell as in run folders and tables, where a stopped cell is failed with failure cancelled."""

    signature: str
    state: str
    failure: str | None = None
    message: str | None = None
    reason: str | None = field(default=None, compare=False, repr=False)
    """Why a queued cell waits, in words, or why the state of its job is unknown."""
    blocked: bool = field(default=False, compare=False, repr=False)
    """True if a queued cell will not start unless somebody changes something."""


@dataclass(frozen=True)
class Action:
    """``submit`` the cell, ``wait`` for its job, or do nothing: it is ``finished``, or failed and to ``leave``."""

    kind: Literal["submit", "wait", "finished", "leave"]
    cell: CellState


def coming(actions: Iterable[Action]) -> set[str]:
    """Return the signatures of the cells that are queued, running or to be submitted."""
    return {action.cell.signature for action in actions if action.kind in ("submit", "wait")}


OnUpdate = Callable[[list[Action], dict[str, RunRecord]], None]


def no_update(actions: list[Action], records: dict[str, RunRecord]) -> None:
    """Ignore an update, the default for OnUpdate."""


def shown_state(state: str, failure: str | None) -> str:
    """Return the state that people see: stopped if the cell was cancelled, else ``state``."""
    return STOPPED if failure == CANCELLED else state


def given_up(record: RunRecord, search: str | None) -> bool:
    """Return whether the search of that id pruned a run; runs that others pruned are unfinished."""
    return record.state == PRUNED and search is not None and record.pruned_by == search


def cell_state(record: RunRecord, job: Job | None, now: float, search: str | None = None) -> CellState:
    """Return the state of one cell. Its status file comes first; the scheduler adds what the file cannot know.

    job: None if no scheduler was asked or none knows the cell. now: seconds since the epoch; it matters only for a
    silent attempt that no scheduler knows. search: the id of the search that asks, if it is one.
    """
    sig = record.signature
    if record.state == DONE or given_up(record, search):
        return CellState(sig, str(record.state))
    if job is not None and _left(job, record):
        job = None
    if job is not None and job.state == "pending":
        return CellState(sig, QUEUED, reason=explained(job.reason), blocked=waits_for_ever(job.reason))
    if job is not None and job.state == "running":
        # Between the start of a job and its first status the cell still counts as queued.
        waits = job.turns is not None and sig not in job.turns.begun
        reason = f"waits for its turn in job {job.name}" if waits else None
        return CellState(sig, RUNNING if record.state == RUNNING else QUEUED, reason=reason)
    if job is not None and job.state == "unknown":
        # A job that may be alive is never given up, nor submitted twice.
        why = f"not known whether waiting or running ({job.reason or 'SLURM does not answer'})"
        return CellState(sig, RUNNING if record.state == RUNNING else QUEUED, reason=why)
    gone = job if job is not None and job.state == "gone" else None
    if gone and record.state is not None and _is_news(gone, record):
        # The record is of an earlier job or start. If this one failed before it wrote anything, the next one would fail
        # in the same way; if it was stopped from outside, that is nothing new.
        died = death(sig, gone, again=record.job == gone.name)
        if died.failure in ("error", "disk_full"):
            return died
    if record.state == RUNNING:
        # Another job, or a worker elsewhere, may train it for another sweep.
        ours = job is not None and (str(record.pid) == job.name or record.job in (job.name, *job.earlier))
        if (gone and ours) or record.stale(now):
            why = job.failure if job is not None and job.failure else "lost"
            return CellState(sig, FAILED, why, f"no sign of life since step {record.step}")
        return CellState(sig, RUNNING)
    if record.state == FAILED:
        # The scheduler knows better why it stopped a run.
        failure = record.failure
        if failure == "preempted" and job is not None and job.failure in ("timeout", "node_failure"):
            failure = job.failure
        return CellState(sig, FAILED, failure, record.message)
    if record.state == PRUNED:
        return CellState(sig, PLANNED)
    return death(sig, gone) if gone else CellState(sig, PLANNED)


def _left(job: Job, record: RunRecord) -> bool:
    """Return whether a shared job has nothing more to do with a cell: the cell has ended in it, or the job is gone and
    never came to it."""
    if job.turns is None or job.state == "unknown":
        return False
    if record.signature in job.turns.ended:
        return True
    # What cancels a job cancels all its cells. The record tells where the disk was too full to note the turn.
    gone = job.state == "gone" and job.failure != CANCELLED and record.job != job.name
    return job.turns.left(record.signature, gone)


def _is_news(job: Job, record: RunRecord) -> bool:
    """Return whether a job, or its last start if SLURM restarted it, ended after the last sign of life in the run
    folder."""
    if record.job == job.name:
        # A cell that shares the job keeps its own result if SLURM restarts the job for another cell.
        return (record.state == RUNNING or record.failure in RESUMED) and deaths.before_python(job.log)
    return job.submitted > 0 and record.heartbeat < job.submitted


def death(signature: str, job: Job, again: bool = False) -> CellState:
    """Return the state of a cell whose newest job is gone and has written nothing to the run folder.

    again: the job had written there, and SLURM has restarted it since.
    """
    failure = job.failure or deaths.failure_of(job.exit_code, job.log)
    how, last_line = deaths.described(job.exit_code, job.log)
    ended = how if job.failure is None else ""
    message = f"job {job.name} ended{ended} before the run wrote anything{' more' if again else ''}{last_line}"
    return CellState(signature, FAILED, failure, message)


def can_shrink(record: RunRecord, failure: str | None) -> bool:
    """Return whether a run that is out of memory can retry with a smaller micro-batch."""
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
    """Return one action for each cell, in the order of ``signatures``.

    resumed: failure classes to submit again. fruitless: attempts in a row of this driver without a further step; at
    PATIENCE of them a cell is left alone, unless its micro-batch can shrink. search: the id of the search whose cells
    these are; the runs that it pruned are finished, and those that another search pruned are trained further.
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
