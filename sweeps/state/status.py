"""State of a sweep, cell by cell, and of all sweeps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.errors import UserError
from gsq.html import html_table
from gsq.records.attempt import RUNNING
from gsq.records.folder import runs_root
from gsq.records.read import RunRecord
from gsq.sweeps.planning.cells import Cell, Plan, collector_paused, make_plan
from gsq.sweeps.planning.folder import SweepFolder, names_file, sweep_folder, sweep_names
from gsq.sweeps.spec.states import PLANNED, QUEUED, STATES
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state import journal, restarts
from gsq.sweeps.state.cancellation import marked, with_cancelled
from gsq.sweeps.state.local import with_local_jobs
from gsq.sweeps.state.reconcile import CellState, Job, cell_state, shown_state
from gsq.sweeps.state.slurm import slurm_jobs

if TYPE_CHECKING:
    from gsq.sweeps.state.study import SearchStatus


@dataclass(frozen=True)
class CellStatus:
    """One row of ``gsq status``."""

    signature: str
    title: str
    state: str
    failure: str | None
    message: str | None
    step: int
    steps: int
    rfid: float | None
    """rFID of the newest evaluation."""
    images_per_second: float | None
    seconds_left: float | None
    attempts: int
    node: str
    job: str
    trials: tuple[int, ...] = ()
    """Trials of a search that share this run."""
    reason: str | None = None
    """Why a queued cell waits, in words, or why SLURM does not say."""
    blocked: bool = False
    """True if a queued cell will not start unless somebody changes something."""
    restarts: int = 0
    """How often SLURM has restarted the job of a queued or running cell."""


@dataclass(frozen=True)
class SweepStatus:
    """State of all cells of a sweep at one moment."""

    name: str
    cells: tuple[CellStatus, ...]
    local: bool = True
    """True if SLURM never had a job of the sweep."""
    search: SearchStatus | None = None
    """State of the study, for a search."""
    source: str = ""
    """The YAML file that named the sweep, if one did."""
    not_submitted: Mapping[str, str] = field(default_factory=dict)
    """Title by signature of cells in the YAML that were never submitted."""

    @property
    def counts(self) -> dict[str, int]:
        """Cells by state, every state named."""
        counted = Counter(cell.state for cell in self.cells)
        return {state: counted[state] for state in STATES}

    @property
    def shown_counts(self) -> dict[str, int]:
        """Cells by the state that people see, without states that no cell has."""
        return dict(Counter(shown_state(cell.state, cell.failure) for cell in self.cells))

    @property
    def ended(self) -> bool:
        """True once no cell is queued or running."""
        return all(cell.state not in (PLANNED, QUEUED, RUNNING) for cell in self.cells)

    @property
    def failures(self) -> dict[str, int]:
        """Failed cells by failure class."""
        return dict(Counter(cell.failure or "error" for cell in self.cells if cell.state == "failed"))

    @property
    def reasons(self) -> dict[str, int]:
        """Reasons for waiting with the number of cells; those that will not start come first."""
        return waiting_reasons(self.cells)

    def _repr_html_(self) -> str:
        """The cells as a table, for notebooks."""
        counts = ", ".join(f"{count} {state}" for state, count in self.shown_counts.items())
        rows = (
            (
                c.signature,
                c.title,
                shown_state(c.state, c.failure),
                f"{c.step}/{c.steps}",
                _number(c.rfid),
                c.message or "",
            )
            for c in self.cells
        )
        columns = ("signature", "cell", "state", "step", "rFID", "message")
        return html_table(f"{self.name}: {counts}", columns, rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweep": self.name,
            "counts": self.counts,
            "failures": self.failures,
            "cells": [dict(vars(cell)) for cell in self.cells],
            **({"not_submitted": dict(self.not_submitted)} if self.source else {}),
            **({"search": self.search.to_dict()} if self.search else {}),
        }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def waiting_reasons(cells: Iterable[CellStatus]) -> dict[str, int]:
    """Count the reasons of queued cells; those that will not start come first."""
    found = sorted((cell for cell in cells if cell.reason), key=lambda cell: not cell.blocked)
    return dict(Counter(str(cell.reason) for cell in found))


def seconds_left(record: RunRecord, batch_size: int) -> float | None:
    """Return the training time left at the attempt's own rate; None before it has one."""
    if not record.images_per_second:
        return None
    return (record.steps - record.step) * batch_size / record.images_per_second


def row(
    cell: Cell, state: CellState, record: RunRecord, job: Job | None = None, trials: tuple[int, ...] = ()
) -> CellStatus:
    running = state.state == RUNNING
    restarted = 0
    if job is not None and job.log is not None and state.state in (QUEUED, RUNNING):
        restarted = restarts.read(job.log.parent, job.name)
    return CellStatus(
        signature=cell.signature,
        title=cell.title,
        state=state.state,
        failure=state.failure,
        message=state.message,
        step=record.step,
        steps=max(cell.config.train.steps, record.step),
        rfid=record.rfid,
        images_per_second=record.images_per_second if running else None,
        seconds_left=seconds_left(record, cell.config.train.batch_size) if running else None,
        attempts=record.attempts,
        node=record.node or record.host,
        job=job.name if job else "",
        trials=trials,
        reason=state.reason,
        blocked=state.blocked,
        restarts=restarted,
    )


@dataclass(frozen=True)
class Survey:
    """Plan, records, jobs and states of a sweep at one moment, by signature."""

    plan: Plan
    records: Mapping[str, RunRecord]
    jobs: Mapping[str, Job]
    states: Mapping[str, CellState]


@collector_paused()
def survey(folder: SweepFolder, on_slurm: Mapping[str, Job] | None = None) -> Survey:
    """Read the run folders, then ask SLURM once if the sweep has jobs there. Raises UserError for an unknown sweep.

    on_slurm: a recent answer of slurm_jobs.
    """
    plan = folder.read_plan()
    records = folder.records([cell.signature for cell in plan.cells])
    jobs = with_local_jobs(slurm_jobs(folder) if on_slurm is None else on_slurm, records)
    known, jobs = with_cancelled(marked(folder), records, jobs)
    now, search = time.time(), folder.search_id
    states = {signature: cell_state(record, jobs.get(signature), now, search) for signature, record in known.items()}
    return Survey(plan, known, jobs, states)


def status(
    sweep: str | SweepFolder, runs: Path | None = None, *, on_slurm: Mapping[str, Job] | None = None
) -> SweepStatus:
    """Return the state of a sweep from its run folders and, if it has jobs there, from SLURM.

    sweep: its name, YAML file or folder; a YAML file is compared with what was submitted. on_slurm: as for ``survey``.
    Raises UserError for an unknown sweep.
    """
    folder = sweep_folder(sweep, runs)
    found = survey(folder, on_slurm)
    search = None
    if folder.search_id is not None:
        from gsq.sweeps.state.study import search_status

        search = search_status(folder)
    trials = search.numbers if search else {}
    rows = tuple(
        row(cell, found.states[s], found.records[s], found.jobs.get(s), trials.get(s, ()))
        for cell in found.plan.cells
        for s in [cell.signature]
    )
    result = SweepStatus(found.plan.name, rows, not journal.numbers(folder), search)
    if not isinstance(sweep, str) or not names_file(sweep) or search is not None:
        return result
    return replace(result, source=sweep, not_submitted=_not_submitted(sweep, found.states))


def _not_submitted(sweep: str, submitted: Collection[str]) -> dict[str, str]:
    """Return the cells of a YAML file that were not submitted; none if its images are absent."""
    plan = make_plan(load_spec(sweep), lenient=True)
    if plan.provisional or plan.search is not None:
        return {}
    return {cell.signature: cell.title for cell in plan.cells if cell.signature not in submitted}


@dataclass(frozen=True)
class SweepLine:
    """One sweep in the list of all."""

    name: str
    submitted: float
    """When cells were last submitted, seconds since the epoch."""
    counts: dict[str, int]
    """Cells by the state that people see, without states that no cell has."""
    running: tuple[CellStatus, ...] = ()
    problem: str = ""
    """Why the plan cannot be read; nothing else is known then."""

    def to_dict(self) -> dict[str, Any]:
        running = [dict(vars(cell)) for cell in self.running]
        return {"sweep": self.name, "counts": self.counts, "running": running, "problem": self.problem}


def overview(runs: Path | None = None) -> tuple[SweepLine, ...]:
    """Return every sweep below a runs folder (default ``$GSQ_RUNS``), the last submitted first."""
    root = runs or runs_root()
    lines = [_line(SweepFolder(root, name)) for name in sweep_names(root)]
    return tuple(sorted(lines, key=lambda line: -line.submitted))


def _line(folder: SweepFolder) -> SweepLine:
    submitted = max(path.stat().st_mtime for path in folder.plan_files())
    try:
        found = status(folder)
    except UserError as error:
        return SweepLine(folder.name, submitted, {}, problem=str(error))
    running = tuple(cell for cell in found.cells if cell.state == RUNNING)
    return SweepLine(folder.name, submitted, found.shown_counts, running)
