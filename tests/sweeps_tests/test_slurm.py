"""What is read from sacct and squeue, through commands that print recorded output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from preamble import HandedOver, PlanOf
from slurm_answers import FakeSlurm

from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state.reconcile import Job
from gsq.sweeps.state.slurm import (
    ask,
    largest_array,
    require_slurm,
    slurm_jobs,
)
from gsq.sweeps.state.status import status


@pytest.mark.parametrize(
    ("text", "state", "failure"),
    [
        ("PENDING", "pending", None),
        ("REQUEUED", "pending", None),
        ("REQUEUE_HOLD", "pending", None),
        ("CONFIGURING", "pending", None),
        ("RUNNING", "running", None),
        ("COMPLETING", "running", None),
        ("SUSPENDED", "running", None),
        ("COMPLETED", "gone", None),
        ("FAILED", "gone", None),
        ("CANCELLED", "gone", "cancelled"),
        ("CANCELLED by 1000", "gone", "cancelled"),
        ("CANCELLED+", "gone", "cancelled"),
        ("TIMEOUT", "gone", "timeout"),
        ("DEADLINE", "gone", "timeout"),
        ("PREEMPTED", "gone", "preempted"),
        ("NODE_FAIL", "gone", "node_failure"),
        ("BOOT_FAIL", "gone", "node_failure"),
        ("OUT_OF_MEMORY", "gone", "out_of_memory"),
        ("", "gone", None),
    ],
)
@pytest.mark.parametrize("command", ["sacct", "squeue"])
def test_states(slurm: FakeSlurm, command: str, text: str, state: str, failure: str | None) -> None:
    slurm.answer(command, f"12_0|{text}\n12_1|COMPLETED\n")
    assert ask(["12_0"]) == {"12_0": Job(state, failure, "12_0")}  # type: ignore[arg-type]


def test_arrays_that_wait_and_jobs_that_run_in_one_answer(slurm: FakeSlurm) -> None:
    slurm.answer("sacct", "40_0|COMPLETED\n40_1|RUNNING\n40_2|PENDING\n40_3|PENDING\n41|CANCELLED by 1000\n")
    # The task that was requeued waits (its reason is BeginTime) though accounting calls it over.
    slurm.answer("squeue", "40_1|RUNNING\n40_2|PENDING\n40_3|PENDING\n42_0|PENDING\n")
    found = ask(["40_0", "40_1", "40_2", "40_3", "41", "42_0", "43"])
    assert {name: job.state for name, job in found.items()} == {
        "40_0": "gone",
        "40_1": "running",
        "40_2": "pending",
        "40_3": "pending",
        "41": "gone",
        "42_0": "pending",
        # Accounting has forgotten it.
        "43": "gone",
    }


@pytest.mark.parametrize("over", ["NODE_FAIL", "PREEMPTED", "TIMEOUT", "COMPLETED"])
def test_what_the_controller_holds_is_not_over(slurm: FakeSlurm, over: str) -> None:
    slurm.answer("sacct", f"12_0|{over}\n")
    slurm.answer("squeue", "12_0|PENDING\n")
    assert ask(["12_0"])["12_0"] == Job("pending", None, "12_0")


def test_one_call_of_each_command_for_any_number_of_jobs(slurm: FakeSlurm) -> None:
    names = [f"{parent}_{index}" for parent in (7, 8, 9) for index in range(500)]
    slurm.answer("sacct", "".join(f"{name}|RUNNING\n" for name in names))
    found = ask(names)
    assert len(found) == 1500 and {job.state for job in found.values()} == {"running"}
    (sacct,), (squeue,) = slurm.calls("sacct"), slurm.calls("squeue")
    # The arrays are named, not their thousand members.
    assert "-j 7,8,9" in sacct and "--me" in squeue


def test_nothing_is_asked_for_no_jobs(slurm: FakeSlurm) -> None:
    assert ask([]) == {} and slurm.calls("sacct") == []


def test_the_newest_job_of_a_cell_counts(slurm: FakeSlurm, plan_of: PlanOf, handed_over: HandedOver) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    one, two, four = plan.cells
    folder = SweepFolder(runs_root(), plan.name)
    assert slurm_jobs(folder) == {}
    handed_over(plan.name, [one, two], "5")
    handed_over(plan.name, [two], "6")
    slurm.answer("sacct", "5_0|RUNNING\n5_1|FAILED\n6_0|PENDING\n")
    found = slurm_jobs(folder)
    assert found[one.signature] == Job("running", None, "5_0")
    assert found[two.signature] == Job("pending", None, "6_0", earlier=("5_1",))
    assert four.signature not in found
    assert len(slurm.calls("sacct")) == 1


def test_a_job_that_slurm_has_forgotten_is_over(slurm: FakeSlurm, plan_of: PlanOf, handed_over: HandedOver) -> None:
    plan = plan_of(axes={"groups": [1]})
    handed_over(plan.name, plan.cells, "5")
    slurm.answer("sacct", "6_0|RUNNING\n")
    assert slurm_jobs(SweepFolder(runs_root(), plan.name)) == {plan.cells[0].signature: Job("gone", None, "5_0")}


def test_status_asks_once_and_joins_both_sides(
    slurm: FakeSlurm,
    plan_of: PlanOf,
    write_run: Callable[..., RunFolder],
    handed_over: HandedOver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # SLURM sets it for a job; without it a run counts as this machine's own.
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    plan = plan_of(axes={"groups": [1, 2, 4, 8]})
    sweep = SweepFolder(runs_root(), plan.name)
    sweep.write_plan(plan)
    handed_over(plan.name, plan.cells, "9")
    for task in (0, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        write_run(plan.cells[task], "running", 5)
    slurm.answer("sacct", "9_0|RUNNING\n9_1|OUT_OF_MEMORY\n9_2|PENDING\n9_3|NODE_FAIL\n")
    found = status(plan.name)
    assert [(c.state, c.failure) for c in found.cells] == [
        ("running", None),
        ("failed", "out_of_memory"),
        ("queued", None),
        ("failed", "node_failure"),
    ]
    assert [c.job for c in found.cells] == ["9_0", "9_1", "9_2", "9_3"]
    assert len(slurm.calls("sacct")) == len(slurm.calls("squeue")) == 1


@pytest.mark.parametrize("absent", [True, False], ids=["no commands", "commands fail"])
def test_where_slurm_cannot_be_asked_a_live_run_is_not_called_lost(
    slurm: FakeSlurm,
    plan_of: PlanOf,
    write_run: Callable[..., RunFolder],
    handed_over: HandedOver,
    monkeypatch: pytest.MonkeyPatch,
    absent: bool,
) -> None:
    """Accounting that is down, or a look from a machine without SLURM, is no reason to think that jobs have died."""
    plan = plan_of(axes={"groups": [1]})
    sweep = SweepFolder(runs_root(), plan.name)
    sweep.write_plan(plan)
    handed_over(plan.name, plan.cells, "9")
    write_run(plan.cells[0], "running", 5)
    slurm.answer("sacct", "", 1, "sacct: error: slurm_persist_conn_open_without_init: failed to open connection")
    slurm.answer("squeue", "", 1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    if absent:
        monkeypatch.setenv("PATH", "")
    assert [(c.state, c.failure) for c in status(plan.name).cells] == [("running", None)]


def test_without_slurm_submission_says_what_is_missing(no_slurm: None, plan_of: PlanOf) -> None:
    with pytest.raises(UserError, match=r"sbatch, sacct, squeue.* PATH.*login node.*--cluster local"):
        require_slurm()
    with pytest.raises(UserError, match="not found on the PATH"):
        submit(plan_of(axes={"groups": [1]}), "slurm")
    assert not runs_root().exists()
    assert ask(["1"])["1"].state == "unknown"


def test_a_controller_that_does_not_answer_is_said_before_anything_is_written(
    slurm: FakeSlurm, plan_of: PlanOf
) -> None:
    require_slurm()
    slurm.answer("scontrol", "Slurmctld(primary) at head is DOWN\n", 1)
    with pytest.raises(UserError, match=r"controller .*head is DOWN"):
        submit(plan_of(axes={"groups": [1]}), "slurm")
    assert not runs_root().exists() and slurm.calls("sbatch") == []


def test_slurm_without_scontrol_is_said(slurm: FakeSlurm) -> None:
    (slurm.folder / "scontrol").unlink()
    slurm_folder = str(slurm.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", slurm_folder)
        with pytest.raises(UserError, match="scontrol not found"):
            require_slurm()


def test_arrays_are_as_large_as_the_cluster_allows_and_share_the_limit(slurm: FakeSlurm, plan_of: PlanOf) -> None:
    slurm.answer("scontrol", "AccountingStorageType = none\nMaxArraySize            = 2\n")
    # Each call its own job id.
    (slurm.folder / "sbatch").write_text(
        f"#!/bin/sh\necho \"$*\" >>'{slurm.folder}/sbatch.calls'\n"
        f"echo Submitted batch job $(wc -l <'{slurm.folder}/sbatch.calls')\n"
    )
    plan = plan_of(axes={"seed": [0, 1, 2, 3, 4]})
    submission = submit(plan, Cluster(kind="slurm", parallel=4, name="c"))
    assert {job: len(members) for job, members in submission.arrays.items()} == {"1": 2, "2": 2, "3": 1}
    assert [s for members in submission.arrays.values() for s in members] == [cell.signature for cell in plan.cells]
    scripts = sorted((submission.folder.path / "submissions").glob("*/script.sh"))
    lines = [line for script in scripts for line in script.read_text().splitlines() if "--array" in line]
    # One alone is an array, too, so that every job is named alike.
    assert lines == ["#SBATCH --array=0-1%1", "#SBATCH --array=0-1%1", "#SBATCH --array=0-0%1"]


def test_without_an_answer_the_largest_array_is_slurms_default(slurm: FakeSlurm) -> None:
    assert largest_array() == 1001
    slurm.answer("scontrol", "MaxArraySize            = 4001\n")
    assert largest_array() == 4001
