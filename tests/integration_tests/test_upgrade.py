"""What the commit before the rooms became one package left behind: files that open, and workers that still run.

``fixtures/one_package`` holds a run, a sweep with its plan and journal, a table and a YAML file that it wrote.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from gsq import RunFolder, Tokenizer, load_config
from gsq.analysis import load_results
from gsq.records.read import read_metrics, read_run
from gsq.runs.identity import identity
from gsq.sweeps import gather, load_spec, plan, read_table, status, submit
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.snapshot import environment, imported_source
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal
from gsq.sweeps.state.local import DRIVER_VARIABLE, workers

REPOSITORY = Path(__file__).resolve().parents[2]
BEFORE = "7c56e90584305cfa68eae97aca0f2dad61622b0e"
LEFT = Path(__file__).parent / "fixtures" / "one_package"
SIGNATURE = "72d21a01e240"
STEPS = 40
SWEEP = {
    "name": "live",
    "base": "cpu-tiny",
    "set": {
        **{"model.channels": 8, "model.norm_groups": 4, "steps": STEPS, "batch_size": 2, "image_size": 32},
        **{"loss.perceptual": "none", "evaluation.num_images": 8, "data.max_crop": 2.0},
        **{"execution.checkpoint_every": 2, "execution.log_every": 1},
    },
    "axes": {"groups": [1]},
}
# A worker that only the words of its command line tell.
OLD_JOB = """
import sys
from pathlib import Path
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.worker import work
runs, sweep, source, signature = sys.argv[1:]
sys.exit(work(SweepFolder(Path(runs), sweep), source, signature))
"""


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what was left, its runs in ``runs``."""
    shutil.copytree(LEFT, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("SLURMD_NODENAME", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_run_opens_as_it_was(left: Path) -> None:
    run = RunFolder.of(left / "runs", SIGNATURE)
    config = load_config({k: v for k, v in run.read_config().items() if k != "data_label"})
    assert identity(config) == SIGNATURE
    record = read_run(run)
    assert (record.state, record.attempts, record.step) == ("done", 1, config.train.steps)
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4]
    tokenizer = Tokenizer.from_pretrained(run.path)
    images = torch.zeros(1, 3, 32, 32)
    assert tokenizer.encode(images).shape[0] == 1


def test_a_sweep_opens_and_nothing_of_it_is_done_again(left: Path) -> None:
    sweep = SweepFolder(left / "runs", "before")
    (cell,) = sweep.read_plan().cells
    assert cell.signature == SIGNATURE and cell == plan(load_spec("before.yaml")).cells[0]
    (entry,) = journal.entries(sweep)
    assert entry.jobs == {SIGNATURE: "7_0"}
    assert status("before").counts["done"] == 1
    (action,) = submit(plan(load_spec("before.yaml")), cluster="local").actions
    assert action.kind == "finished" and read_run(RunFolder.of(left / "runs", SIGNATURE)).attempts == 1


def test_a_table_opens_and_is_gathered_again_with_the_same_science(left: Path) -> None:
    before = read_table(left / "before.parquet")
    assert len(load_results(left / "before.parquet")) == 1
    again = read_table(gather("before", left / "again.parquet"))
    for name in SCIENCE_COLUMNS:
        assert str(before[name][0]) == str(again[name][0]), name


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def old_source(left: Path, request: pytest.FixtureRequest) -> Path:
    """The source of the commit before, or only a program of the name that its workers had."""
    source = left / "old"
    source.mkdir()
    if request.param == "words":
        shutil.copytree(imported_source() / "gsq", source / "gsq", ignore=shutil.ignore_patterns("__pycache__"))
        (source / "sweeps").mkdir()
        (source / "sweeps" / "__init__.py").touch()
        (source / "sweeps" / "job.py").write_text(OLD_JOB)
    else:
        archive = subprocess.run(["git", "-C", str(REPOSITORY), "archive", BEFORE], capture_output=True, check=False)
        if archive.returncode:
            pytest.skip(f"commit {BEFORE[:7]} is not in this checkout's history")
        subprocess.run(["tar", "x", "-C", str(source)], input=archive.stdout, check=True)
    return source


@pytest.fixture
def lone_worker(left: Path, old_source: Path) -> Iterator[int]:
    """Process id of a worker of the commit before, whose driver was killed with SIGKILL."""
    (left / "live.yaml").write_text(yaml.safe_dump(SWEEP))
    variables = {**os.environ, **environment(old_source, ""), "OMP_NUM_THREADS": "1"}
    if (old_source / "sweeps" / "submission.py").exists():
        words = ["-m", "gsq.cli", "submit", "live.yaml", "--cluster", "local"]
    else:
        SweepFolder(left / "runs", "live").write_plan(made := plan(load_spec("live.yaml")))
        job = [str(left / "runs"), "live", str(old_source), made.cells[0].signature]
        start = f"subprocess.Popen([sys.executable, '-m', 'sweeps.job', *{job!r}], start_new_session=True)"
        words = ["-c", f"import os, subprocess, sys, time; os.environ['{DRIVER_VARIABLE}'] = str(os.getpid()); {start}"]
        words[1] += "; time.sleep(60)"
    driver = subprocess.Popen([sys.executable, *words], env=variables, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: workers(left / "runs"))
        (worker,) = workers(left / "runs").values()
        assert worker.driver == driver.pid
    finally:
        driver.kill()
        driver.wait()
    words = Path(f"/proc/{worker.pid}/cmdline").read_text().split("\0")
    assert words[1:3] == ["-m", "sweeps.job"] and not list((left / "runs").rglob("workers/*"))
    yield worker.pid
    with suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="workers are found through /proc")
@pytest.mark.parametrize("old_source", ["words", "commit"], indirect=True)
def test_a_worker_of_the_commit_before_is_adopted(left: Path, lone_worker: int) -> None:
    """The driver is killed, gsq upgraded, and the sweep submitted again: the cell is not trained a second time."""
    (found,) = workers(left / "runs").values()
    assert (found.pid, found.driver) == (lone_worker, 0)
    (action,) = submit(plan(load_spec("live.yaml")), Cluster(workers=2)).actions
    run = RunFolder.of(left / "runs", action.cell.signature)
    record = read_run(run)
    assert (action.kind, record.state, record.attempts, record.pid) == ("finished", "done", 1, lone_worker)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, STEPS + 1))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="workers are found through /proc")
@pytest.mark.parametrize("old_source", ["words", "commit"], indirect=True)
def test_a_worker_of_the_commit_before_is_cancelled_with_its_new_driver(left: Path, lone_worker: int) -> None:
    """Ctrl-C at the new driver stops the worker that it adopted, with a checkpoint; the next driver goes on from it."""
    (cell,) = plan(load_spec("live.yaml")).cells
    run = RunFolder.of(left / "runs", cell.signature)
    program = [sys.executable, "-m", "gsq.cli", "submit", "live.yaml", "--cluster", "local"]
    driver = subprocess.Popen(program, env={**os.environ, **environment(imported_source(), "")})
    try:
        wait_for(lambda: run.path.exists() and read_run(run).step >= 3)
        os.kill(lone_worker, signal.SIGSTOP)
        driver.send_signal(signal.SIGINT)
        wait_for(lambda: list((left / "runs/sweeps/live/cancelled").glob(f"*.{lone_worker}")))
        os.kill(lone_worker, signal.SIGCONT)
        assert driver.wait(60) == 130
    finally:
        driver.kill()
        driver.wait()
    record = read_run(run)
    assert (record.state, record.failure, record.attempts) == ("failed", "cancelled", 1)
    (action,) = submit(plan(load_spec("live.yaml")), Cluster(workers=1), retry=True).actions
    assert (action.kind, read_run(run).attempts) == ("finished", 2)
    assert [line["step"] for line in read_metrics(run)] == list(range(1, STEPS + 1))
