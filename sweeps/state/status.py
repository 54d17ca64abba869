"""State of a sweep, cell by cell."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.records.attempt import RUNNING
from gsq.records.read import RunRecord
from gsq.sweeps.planning.cells import Cell, Plan, collector_paused, make_plan
from gsq.sweeps.planning.folder import SweepFolder, is_yaml, sweep_folder
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
    """Of the newest evaluation."""
    images_per_second: float | None
    seconds_left: float | None
    attempts: int
    node: str
    job: str
    trials: tuple[int, ...] = ()
    """Of a search: the trials whose run this is."""
    reason: str | None = None
    """Why a queued cell waits, as SLURM says, in words; or why SLURM says nothing."""
    blocked: bool = False
    """Whether a queued cell will not start unless somebody changes something."""
    restarts: int = 0
    """How often SLURM has started its job again, of a cell that is queued or running."""


@dataclass(frozen=True)
class SweepStatus:
    """All cells of a sweep at one moment."""

    name: str
    cells: tuple[CellStatus, ...]
    local: bool = True
    """Whether SLURM never had a job of the sweep."""
    search: SearchStatus | None = None
    """What the study of a search knows."""
    source: str = ""
    """The YAML file that was asked for; empty where the sweep was asked for by its name."""
    not_submitted: Mapping[str, str] = field(default_factory=dict)
    """Cells that the YAML has by now and that were never submitted: signature to title."""

    @property
    def counts(self) -> dict[str, int]:
        """Cells by state, every state named."""
        counted = Counter(cell.state for cell in self.cells)
        return {state: counted[state] for state in STATES}

    @property
    def shown_counts(self) -> dict[str, int]:
        """Cells by state as people are told it, those with none left out."""
        return dict(Counter(shown_state(cell.state, cell.failure) for cell in self.cells))

    @property
    def ended(self) -> bool:
        """Whether every cell has: nothing waits and nothing runs."""
        return all(cell.state not in (PLANNED, QUEUED, RUNNING) for cell in self.cells)

    @property
    def failures(self) -> dict[str, int]:
        """Failed cells by failure class."""
        return dict(Counter(cell.failure or "error" for cell in self.cells if cell.state == "failed"))

    @property
    def reasons(self) -> dict[str, int]:
        """Why cells wait, with how many do; those that will not start come first."""
        return waiting_reasons(self.cells)

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweep": self.name,
            "counts": self.counts,
            "failures": self.failures,
            "cells": [dict(vars(cell)) for cell in self.cells],
            **({"not_submitted": dict(self.not_submitted)} if self.source else {}),
            **({"search": self.search.to_dict()} if self.search else {}),
        }


def waiting_reasons(cells: Iterable[CellStatus]) -> dict[str, int]:
    """Reasons of the cells that wait, with how many have each; those that will not start come first."""
    found = sorted((cell for cell in cells if cell.reason), key=lambda cell: not cell.blocked)
    return dict(Counter(str(cell.reason) for cell in found))


def seconds_left(record: RunRecord, batch_size: int) -> float | None:
    """Training time left, from the attempt's own rate; None before it has one."""
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
        steps=cell.config.train.steps,
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
    """What the plan, the run folders and the schedulers say of a sweep at one moment, by signature."""

    plan: Plan
    records: Mapping[str, RunRecord]
    jobs: Mapping[str, Job]
    states: Mapping[str, CellState]


@collector_paused()
def survey(folder: SweepFolder, on_slurm: Mapping[str, Job] | None = None) -> Survey:
    """Read the run folders, then ask SLURM once if the sweep has jobs there. Raises UserError for an unknown sweep.

    on_slurm: the answer of slurm_jobs, where SLURM has just been asked.
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
    """Read the run folders, then ask SLURM once if the sweep has jobs there.

    sweep: its name, its YAML file or its folder; a YAML file is compared with what was submitted. on_slurm: as for
    ``survey``. Raises UserError for an unknown sweep.
    """
    folder = sweep_folder(sweep, runs)
    found = survey(folder, on_slurm)
    search = None
    if folder.search_id is not None:
        from gsq.sweeps.state.study import search_status

        search = search_status(folder)
    trials = search.numbers if search else {}
    rows = tuple(
        row(
            cell,
            found.states[cell.signature],
            found.records[cell.signature],
            found.jobs.get(cell.signature),
            trials.get(cell.signature, ()),
        )
        for cell in found.plan.cells
    )
    local = not journal.numbers(folder)
    if not isinstance(sweep, str) or not is_yaml(sweep) or search is not None:
        return SweepStatus(found.plan.name, rows, local, search)
    return SweepStatus(found.plan.name, rows, local, search, sweep, _not_submitted(sweep, found.states))


def _not_submitted(sweep: str, submitted: Collection[str]) -> dict[str, str]:
    """Cells of a YAML file without those that were submitted; empty where its images are not there to tell."""
    plan = make_plan(load_spec(sweep), lenient=True)
    if plan.provisional or plan.search is not None:
        return {}
    return {cell.signature: cell.title for cell in plan.cells if cell.signature not in submitted}
