"""gsq cancel of SLURM jobs, by rows of squeue and sacct, and what a submission says right after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preamble import HandedOver
from typer.testing import CliRunner

from gsq import sweeps
from gsq.cli.main import app
from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.submit import submit
from gsq.sweeps.state.cancellation import marked
from gsq.sweeps.state.status import status


@pytest.fixture
def two(plan_of: Callable[..., Plan]) -> Plan:
    plan = plan_of(axes={"groups": [1, 2]})
    SweepFolder(runs_root(), plan.name).write_plan(plan)
    return plan


def cancelled(scheduler: Any) -> list[str]:
    return scheduler.calls("scancel")


def test_what_waits_and_what_runs_is_cancelled_by_number_and_name(
    scheduler: Any, two: Plan, handed_over: HandedOver
) -> None:
    name = handed_over(two.name, two.cells, "5").name
    scheduler.squeue(f"5_0|RUNNING|{name}", f"5_1|PENDING|{name}|Priority")
    sweeps.cancel(two.name)
    assert cancelled(scheduler) == [f"--name={name} 5_0 5_1"]


def test_each_array_is_cancelled_under_its_own_name(scheduler: Any, two: Plan, handed_over: HandedOver) -> None:
    names = [handed_over(two.name, [cell], job).name for cell, job in zip(two.cells, ("5", "8"), strict=True)]
    scheduler.squeue(f"5_0|PENDING|{names[0]}|Priority", f"8_0|PENDING|{names[1]}|Priority")
    done = sweeps.cancel(two.name)
    assert sorted(cancelled(scheduler)) == [f"--name={names[0]} 5_0", f"--name={names[1]} 8_0"]
    assert len(done.waiting) == 2


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
def test_a_strangers_job_that_has_our_number_is_left_alone(
    scheduler: Any, two: Plan, handed_over: HandedOver, state: str
) -> None:
    handed_over(two.name, two.cells, "5")
    scheduler.squeue(f"5_0|{state}|my-simulation", f"5_1|{state}|my-simulation")
    scheduler.sacct(f"5_0|{state}|my-simulation", f"5_1|{state}|my-simulation")
    done = sweeps.cancel(two.name)
    assert (done.waiting, done.running, cancelled(scheduler)) == ((), (), [])


@pytest.mark.parametrize("silence", ["slurm_load_jobs error: timed out", "hang"])
def test_where_squeue_is_silent_cancel_says_so_and_does_nothing_to_what_it_does_not_know(
    scheduler: Any, two: Plan, handed_over: HandedOver, monkeypatch: pytest.MonkeyPatch, silence: str
) -> None:
    from gsq.sweeps.state.commands import LIMITS

    monkeypatch.setitem(LIMITS, "squeue", 0.5)
    name = handed_over(two.name, two.cells, "5").name
    scheduler.fails("squeue", silence)
    # Accounting knows of one of the two.
    scheduler.sacct(f"5_0|RUNNING|{name}")
    done = CliRunner().invoke(app, ["cancel", two.name, "--yes"])
    assert isinstance(done.exception, UserError) and "nothing to cancel" not in done.output
    assert all(word in str(done.exception) for word in ("squeue", "1 cell", "run the command again"))
    assert cancelled(scheduler) == [f"--name={name} 5_0"]
    # A job that starts from now on sees that it is cancelled.
    assert marked(SweepFolder(runs_root(), two.name)) == {cell.signature for cell in two.cells}


def test_all_words_of_scancel_are_told(scheduler: Any, two: Plan, handed_over: HandedOver) -> None:
    name = handed_over(two.name, two.cells, "5").name
    scheduler.squeue(f"5_0|RUNNING|{name}", f"5_1|PENDING|{name}|Priority")
    scheduler.fails("scancel", "Welcome to the cluster\nscancel: error: Access/permission denied")
    with pytest.raises(UserError, match="Welcome to the cluster; scancel: error: Access/permission denied"):
        sweeps.cancel(two.name)
    # What has ended in the meantime is cancelled, greeting or not.
    for words in ("Invalid job id specified", "Job/step already completing or completed"):
        scheduler.fails("scancel", f"Welcome\nscancel: error: Kill job error on job id 5_0: {words}")
        sweeps.cancel(two.name)


def test_a_submission_right_after_cancel_waits_for_the_jobs_to_end(
    scheduler: Any, two: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(two, "slurm")
    name = next((SweepFolder(runs_root(), two.name).path / "submissions").glob("*/script.sh")).read_text()
    name = next(line for line in name.splitlines() if "job-name" in line).split("=")[1]
    scheduler.squeue(*(f"100_{task}|COMPLETING|{name}" for task in (0, 1)))
    sweeps.cancel(two.name)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        scheduler.squeue()
        scheduler.sacct(*(f"100_{task}|CANCELLED by 0|{name}|0:15" for task in (0, 1)))

    monkeypatch.setattr("gsq.sweeps.running.slurm_arrays.time.sleep", sleep)
    submission = submit(two, "slurm")
    assert waited and submission.stopping == ()
    assert [len(members) for members in submission.arrays.values()] == [2]
    assert marked(submission.folder) == set()


def test_where_they_do_not_end_it_says_so(
    scheduler: Any, two: Plan, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr("gsq.sweeps.running.slurm_arrays.STOP_SECONDS", 0.0)
    (folder / "two.yaml").write_text("name: small\nbase: cpu-tiny\naxes: {groups: [1, 2]}\n")
    submit(two, "slurm")
    script = next((SweepFolder(runs_root(), two.name).path / "submissions").glob("*/script.sh")).read_text()
    name = next(line for line in script.splitlines() if "job-name" in line).split("=")[1]
    scheduler.squeue(*(f"100_{task}|COMPLETING|{name}" for task in (0, 1)))
    sweeps.cancel(two.name)
    done = CliRunner().invoke(app, ["submit", "two.yaml", "--cluster", "slurm"])
    assert done.exit_code == 1 and "nothing to submit" not in done.output
    assert "2 cells are still stopping" in done.output.splitlines()[-1]
    assert len(scheduler.calls("sbatch")) == 1
    done = CliRunner().invoke(app, ["retry", two.name])
    assert done.exit_code == 1 and "2 cells are still stopping" in done.output


def test_a_silent_squeue_is_waited_for_once(
    scheduler: Any, two: Plan, handed_over: HandedOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over(two.name, two.cells, "5")
    scheduler.fails("squeue")
    CliRunner().invoke(app, ["cancel", two.name])
    assert len(scheduler.calls("squeue")) == 1


def test_a_cancelled_cell_that_had_a_job_ended_as_cancelled(
    scheduler: Any, two: Plan, handed_over: HandedOver, write_run: Callable[..., RunFolder]
) -> None:
    """Whatever exit code the signal gave it."""
    name = handed_over(two.name, two.cells, "5").name
    scheduler.squeue(f"5_0|PENDING|{name}|Priority", f"5_1|RUNNING|{name}")
    sweeps.cancel(two.name)
    scheduler.squeue()
    scheduler.sacct(f"5_0|FAILED|{name}|1:0", f"5_1|FAILED|{name}|15:0")
    assert [c.failure for c in status(two.name).cells] == ["cancelled", "cancelled"]
