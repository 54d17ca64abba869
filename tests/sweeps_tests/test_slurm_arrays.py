"""Submission to SLURM, played by small scripts: what sbatch is given, and one job a cell however a driver ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gsq.sweeps.running.slurm_arrays
from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import smallest_micro_batch
from gsq.runs.provenance import commit
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.array_job import ArrayJob
from gsq.sweeps.running.slurm_arrays import dry_run, job_script
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal
from gsq.sweeps.state.status import status

PlanOf = Callable[..., Plan]
SLURM = Cluster(kind="slurm", name="c")


class Controller:
    """sbatch, squeue and sacct over a folder with one file for each job array that was taken."""

    def __init__(self, folder: Path) -> None:
        self.jobs = folder / "jobs"
        self.jobs.mkdir(parents=True)
        self.delay = folder / "delay"
        # Of two at once each gets its own number, as of a controller.
        self.write(
            folder / "sbatch",
            f"""\
            [ -e '{self.delay}' ] && sleep "$(cat '{self.delay}')"
            n=1; until (set -C; : >'{self.jobs}'/$n) 2>/dev/null; do n=$((n + 1)); done
            cat "$1" >'{self.jobs}'/$n
            echo "Submitted batch job $n"
            """,
        )
        self.write(
            folder / "squeue",
            f"""\
            cd '{self.jobs}'
            for n in *; do [ -e $n ] || continue
              name=$(sed -n 's/^#SBATCH --job-name=//p' $n)
              last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' $n)
              case "$*" in
                *%F*) echo "$n|$name";;
                *) for task in $(seq 0 $last); do echo "${{n}}_$task|PENDING|Priority|$name"; done;;
              esac
            done
            """,
        )
        self.write(folder / "sacct", "")
        self.write(folder / "scontrol", "echo 'MaxArraySize = 3'")

    def write(self, path: Path, body: str) -> None:
        path.write_text("#!/bin/sh\n" + "".join(line.strip() + "\n" for line in body.splitlines()))
        path.chmod(0o755)

    def scripts(self) -> dict[str, str]:
        """The job scripts that were taken, by the array's id."""
        return {path.name: path.read_text() for path in sorted(self.jobs.iterdir(), key=lambda p: int(p.name))}

    def trained(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Start every job that was taken; how often each cell is trained."""
        started: Counter[str] = Counter()
        monkeypatch.setattr(
            "gsq.sweeps.running.array_job.run_cell", lambda folder, cell, *rest: started.update([cell.signature])
        )
        for job, script in self.scripts().items():
            lines = [line for line in script.splitlines() if "--array=" in line or "submitit.core._submit" in line]
            last, entry = int(lines[0].split("-")[-1].split("%")[0]), lines[1].split()[-1]
            monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
            for task in range(last + 1):
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
                ArrayJob(entry)()
        return started


@pytest.fixture
def controller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    found = Controller(folder / "fake")
    monkeypatch.setenv("PATH", f"{folder / 'fake'}:/usr/bin:/bin")
    return found


@pytest.fixture
def five(plan_of: PlanOf) -> Plan:
    """Of two classes of resources, so that there are two arrays, the first in two parts."""
    return plan_of(cases=[*({"seed": seed} for seed in range(4)), {"seed": 4, "steps": 100000}])


def each_once(plan: Plan) -> Counter[str]:
    return Counter(cell.signature for cell in plan.cells)


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


def in_a_child(action: Callable[[], object], killed_at: int | None = None) -> tuple[int, int]:
    """Run it in a process of its own, which kills itself at the n-th step that the system would see: before a file
    is opened for writing, renamed, linked or removed, a folder is made, or a program is started.
    Returns the steps that it made, and its exit code, negative for a signal."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        steps = 0
        me = threading.get_ident()

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal steps
            writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            others = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "subprocess.Popen", "os.truncate")
            if threading.get_ident() == me and (writing or event in others):
                steps += 1
                if steps == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.addaudithook(count)
            action()
            code = 0
        finally:
            os.write(writer, str(steps).encode())
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return int(said or 0), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_driver_killed_at_any_step_loses_and_doubles_nothing(
    folder: Path, five: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of a submission of three arrays, one after the other; then the same command again, to its end."""
    path = os.environ["PATH"]

    def fresh(name: str) -> Controller:
        monkeypatch.setenv("GSQ_RUNS", str(folder / name / "runs"))
        monkeypatch.setenv("PATH", f"{folder / name / 'fake'}:{path}")
        return Controller(folder / name / "fake")

    # The copy of the source is some hundred steps of one kind; it is killed in its own test.
    monkeypatch.setattr(
        "gsq.sweeps.running.snapshot.source_files", lambda root: [Path("gsq/__init__.py"), Path("gsq/errors.py")]
    )
    # A process asks git once; the children then make the same steps as each other.
    commit()
    fresh("whole")
    steps, code = in_a_child(lambda: submit(five, SLURM))
    assert code == 0 and steps > 30
    for number in range(1, steps + 1):
        controller = fresh(f"step-{number}")
        assert in_a_child(lambda: submit(five, SLURM), killed_at=number)[1] == -signal.SIGKILL
        submit(five, SLURM)
        with monkeypatch.context() as patch:
            assert controller.trained(patch) == each_once(five), f"killed at step {number}"
        assert submit(five, SLURM).arrays == {}, f"killed at step {number}"


def test_a_copy_of_the_source_that_was_cut_short_is_made_again(folder: Path, five: Plan) -> None:
    from gsq.sweeps.running.snapshot import imported_source, source_files, take

    sweep = SweepFolder(folder / "runs", "s")
    for number in (3, 40, 80):
        assert in_a_child(lambda: take(sweep), killed_at=number)[1] == -signal.SIGKILL
    copy = take(sweep)
    ours = imported_source()
    assert {name.parts[:2] for name in source_files(ours)} >= {("gsq", "sweeps"), ("gsq", "analysis"), ("gsq", "cli")}
    for name in source_files(ours):
        assert (copy / name).read_bytes() == (ours / name).read_bytes()


def test_an_sbatch_on_its_way_when_its_driver_dies_gives_jobs_that_end_at_once(
    controller: Controller, five: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It outlives the driver, and reaches SLURM after another driver has looked and found nothing."""
    controller.delay.write_text("1.5")
    plan = five.cut(2)
    if (pid := os.fork()) == 0:
        submit(plan, SLURM)
        os._exit(0)
    sweep = SweepFolder(runs_root(), plan.name)
    while not journal.numbers(sweep):
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    controller.delay.unlink()
    assert len(submit(plan, SLURM).arrays) == 1
    deadline = time.monotonic() + 30
    while len(controller.scripts()) < 2 or not all(controller.scripts().values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert controller.trained(monkeypatch) == each_once(plan)
    assert capsys.readouterr().out.count("this submission was revoked") == 2
    assert [entry.revoked for entry in journal.entries(sweep)] == [True, False]


def test_a_driver_that_slept_gives_way(controller: Controller, five: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop is closed between the entry and sbatch; another driver submits; the laptop is opened."""
    plan = five.cut(2)
    monkeypatch.setattr(gsq.sweeps.running.slurm_arrays, "DRIVER_SECONDS", 0.3)
    sbatch = gsq.sweeps.running.slurm_arrays.hand_over
    calls = []

    def asleep(entry: journal.Entry, cluster: Cluster) -> str:
        calls.append(entry)
        if len(calls) == 1:
            # Another process, as far as anybody can see.
            monkeypatch.setattr("gsq.sweeps.running.slurm_arrays._driver_alive", lambda entry: True)
            assert len(submit(plan, SLURM).arrays) == 1
        return sbatch(entry, cluster)

    monkeypatch.setattr(gsq.sweeps.running.slurm_arrays, "hand_over", asleep)
    assert submit(plan, SLURM).arrays == {}
    assert len(controller.scripts()) == 2
    assert controller.trained(monkeypatch) == each_once(plan)


@pytest.mark.parametrize("drivers", [2, 5])
def test_drivers_at_once_submit_each_cell_once(
    controller: Controller, five: Plan, monkeypatch: pytest.MonkeyPatch, drivers: int
) -> None:
    controller.delay.write_text("0.05")
    children = []
    for _ in range(drivers):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                submit(five, SLURM)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * drivers
    assert controller.trained(monkeypatch) == each_once(five)
    assert not any(entry.revoked for entry in journal.entries(SweepFolder(runs_root(), five.name)))


def test_a_refusal_is_one_error_and_leaves_nothing_open(controller: Controller, five: Plan) -> None:
    controller.write(
        Path(os.environ["PATH"].split(":")[0]) / "sbatch",
        "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; echo 'sbatch: error: Batch job failed' >&2; exit 1",
    )
    with pytest.raises(UserError, match=r"cluster 'c': sbatch refused 5 of 5 cells.*QOSMaxSubmit.*hands over the rest"):
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
        returncode = 0

        def __init__(self, folder: object, source: str, signature: str, variables: dict[str, str], shared: bool):
            started.append((signature, variables["CUDA_VISIBLE_DEVICES"]))

        def poll(self) -> int:
            return 0

        def send_signal(self, number: int) -> None:
            pass

    monkeypatch.setattr("gsq.sweeps.running.array_job.start_worker", Worker)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for task in (0, 1):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        ArrayJob(str(entry.path))()
    assert started == list(zip((c.signature for c in plan.cells), ("0", "1", "0"), strict=True))
