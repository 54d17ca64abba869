"""Each test has an empty working folder and runs folder of its own; run folders can be made by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Cell, Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state import journal


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; runs go to ``runs`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("SLURMD_NODENAME", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    """``plan_of(axes={...})``: the plan of a sweep of cpu-tiny."""

    def make(name: str = "small", **parts: Any) -> Plan:
        return make_plan(load_spec({"name": name, "base": "cpu-tiny", **parts}))

    return make


@pytest.fixture
def handed_over(folder: Path) -> Callable[..., journal.Entry]:
    """``handed_over(name, cells, "7")``: these cells of a sweep are SLURM jobs 7_0, 7_1, ..."""

    def make(name: str, cells: Sequence[Cell], job: str | None = "7", cluster: str = "slurm") -> journal.Entry:
        sweep = SweepFolder(folder / "runs", name)
        number = max(journal.numbers(sweep), default=0) + 1
        entry = journal.Entry(
            path=journal.path_of(sweep, number),
            name=f"gsq-{name}-{number}",
            cluster=cluster,
            source="",
            minutes=15,
            memory_gb=2,
            time=1.0,
            host="elsewhere",
            pid=1,
            signatures=tuple(cell.signature for cell in cells),
        )
        journal.add(entry, {})
        return entry.decide(job) if job else entry

    return make


@pytest.fixture
def write_run(folder: Path) -> Callable[..., RunFolder]:
    """Adds one attempt to the run of a cell, as a worker would."""

    def write(
        cell: Cell,
        state: str | None,
        step: int = 0,
        evaluations: tuple[dict[str, Any], ...] = (),
        heartbeat: float | None = None,
        environment: dict[str, Any] | None = None,
        **more: Any,
    ) -> RunFolder:
        from gsq.files import write_json
        from gsq.records.attempt import Attempt

        run = RunFolder.of(folder / "runs", cell.signature)
        attempt = run.new_attempt()
        if heartbeat is not None:
            attempt = Attempt(attempt.path, attempt.number, clock=lambda: heartbeat, started=heartbeat - 1)
            # It is by another process than this one, which is alive.
            more = {"pid_start": "", **more}
        if state is not None:
            attempt.write_status(state, step, cell.config.train.steps, **more)
        for evaluation in evaluations:
            attempt.write_evaluation(evaluation["protocol"], evaluation["step"], evaluation)
        if environment is not None:
            write_json(attempt.path / "env.json", environment)
        return run

    return write


# squeue and sacct that print what they are asked for, of rows in a file; a file ``NAME.mode`` makes one fail or hang.
# Every call is noted with its words, and with those variables of the user that would change the answer.
_PROGRAM = """\
#!{python}
import os, re, sys, time
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
folder = os.path.dirname(sys.argv[0])
with open(f"{{folder}}/{{name}}.calls", "a") as calls:
    calls.write(" ".join(words) + "\\n")
def read(file):
    return open(f"{{folder}}/{{file}}").read() if os.path.exists(f"{{folder}}/{{file}}") else ""
mode = read(f"{{name}}.mode")
if mode == "hang":
    time.sleep(1000)
if mode and mode != "hang":
    sys.exit(mode)
rows = [line.split("|") for line in read(f"{{name}}.rows").splitlines()]
if name == "squeue":
    if wanted := os.environ.get("SQUEUE_STATES"):
        rows = [row for row in rows if row[1] in wanted.split(",")]
    for job, state, job_name, reason in rows:
        values = {{"i": job, "T": state, "j": job_name, "r": reason, "F": job.split("_")[0]}}
        print(re.sub("%([a-zA-Z])", lambda found: values[found[1]], words[words.index("-o") + 1]))
elif name == "sacct":
    parents = words[words.index("-j") + 1].split(",")
    for job, state, job_name, code, submit in rows:
        values = {{"JobID": job, "State": state, "JobName": job_name, "ExitCode": code, "Submit": submit}}
        if job.split("_")[0] in parents:
            print("|".join(values[key] for key in words[words.index("-o") + 1].split(",")))
elif name == "sbatch":
    number = len(read("sbatch.calls").splitlines()) + 99
    print(f"Submitted batch job {{number}}")
"""


class Scheduler:
    """SLURM's commands over rows that a test writes: nothing is forgotten, added or filtered but by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sbatch", "sacct", "squeue", "scontrol", "scancel"):
            (folder / name).write_text(_PROGRAM.format(python=sys.executable))
            (folder / name).chmod(0o755)

    def squeue(self, *rows: str) -> None:
        """Rows ``job|state|name|reason``, the last two may be left out."""
        lines = ["|".join([*row.split("|"), "", ""][:4]) for row in rows]
        (self.folder / "squeue.rows").write_text("".join(f"{line}\n" for line in lines))

    def sacct(self, *rows: str) -> None:
        """Rows ``job|state|name|exit code|time of submission``, the last three may be left out."""
        lines = ["|".join([*row.split("|"), "", "", ""][:5]) for row in rows]
        (self.folder / "sacct.rows").write_text("".join(f"{line}\n" for line in lines))

    def fails(self, name: str, words: str | None = "slurm_load_jobs error: Unable to contact slurm controller") -> None:
        """The command fails with these words, or hangs where they are "hang"; None: it answers again."""
        (self.folder / f"{name}.mode").write_text(words or "")

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def scheduler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    found = Scheduler(folder / "scheduler")
    monkeypatch.setenv("PATH", f"{found.folder}:/usr/bin:/bin")
    return found


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def four(folder: Path, plan_of: Callable[..., Plan], write_run: Callable[..., RunFolder]) -> Plan:
    """A sweep with a cell that is done, two that have failed and one that has not been tried."""
    plan = plan_of(axes={"groups": [1, 2], "model.channels": [16, 32]})
    SweepFolder(folder / "runs", plan.name).write_plan(plan)
    a, b, c, _ = plan.cells
    write_run(a, "done", 9)
    write_run(b, "failed", 3, failure="out_of_memory", message="no memory")
    write_run(c, "failed", 4, failure="cancelled", message="stopped as asked after step 4")
    return plan


@pytest.fixture
def fake(folder: Path, write_run: Callable[..., RunFolder]) -> Callable[..., Any]:
    """``fake(plan)``: a driver of a search whose runs are made by hand."""
    from searches import Fake, plan_of

    def make(plan: Plan | None = None, parallel: int = 2, **options: Any) -> Fake:
        return Fake(write_run, plan or plan_of(), parallel, **options)

    return make


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from slurm_answers import FakeSlurm

    fake = FakeSlurm(folder / "fake-slurm")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    return fake


@pytest.fixture
def no_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty").mkdir()
    monkeypatch.setenv("PATH", str(folder / "empty"))


@pytest.fixture
def controller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from controllers import Controller

    found = Controller(folder / "fake")
    monkeypatch.setenv("PATH", f"{folder / 'fake'}:/usr/bin:/bin")
    return found


@pytest.fixture
def five(plan_of: Callable[..., Plan]) -> Plan:
    """A plan of two classes of resources, so that there are two arrays, the first in two parts."""
    return plan_of(cases=[*({"seed": seed} for seed in range(4)), {"seed": 4, "steps": 100000}])
