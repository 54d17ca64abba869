"""Workers forked from a warm parent: what they are to drivers, what they share, and what they do not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preamble import wait_for

from gsq.records.folder import RunFolder
from gsq.records.read import read_run
from gsq.sweeps.planning.cells import Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.snapshot import take
from gsq.sweeps.running.worker import STOPPED
from gsq.sweeps.running.workers import UNKNOWN, Process, Workers
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.local import workers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forks warm workers")
PROGRAM = """\
import atexit, json, os, sys, threading, time
from pathlib import Path

def train(config, run):
    import numpy
    facts = {"pid": os.getpid(), "parent": os.getppid(), "variables": dict(os.environ), "draw": numpy.random.random()}
    facts |= {"threads": len(os.listdir("/proc/self/task")), "session": os.getsid(0), "input": sys.stdin.read()}
    run.log(0, loss=1.0)
    Path(config["place"], f"{config['x']}.partial").write_text(json.dumps(facts))
    Path(config["place"], f"{config['x']}.partial").rename(Path(config["place"], f"{config['x']}.json"))
    while not Path(config["place"], "go").exists():
        run.log(0, loss=1.0)
        time.sleep(0.02)
    if config["x"] == 3:
        sys.exit("no more")
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: time.sleep(0.3) or print("in a thread")).start()
    return {"loss": 0.5}
"""
SWEEP = "name: own\nprogram: slow:train\nbase: {{place: {place}}}\naxes: {{x: [1, 2, 3]}}\n"


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SweepFolder, Plan]]:
    """A sweep of three programs that wait for a file ``go``, submitted; whatever runs at the end is killed."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (folder / "slow.py").write_text(PROGRAM)
    (folder / "own.yaml").write_text(SWEEP.format(place=folder))
    sweep, plan = SweepFolder(folder / "runs", "own"), make_plan(load_spec("own.yaml"))
    sweep.write_plan(plan)
    yield sweep, plan
    for worker in workers(folder / "runs").values():
        os.kill(worker.pid, signal.SIGKILL)


class Interrupted:
    """An answer of which five characters are read before Ctrl-C."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readline(self) -> bytes:
        self.stream.read(5)
        raise KeyboardInterrupt


def facts(folder: Path, x: int) -> dict[str, Any]:
    wait_for((folder / f"{x}.json").exists)
    return dict(json.loads((folder / f"{x}.json").read_text()))


def test_workers_of_one_parent_and_what_becomes_of_them(own: tuple[SweepFolder, Plan], folder: Path) -> None:
    """Three cells, one parent that is killed before they end; a driver that asks sees each by its record."""
    sweep, plan = own
    one, two, three = (cell.signature for cell in plan.cells)
    starter = Workers(sweep, take(sweep))
    started: dict[str, Process] = {}
    for number, signature in enumerate((one, two, three)):
        started[signature] = starter.start(signature, {"CUDA_VISIBLE_DEVICES": str(number), "COLOUR": "red"})
        # Known from the moment at which it is started, and by this driver.
        found = workers(sweep.runs)[signature]
        assert (found.pid, found.driver, found.gpu) == (started[signature].pid, os.getpid(), str(number))
    known = [facts(folder, x) for x in (1, 2, 3)]
    (parent,) = {fact["parent"] for fact in known}
    assert parent not in (os.getpid(), 1) and len(starter.parents) == 1
    for number, fact in enumerate(known):
        assert fact["variables"]["CUDA_VISIBLE_DEVICES"] == str(number) and fact["variables"]["COLOUR"] == "red"
        assert fact["session"] == fact["pid"] and fact["input"] == ""
    # A program that sets no seed gets other numbers in each cell, as in processes of their own.
    assert len({fact["draw"] for fact in known}) == 3
    (folder / "go").touch()
    assert started[one].wait(30) == 0 and started[three].wait(30) == 1
    assert read_run(RunFolder.of(sweep.runs, one)).state == "done"
    # They end like Python, and their logs hold what they print and nothing else.
    assert sweep.log(one).read_text().splitlines()[-2:] == ["in a thread", "at exit"]
    assert sweep.log(three).read_text().splitlines()[-1] == "no more"
    assert read_run(RunFolder.of(sweep.runs, three)).failure == "error"
    # Another environment means another parent.
    starter.ready(one, {"COLOUR": "blue"})
    assert len(starter.parents) == 2
    starter.close()
    assert not Path(f"/proc/{parent}").exists()


def test_workers_outlive_their_parent_and_a_new_one_follows(own: tuple[SweepFolder, Plan], folder: Path) -> None:
    sweep, plan = own
    one, two, _ = (cell.signature for cell in plan.cells)
    starter = Workers(sweep, take(sweep))
    first = starter.start(one, {})
    parent = facts(folder, 1)["parent"]
    os.kill(parent, signal.SIGKILL)
    wait_for(lambda: workers(sweep.runs)[one].driver == 0)
    assert first.poll() is None
    second = starter.start(two, {})
    assert facts(folder, 2)["parent"] != parent
    second.send_signal(signal.SIGKILL)
    assert second.wait(10) == -signal.SIGKILL
    (folder / "go").touch()
    # It ends well, though nobody can say with which code.
    assert first.wait(30) == UNKNOWN
    assert read_run(RunFolder.of(sweep.runs, one)).state == "done"
    starter.close()


def test_an_interrupted_question_leaves_its_answer_to_nobody(own: tuple[SweepFolder, Plan], folder: Path) -> None:
    """Ctrl-C, while a worker is being started: the driver finds it by its record, and hears of the others as before."""
    sweep, plan = own
    one, two, _ = (cell.signature for cell in plan.cells)
    starter = Workers(sweep, take(sweep))
    first = starter.start(one, {})
    (parent,) = starter.parents.values()
    assert parent._process is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parent._process, "stdout", Interrupted(parent._process.stdout))
        with pytest.raises(KeyboardInterrupt):
            starter.start(two, {})
    assert workers(sweep.runs)[two].driver == os.getpid()
    first.send_signal(signal.SIGKILL)
    assert first.wait(10) == -signal.SIGKILL
    starter.close()


def test_a_worker_that_cannot_write_its_record_starts_alone(own: tuple[SweepFolder, Plan], folder: Path) -> None:
    sweep, plan = own
    (sweep.path / "workers").write_text("a file where a folder should be")
    starter = Workers(sweep, take(sweep))
    worker = starter.start(plan.cells[0].signature, {})
    assert facts(folder, 1)["parent"] == os.getpid() and isinstance(worker, subprocess.Popen)
    # It is known by its command line.
    assert workers(sweep.runs)[plan.cells[0].signature].pid == worker.pid
    worker.kill()
    worker.wait()
    starter.close()


def test_a_parent_with_threads_or_a_gpu_forks_nothing(folder: Path) -> None:
    """Children of such a process could hang, or find their GPU unusable."""
    text = "import sys, threading, time; from gsq.sweeps.running import warm_parent\n{more}\nprint(warm_parent.unfit())"
    threads = "threading.Thread(target=time.sleep, args=(3,), daemon=True).start()"
    (folder / "nvidia0").touch()
    for more, words in (("", ""), (threads, "2 threads"), ("held = open('nvidia0')", "nvidia0")):
        done = subprocess.run(
            [sys.executable, "-c", text.format(more=more)], capture_output=True, text=True, check=True, timeout=60
        )
        assert words in done.stdout and bool(done.stdout.strip()) == bool(words)


def test_what_a_cell_needs_is_loaded_without_threads_or_a_gpu(folder: Path) -> None:
    from gsq.sweeps.running.warm_parent import READY, TOKENIZER

    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-m", "gsq.sweeps.running.warm_parent", TOKENIZER],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == READY, done.stdout + done.stderr


def test_a_worker_of_a_job_takes_a_signal_whenever_it_comes(
    own: tuple[SweepFolder, Plan], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM asks all processes of a job to stop, and the job asks its workers again: one that is told before it has
    begun and until it is gone stops as one that is told once. Forked and alone."""
    sweep, plan = own
    source = take(sweep)
    for cell, usable in zip(plan.cells, (True, True, False), strict=False):
        if not usable:
            monkeypatch.setattr("gsq.sweeps.running.workers.PATIENCE", 0)
        starter = Workers(sweep, source, shared=True)
        worker = starter.start(cell.signature, {})
        while worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
            worker.send_signal(signal.SIGUSR2)
            time.sleep(0.001)
        starter.close()
        record = read_run(RunFolder.of(sweep.runs, cell.signature))
        assert (worker.returncode, record.failure, record.attempts) == (STOPPED, "preempted", 1)
