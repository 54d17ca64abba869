"""Jobs of other names, and a SLURM that is silent or knows only half."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from preamble import HandedOver, PlanOf
from slurm_answers import OURS, state_of

from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.submit import submit
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.state.commands import LIMITS
from gsq.sweeps.state.deaths import FAILED_SOMEHOW
from gsq.sweeps.state.reconcile import Job
from gsq.sweeps.state.slurm import (
    LAG_SECONDS,
    Known,
    cancel_jobs,
    slurm_jobs,
)
from gsq.sweeps.state.status import status
from gsq.sweeps.tables.gather import gather


def test_a_job_of_another_name_is_not_ours(scheduler: Any) -> None:
    """Numbers wrap around, and begin anew with a new database."""
    scheduler.squeue("5_0|RUNNING|my-simulation", "5_1|PENDING|my-simulation|Priority")
    scheduler.sacct("5_0|RUNNING|my-simulation")
    assert state_of() == Job("gone", None, "5_0")
    scheduler.squeue("5_0|RUNNING|gsq-small-1-ffffffff")
    assert state_of().state == "gone"
    scheduler.squeue(f"5_0|RUNNING|{OURS.name}")
    assert state_of().state == "running"


def test_both_questions_ask_for_the_name(scheduler: Any) -> None:
    state_of()
    (squeue,), (sacct,) = scheduler.calls("squeue"), scheduler.calls("sacct")
    assert "%j" in squeue and "JobName" in sacct


def test_what_accounting_knows_of_ours_stays_known_when_its_number_is_given_again(scheduler: Any) -> None:
    scheduler.sacct(
        f"5_0|FAILED|{OURS.name}|3:0|2026-01-02T03:04:05", "5_0|RUNNING|my-simulation|0:0|2026-02-02T03:04:05"
    )
    found = state_of()
    assert (found.state, found.exit_code) == ("gone", "3:0")
    # Also of two of ours, whose rows come in any order: a requeued job's newest run counts.
    scheduler.sacct(
        f"5_0|PENDING|{OURS.name}|0:0|2026-01-02T03:05:00", f"5_0|REQUEUED|{OURS.name}|0:0|2026-01-02T03:04:05"
    )
    assert state_of().state == "pending"


def test_two_of_our_own_jobs_with_one_number(scheduler: Any, plan_of: PlanOf, handed_over: HandedOver) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    one, two = plan.cells
    handed_over(plan.name, [one], "5")
    newer = handed_over(plan.name, [two], "5")
    scheduler.squeue(f"5_0|RUNNING|{newer.name}")
    found = slurm_jobs(SweepFolder(runs_root(), plan.name))
    assert (found[one.signature].state, found[two.signature].state) == ("gone", "running")


def test_scancel_is_told_the_name(scheduler: Any) -> None:
    """A number may become another job's between the question and the deed."""
    cancel_jobs(["5_1", "5_0"], name="gsq-small-1-0a1b2c3d")
    assert scheduler.calls("scancel") == ["--name=gsq-small-1-0a1b2c3d 5_0 5_1"]


# A scheduler that does not answer


@pytest.mark.parametrize("silence", ["slurm_load_jobs error: Socket timed out on send/recv operation", "hang"])
def test_a_silent_squeue_is_no_empty_queue(scheduler: Any, monkeypatch: pytest.MonkeyPatch, silence: str) -> None:
    monkeypatch.setitem(LIMITS, "squeue", 0.5)
    scheduler.fails("squeue", silence)
    assert state_of().state == "unknown" and "squeue" in str(state_of().reason)
    # What accounting knows counts.
    scheduler.sacct(f"5_0|RUNNING|{OURS.name}")
    assert state_of().state == "running"
    scheduler.sacct(f"5_0|FAILED|{OURS.name}|1:0")
    assert state_of() == Job("gone", None, "5_0")
    scheduler.sacct(f"5_0|TIMEOUT|{OURS.name}|0:0")
    assert state_of() == Job("gone", "timeout", "5_0")
    # But a job that SLURM starts again by itself may wait already.
    for word in ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL"):
        scheduler.sacct(f"5_0|{word}|{OURS.name}|0:0")
        assert state_of().state == "unknown"


def test_silence_plus_absence_is_unknown_also_where_squeue_prints_nothing(scheduler: Any) -> None:
    """A wrapper or a filter can do that, while accounting has not heard of a job that was just submitted."""
    young = Known("5_0", OURS.name, submitted=time.time() - 10)
    assert state_of(young).state == "unknown"
    old = Known("5_0", OURS.name, submitted=time.time() - LAG_SECONDS - 10)
    assert state_of(old).state == "gone"


def test_without_accounting_the_controller_decides(scheduler: Any) -> None:
    scheduler.fails("sacct", "Slurm accounting storage is disabled")
    scheduler.squeue(f"5_0|PENDING|{OURS.name}|Priority")
    assert state_of().state == "pending"
    # squeue lists what has just ended, for a few minutes.
    scheduler.squeue(f"5_0|TIMEOUT|{OURS.name}|TimeLimit")
    assert state_of() == Job("gone", "timeout", "5_0")
    scheduler.squeue()
    assert state_of() == Job("gone", None, "5_0")
    scheduler.fails("squeue")
    assert state_of().state == "unknown"


def test_without_accounting_there_is_nothing_to_wait_for(scheduler: Any) -> None:
    """What the controller does not list is over, however young."""
    young = Known("5_0", OURS.name, submitted=time.time() - 10)
    scheduler.fails("sacct", "Slurm accounting storage is disabled")
    assert state_of(young) == Job("gone", None, "5_0")


def test_what_has_just_ended_is_over_although_accounting_says_that_it_runs(scheduler: Any) -> None:
    scheduler.squeue(f"5_0|FAILED|{OURS.name}|NonZeroExitCode")
    scheduler.sacct(f"5_0|RUNNING|{OURS.name}")
    # Its exit code will be known later; that it failed is enough.
    assert state_of().exit_code == FAILED_SOMEHOW
    assert state_of().state == "gone" and "-t all" in scheduler.calls("squeue")[0]


@pytest.mark.parametrize("variable", ["SQUEUE_STATES", "SQUEUE_FORMAT", "SACCT_FORMAT", "SACCT_STATE"])
def test_a_users_own_filters_hide_nothing(scheduler: Any, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "RUNNING")
    scheduler.squeue(f"5_0|PENDING|{OURS.name}|Priority")
    assert state_of().state == "pending"


def test_an_open_submission_of_which_squeue_says_nothing_is_unknown(
    scheduler: Any, plan_of: PlanOf, handed_over: HandedOver
) -> None:
    """Its driver died between two steps: there may be jobs, whose number nobody noted."""
    plan = plan_of(axes={"groups": [1]})
    entry = handed_over(plan.name, plan.cells, None)
    sweep, signature = SweepFolder(runs_root(), plan.name), plan.cells[0].signature
    assert slurm_jobs(sweep) == {}
    scheduler.fails("squeue")
    assert slurm_jobs(sweep)[signature].state == "unknown"
    scheduler.fails("squeue", None)
    scheduler.squeue(f"8_0|PENDING|{entry.name}|Priority")
    assert slurm_jobs(sweep)[signature] == Job("pending", None, "8_0")


@pytest.mark.parametrize("silence", ["slurm_load_jobs error", "hang"])
def test_nothing_is_submitted_twice_where_squeue_is_silent(
    scheduler: Any, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, silence: str
) -> None:
    monkeypatch.setitem(LIMITS, "squeue", 0.5)
    plan = plan_of(axes={"groups": [1, 2]})
    submit(plan, "slurm")
    scheduler.fails("squeue", silence)
    with pytest.raises(UserError) as error:
        submit(plan, "slurm")
    assert all(word in str(error.value) for word in ("squeue", "100_0, 100_1", "Nothing was submitted", "again"))
    assert len(scheduler.calls("sbatch")) == 1
    assert [(c.state, c.failure) for c in status(plan.name).cells] == [("queued", None)] * 2


def test_a_finished_sweep_is_finished_whatever_slurm_says(
    scheduler: Any, plan_of: PlanOf, write_run: Callable[..., RunFolder]
) -> None:
    plan = plan_of(axes={"groups": [1]})
    submit(plan, "slurm")
    write_run(plan.cells[0], "done", 9)
    scheduler.fails("sacct", "Slurm accounting storage is disabled")
    scheduler.fails("squeue")
    assert [action.kind for action in submit(plan, "slurm").actions] == ["finished"]


def test_a_controller_that_hangs_is_said(scheduler: Any, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "scontrol", 0.5)
    scheduler.fails("scontrol", "hang")
    with pytest.raises(UserError, match=r"controller .*scontrol .* 0\.5 s"):
        submit(plan_of(axes={"groups": [1]}), "slurm")
    assert scheduler.calls("sbatch") == []


# Why cells wait


def test_status_says_why_cells_wait(scheduler: Any, plan_of: PlanOf, handed_over: HandedOver) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    SweepFolder(runs_root(), plan.name).write_plan(plan)
    name = handed_over(plan.name, plan.cells, "9").name
    scheduler.squeue(f"9_0|PENDING|{name}|Priority", f"9_1|PENDING|{name}|PartitionDown", f"9_2|RUNNING|{name}|None")
    found = status(plan.name)
    one, two, three = found.cells
    assert (one.state, one.blocked, three.reason) == ("queued", False, None) and "Priority" in str(one.reason)
    assert two.blocked and all(word in str(two.reason) for word in ("will not start", "PartitionDown"))
    # What will not start comes first.
    assert list(found.reasons.values()) == [1, 1] and "PartitionDown" in next(iter(found.reasons))
    assert [c["reason"] for c in found.to_dict()["cells"]] == [one.reason, two.reason, None]
    scheduler.fails("squeue", "slurm_load_jobs error: Zero Bytes were transmitted or received")
    assert "Zero Bytes" in str(status(plan.name).cells[0].reason)


# Jobs that end before Python begins


def test_a_job_that_died_before_python_is_an_error_and_stays_one(
    scheduler: Any, plan_of: PlanOf, write_run: Callable[..., RunFolder]
) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    submission = submit(plan, "slurm")
    ((entry),) = (path for path in (submission.folder.path / "submissions").iterdir())
    for task in (0, 1):
        (entry / f"100_{task}_0_log.out").write_text("slurm_script: line 9: module: command not found\n")
    name = next(line for line in (entry / "script.sh").read_text().splitlines() if "job-name" in line).split("=")[1]
    scheduler.sacct(*(f"100_{task}|FAILED|{name}|3:0" for task in (0, 1)))
    found = status(plan.name)
    assert [(c.state, c.failure) for c in found.cells] == [("failed", "error")] * 2
    assert all("exit code 3" in str(c.message) and "module: command not found" in str(c.message) for c in found.cells)
    rows = read_table(gather(plan.name)).to_dict("records")
    assert [(r["failure"], r["message"]) for r in rows] == [("error", c.message) for c in found.cells]
    # Nothing is tried again unasked, and everything where it is asked for.
    assert submit(plan, "slurm").arrays == {} and len(scheduler.calls("sbatch")) == 1
    # A run that was tried before, too: what its earlier job recorded is no news.
    write_run(plan.cells[0], "failed", 3, heartbeat=time.time() - 3600, failure="preempted", message="stopped")
    assert [c.failure for c in status(plan.name).cells] == ["error", "error"]
    assert submit(plan, "slurm").arrays == {}
    assert len(submit(plan, "slurm", retry=True).arrays) == 1


def test_a_job_that_was_killed_before_it_wrote_anything_comes_back(
    scheduler: Any, plan_of: PlanOf, handed_over: HandedOver
) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    name = handed_over(plan.name, plan.cells, "9").name
    SweepFolder(runs_root(), plan.name).write_plan(plan)
    scheduler.sacct(f"9_0|FAILED|{name}|0:9", f"9_1|NODE_FAIL|{name}|0:0", f"9_2|FAILED|{name}|0:53")
    cells = status(plan.name).cells
    assert [c.failure for c in cells] == ["lost", "node_failure", "error"]
    assert "9_2_0_log.out" in str(cells[2].message)


def test_what_a_run_did_after_its_job_speaks_for_itself(
    scheduler: Any, plan_of: PlanOf, handed_over: HandedOver, write_run: Callable[..., RunFolder]
) -> None:
    """The job died before Python; then somebody trained the run elsewhere, which was preempted."""
    plan = plan_of(axes={"groups": [1]})
    name = handed_over(plan.name, plan.cells, "9").name
    SweepFolder(runs_root(), plan.name).write_plan(plan)
    scheduler.sacct(f"9_0|FAILED|{name}|3:0")
    assert status(plan.name).cells[0].failure == "error"
    write_run(plan.cells[0], "failed", 3, failure="preempted", message="stopped")
    assert status(plan.name).cells[0].failure == "preempted"
