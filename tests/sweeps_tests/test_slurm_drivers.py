"""Drivers of a submission that are killed, sleep, or work side by side."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from controllers import SLURM, Controller, each_once

import gsq.sweeps.running.slurm_arrays
from gsq.records.folder import runs_root
from gsq.runs.provenance import commit
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal


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
