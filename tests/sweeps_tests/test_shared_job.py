"""A SLURM job with several cells in turn, whose workers are played: what it starts, notes, and leaves."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from preamble import PlanOf

from gsq.records.attempt import DONE, FAILED, RUNNING
from gsq.records.folder import RunFolder
from gsq.records.read import read_run
from gsq.runs.stop import Stopped, StopRequest
from gsq.sweeps.planning.cells import Cell
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.shared_job import SharedJob
from gsq.sweeps.running.worker import STOPPED
from gsq.sweeps.state import journal
from gsq.sweeps.state.cancellation import mark
from gsq.sweeps.state.reconcile import Job, reconcile
from gsq.sweeps.state.restarts import give_up
from gsq.sweeps.state.turns import Turns, read_turns

End = Callable[[Cell, "Played"], int]


@dataclass
class Played:
    """A worker that ends when it is asked for the second time, in the way of its cell."""

    cell: Cell
    end: End
    place: str
    pid: int = 1 << 22
    returncode: int | None = None
    polls: int = 0
    told: int = 0

    def poll(self) -> int | None:
        self.polls += 1
        if self.returncode is None and (self.polls > 1 or self.told):
            self.returncode = self.end(self.cell, self)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            self.told = number


class Stage:
    """Five cells of a job 7_0, in turn or two at a time."""

    def __init__(self, folder: Path, plan_of: PlanOf, write_run: Any, patch: pytest.MonkeyPatch) -> None:
        plan = plan_of(axes={"seed": [0, 1, 2, 3, 4]})
        self.folder, self.cells, self.write_run = SweepFolder(folder / "runs", plan.name), plan.cells, write_run
        self.folder.write_plan(plan)
        self.names = [cell.signature for cell in plan.cells]
        self.ends: dict[str, End] = {}
        self.started: list[str] = []
        self.most = 0
        self.stop = StopRequest()
        self.patch = patch
        for name, value in (("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "0"), ("CUDA_VISIBLE_DEVICES", "4,5")):
            patch.setenv(name, value)

    def done(self, cell: Cell, worker: Played) -> int:
        self.write_run(cell, DONE, cell.config.train.steps)
        return 0

    def run(self, places: int = 1) -> str:
        path = journal.path_of(self.folder, 1)
        entry = journal.Entry(
            path, "gsq-a", "c", "source", 15, 2, 1.0, "h", 1, tuple(self.names), places, len(self.names)
        )
        if not path.exists():
            journal.add(entry, {})
        job = SharedJob(self.folder, entry, entry.members(0), self.stop)

        def start(workers: object, signature: str, variables: dict[str, str]) -> Played:
            self.started.append(signature)
            self.most = max(self.most, len(job.running) + 1)
            cell = self.cells[self.names.index(signature)]
            return Played(cell, self.ends.get(signature, self.done), variables["CUDA_VISIBLE_DEVICES"])

        self.patch.setattr("gsq.sweeps.running.workers.Workers.start", start)
        self.patch.setattr("gsq.sweeps.running.shared_job.POLL_SECONDS", 0.0)
        self.job = job
        return job.run()

    def states(self, state: Any, failure: str | None = None) -> list[tuple[str, str | None, str]]:
        """State, failure and action of each cell, with the job in a state."""
        turns = read_turns(journal.path_of(self.folder, 1), "7_0")
        jobs = {name: Job(state, failure, "7_0", turns=turns) for name in self.names}
        actions = reconcile(self.names, self.folder.records(self.names), jobs, 1e12)
        return [(action.cell.state, action.cell.failure, action.kind) for action in actions]


@pytest.fixture
def stage(folder: Path, plan_of: PlanOf, write_run: Any, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(folder, plan_of, write_run, monkeypatch)


def test_each_cell_ends_in_its_own_way_and_leaves_the_others(stage: Stage) -> None:
    """The first diverges, the second is killed in its training and the third before it, the fourth is cancelled."""

    def diverge(cell: Cell, worker: Played) -> int:
        stage.write_run(cell, FAILED, 3, failure="diverged", message="loss=nan")
        mark(stage.folder, [stage.names[3]])
        return 1

    def killed(cell: Cell, worker: Played) -> int:
        stage.write_run(cell, RUNNING, 3, pid=worker.pid, job="7_0")
        return -signal.SIGKILL

    stage.ends = dict(zip(stage.names, (diverge, killed, lambda cell, worker: -9), strict=False))
    stage.run()
    assert stage.started == [*stage.names[:3], stage.names[4]] and stage.most == 1
    # The job runs on, for other cells say.
    assert stage.states("running") == [
        ("failed", "diverged", "leave"),
        ("failed", "lost", "submit"),
        ("failed", "lost", "submit"),
        ("planned", None, "submit"),
        ("done", None, "finished"),
    ]
    # SLURM starts the job again: nothing is left to do.
    stage.run()
    assert len(stage.started) == 4


def test_a_cell_that_the_kernel_killed_for_its_memory_is_out_of_memory(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = [0]
    monkeypatch.setattr("gsq.sweeps.running.shared_job._memory_kills", lambda: kills[0])

    def killed(cell: Cell, worker: Played) -> int:
        stage.write_run(cell, RUNNING, 3, pid=worker.pid, next_micro_batch=4)
        kills[0] += 1
        return -signal.SIGKILL

    stage.ends = {stage.names[1]: killed}
    stage.run()
    records = stage.folder.records(stage.names)
    assert [records[name].failure for name in stage.names] == [None, "out_of_memory", None, None, None]
    assert [kind for *_, kind in stage.states("gone")][1] == "submit"


@pytest.mark.parametrize("code", [STOPPED, -signal.SIGUSR2, -signal.SIGKILL])
def test_preemption_stops_the_present_cell_and_gives_back_the_rest(stage: Stage, code: int) -> None:
    """Its record counts: after that, a second signal may end the process before it can say how it ended."""

    def ask(cell: Cell, worker: Played) -> int:
        if not worker.told:
            stage.stop.reason = "preempted"
            worker.returncode = None
            return None  # type: ignore[return-value]
        assert worker.told == signal.SIGUSR2
        stage.write_run(cell, FAILED, 5, failure="preempted", job="7_0")
        return code

    stage.ends = {stage.names[1]: ask}
    with pytest.raises(Stopped, match="preempted"):
        stage.run()
    assert stage.started == stage.names[:2]
    turns = read_turns(journal.path_of(stage.folder, 1), "7_0")
    assert turns == Turns(frozenset(stage.names[:2]), frozenset(stage.names[:1]))
    # SLURM has the job again: the cells wait for it, those in turn with a reason.
    waits = [("queued", None, "wait")] * 4
    assert stage.states("pending") == [("done", None, "finished"), *waits] == stage.states("running")
    # It never starts again: the present cell resumes from its checkpoint, and the others go back.
    gone = [("failed", "preempted", "submit"), *[("planned", None, "submit")] * 3]
    assert stage.states("gone") == [("done", None, "finished"), *gone]
    # A job that was cancelled takes its cells with it.
    assert stage.states("gone", "cancelled")[2:] == [("failed", "cancelled", "submit")] * 3
    # Or it does: it continues with the present cell.
    stage.stop, stage.ends = StopRequest(), {}
    stage.run()
    assert stage.started == [*stage.names[:2], *stage.names[1:]]
    assert {kind for *_, kind in stage.states("gone")} == {"finished"}


def test_a_job_that_is_given_up_leaves_a_time_out_for_the_cell_that_had_begun_alone(stage: Stage) -> None:
    def ask(cell: Cell, worker: Played) -> int:
        stage.stop.reason = "preempted"
        stage.write_run(cell, FAILED, 5, failure="preempted")
        return STOPPED

    stage.ends = {stage.names[1]: ask}
    with pytest.raises(Stopped):
        stage.run()
    give_up(journal.path_of(stage.folder, 1), 0, 0.0)
    failures = [record.failure for record in stage.folder.records(stage.names).values()]
    assert failures == [None, "timeout", None, None, None]


def test_two_places_of_a_job_take_cells_in_turn_each_on_its_gpu(stage: Stage) -> None:
    seen: dict[str, str] = {}

    def end(cell: Cell, worker: Played) -> int:
        seen[cell.signature] = worker.place
        return stage.done(cell, worker)

    stage.ends = dict.fromkeys(stage.names, end)
    stage.run(places=2)
    assert stage.most == 2 and stage.started == stage.names and set(seen.values()) == {"4", "5"}


def test_a_cell_that_is_done_needs_no_process(stage: Stage) -> None:
    stage.done(stage.cells[2], None)  # type: ignore[arg-type]
    stage.run()
    assert stage.started == [name for name in stage.names if name != stage.names[2]]
    assert read_run(RunFolder.of(stage.folder.runs, stage.names[2])).attempts == 1


def test_a_job_that_died_before_it_began_a_cell_is_the_failure_of_all(stage: Stage) -> None:
    """The end is like that of a setup that fails: the next job would fail in the same way."""
    jobs = {name: Job("gone", None, "7_0", exit_code="3:0") for name in stage.names}
    actions = reconcile(stage.names, stage.folder.records(stage.names), jobs, 1e12)
    assert {(action.cell.failure, action.kind) for action in actions} == {("error", "leave")}
