"""Submission to SLURM, played by small scripts: what sbatch is given, and one job a cell however a driver ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from controllers import SLURM, Controller, each_once
from preamble import PlanOf

from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import smallest_micro_batch
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.array_job import ArrayJob
from gsq.sweeps.running.slurm_arrays import dry_run, job_script
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal
from gsq.sweeps.state.status import status


def test_the_job_script(folder: Path) -> None:
    entry = journal.Entry(
        path=Path("/runs/sweeps/my sweep/submissions/000007"),
        name="gsq-groups-7-0a1b2c3d",
        cluster="mine",
        source="/runs/sweeps/my sweep/source/0123456789ab",
        minutes=120,
        memory_gb=16,
        time=0.0,
        host="head",
        pid=1,
        signatures=("a", "b", "c"),
    )
    cluster = Cluster(
        kind="slurm",
        partition="gpu",
        qos="long",
        constraint="a100|h100",
        dependency="afterok:12",
        nodes=2,
        gpus=4,
        cpus=32,
        setup=("module load CUDA",),
        environment={"A": 'it\'s $TMPDIR "x"'},
        sbatch={"reservation": "mine", "mail-type": "END"},
    )
    expected = (Path(__file__).parent / "fixtures" / "script.sh").read_text()
    assert job_script(entry, cluster, 2, "/usr/bin/python3") == expected
    assert job_script(entry, cluster, 2, "/usr/bin/python3") == expected, "a function of its arguments alone"


def test_a_dry_run_prints_the_scripts_and_writes_nothing(
    controller: Controller, five: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    monkeypatch.setattr("time.time", lambda: 1.0)
    shown = dry_run(five, SLURM)
    assert not runs_root().exists() and controller.scripts() == {}
    submit(five, SLURM)
    assert list(controller.scripts().values()) == shown and len(shown) == 3
    assert dry_run(five, SLURM) == []


def test_a_second_call_submits_what_is_missing(controller: Controller, five: Plan, monkeypatch: Any) -> None:
    some = five.cut(2)
    assert len(submit(some, SLURM).arrays) == 1
    assert submit(some, SLURM).arrays == {}
    rest = submit(five, SLURM).arrays
    assert sorted(s for members in rest.values() for s in members) == sorted(c.signature for c in five.cells[2:])
    assert controller.trained(monkeypatch) == each_once(five)


def test_a_cell_that_another_sweep_has_trained_is_not_submitted(
    controller: Controller, plan_of: PlanOf, write_run: Callable[..., RunFolder]
) -> None:
    ours, theirs = plan_of("ours", axes={"seed": [0, 1]}), plan_of("theirs", axes={"seed": [1]})
    write_run(theirs.cells[0], "done", 1)
    assert list(submit(ours, SLURM).arrays.values()) == [[ours.cells[0].signature]]


def test_a_job_that_slurm_killed_for_its_memory_goes_on_with_half_the_micro_batch(
    controller: Controller, plan_of: PlanOf, write_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(axes={"seed": [0, 1]})
    ((job, _),) = submit(plan, SLURM).arrays.items()
    (controller.jobs / job).unlink()
    controller.write(controller.jobs.parent / "sacct", f"printf '{job}_0|OUT_OF_MEMORY\\n{job}_1|OUT_OF_MEMORY\\n'")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    for task, smaller in ((0, 4), (1, None)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        run = write_run(plan.cells[task], "running", 3, next_micro_batch=smaller)
        assert smallest_micro_batch(run) is None
    shrinks, cannot = plan.cells
    assert dry_run(plan, SLURM) and smallest_micro_batch(RunFolder.of(runs_root(), shrinks.signature)) is None
    assert list(submit(plan, SLURM).arrays.values()) == [[shrinks.signature]]
    assert smallest_micro_batch(RunFolder.of(runs_root(), shrinks.signature)) == 4
    found = {cell.signature: (cell.state, cell.failure) for cell in status(plan.name).cells}
    assert found == {shrinks.signature: ("queued", None), cannot.signature: ("failed", "out_of_memory")}


def test_a_refusal_is_one_error_and_leaves_nothing_open(controller: Controller, five: Plan) -> None:
    controller.write(
        Path(os.environ["PATH"].split(":")[0]) / "sbatch",
        "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; echo 'sbatch: error: Batch job failed' >&2; exit 1",
    )
    with pytest.raises(UserError, match=r"'c': .*refused 5 of 5 cells.*QOSMaxSubmit.*gsq submit"):
        submit(five, SLURM)
    entries = list(journal.entries(SweepFolder(runs_root(), five.name)))
    assert entries and all(entry.revoked for entry in entries)


def test_a_disk_that_is_full_is_one_error_and_submits_nothing_twice(
    controller: Controller, five: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_json", full)
        with pytest.raises(UserError, match=r"No space left on device.*gsq clean"):
            submit(five, SLURM)
    sweep = SweepFolder(runs_root(), five.name)
    assert controller.scripts() == {} and not list((sweep.path / "submissions").iterdir())
    submit(five, SLURM)
    assert controller.trained(monkeypatch) == each_once(five)


def test_an_answer_that_was_lost_is_no_refusal(controller: Controller, five: Plan, monkeypatch: Any) -> None:
    """sbatch: Socket timed out on send/recv operation; the controller has the job."""
    program = Path(os.environ["PATH"].split(":")[0]) / "sbatch"
    program.write_text(program.read_text().replace('echo "Submitted', 'echo timed out >&2; exit 1; echo "Submitted'))
    assert len(submit(five, SLURM).arrays) == 3
    assert controller.trained(monkeypatch) == each_once(five)


def test_cells_that_share_a_job_are_processes_of_their_own(
    controller: Controller, five: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three short cells on nodes of two GPUs: two jobs, and each cell sees one GPU."""
    plan = five.cut(3)
    submission = submit(plan, Cluster(kind="slurm", name="c", cells_per_job=2, gpus=2, cpus=8))
    ((job, script),) = controller.scripts().items()
    assert "--array=0-1%" in script and "--gpus-per-node=2" in script and "--cpus-per-task=8" in script
    assert 'OMP_NUM_THREADS="4"' in script
    (entry,) = journal.entries(submission.folder)
    assert entry.jobs == dict(zip((c.signature for c in plan.cells), (f"{job}_0", f"{job}_0", f"{job}_1"), strict=True))
    started = []

    class Worker:
        pid, returncode = 0, 0

        def poll(self) -> int:
            return 0

        def send_signal(self, number: int) -> None:
            pass

    def start(self: object, signature: str, variables: dict[str, str]) -> Worker:
        started.append((signature, variables["CUDA_VISIBLE_DEVICES"]))
        return Worker()

    monkeypatch.setattr("gsq.sweeps.running.workers.Workers.start", start)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for task in (0, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        ArrayJob(str(entry.path))()
    assert started == list(zip((c.signature for c in plan.cells), ("0", "1", "0"), strict=True))
