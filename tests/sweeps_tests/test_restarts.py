"""A job that SLURM starts again and again without a further step ends as a time-out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import read_run
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.running.array_job import ArrayJob, EvaluationJob
from gsq.sweeps.state import journal, restarts


@pytest.fixture
def entry(
    plan_of: Callable[..., Plan], handed_over: Callable[..., journal.Entry], monkeypatch: pytest.MonkeyPatch
) -> journal.Entry:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    return handed_over("small", plan_of(axes={"seed": [0, 1]}).cells)


def restart(count: int, entry: journal.Entry, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether submitit would requeue the job as it ends for the (count + 1)th time."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
    return ArrayJob(str(entry.path)).checkpoint() is not None


def record(entry: journal.Entry) -> Any:
    return read_run(RunFolder.of(runs_root(), entry.signatures[1]))


def test_a_job_without_a_step_is_started_four_times(entry: journal.Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [restart(count, entry, monkeypatch) for count in range(3)] == [True, True, True]
    assert record(entry).state is None
    assert not restart(3, entry, monkeypatch)
    found = record(entry)
    assert (found.state, found.failure) == ("failed", "timeout")
    assert "minutes" in found.message and "of its 15 minutes" in found.message
    # The other task of the array is another job.
    assert read_run(RunFolder.of(runs_root(), entry.signatures[0])).state is None
    assert restarts.read(entry.path, "7_1") == 3 and restarts.read(entry.path, "7_0") == 0


def test_slurms_own_count_tells_where_nothing_was_noted(entry: journal.Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not restart(50, entry, monkeypatch)


def test_a_job_that_makes_steps_goes_on(
    entry: journal.Entry, plan_of: Any, write_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = plan_of(axes={"seed": [0, 1]}).cells[1]
    for count in range(6):
        write_run(cell, "failed", count + 1, failure="preempted")
        assert restart(count, entry, monkeypatch)
    # From now on it makes none.
    assert [restart(count, entry, monkeypatch) for count in range(6, 9)] == [True, True, False]
    assert (record(entry).failure, record(entry).step) == ("timeout", 6)


def test_what_is_done_or_cancelled_stays_so(
    entry: journal.Entry, plan_of: Any, write_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = plan_of(axes={"seed": [0, 1]}).cells[1]
    write_run(cell, "failed", 3, failure="cancelled")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "9")
    restarts.give_up(entry.path, 1, 0.0)
    assert record(entry).failure == "cancelled"
    write_run(cell, "done", 3)
    restarts.give_up(entry.path, 1, 0.0)
    assert record(entry).state == "done"


def test_an_evaluation_that_never_ends_in_time_is_not_started_for_ever(
    entry: journal.Entry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = EvaluationJob(str(entry.path), str(runs_root()), {})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert job.checkpoint() is not None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert job.checkpoint() is None
    assert "minutes in the cluster file" in capsys.readouterr().out


def test_a_probe_that_saves_its_progress_goes_on(entry: journal.Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = RunFolder.of(runs_root(), entry.signatures[1]).probes / "a-b-c.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    evaluation = EvaluationJob(str(entry.path), str(runs_root()), {"probe": "base"})
    for count in range(9):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(count))
        os.utime(checkpoint, (count + 1, count + 1))
        assert evaluation.checkpoint() is not None
    # The same at the end of a training; from now on neither saves anything.
    os.utime(checkpoint, (99, 99))
    assert [restart(count, entry, monkeypatch) for count in range(9, 13)] == [True, True, True, False]


def test_a_disk_that_is_full_does_not_hide_it(entry: journal.Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restarts, "write_json", full)
    assert restart(0, entry, monkeypatch) and not restart(3, entry, monkeypatch)
