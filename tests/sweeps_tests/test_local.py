"""Which processes of this machine are workers of the local queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsq.records.attempt import process_start
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running import worker as worker_module
from gsq.sweeps.running.snapshot import environment, imported_source
from gsq.sweeps.state.local import DRIVER_VARIABLE, WORKERS, Worker, recorded_worker, workers

Start = Callable[..., subprocess.Popen[str]]
SIGNATURE = "0123456789ab"
# A worker that has written its record, and nothing else.
RECORDED = f"""
import sys
from pathlib import Path
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state.local import recorded_worker
with recorded_worker(SweepFolder(Path("runs").resolve(), "s"), "{SIGNATURE}"):
    print("here", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python with these words; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def records(folder: Path) -> list[Path]:
    return list((folder / "runs/sweeps/s" / WORKERS).rglob("*.json"))


def test_a_worker_is_known_by_the_record_that_it_writes_whatever_its_command_line(folder: Path, start: Start) -> None:
    source = environment(imported_source(), "")
    worker = start("-c", RECORDED, CUDA_VISIBLE_DEVICES="3", **source, **{DRIVER_VARIABLE: str(os.getpid())})
    assert workers(folder / "runs") == {SIGNATURE: Worker(worker.pid, os.getpid(), "3")}
    assert workers(folder / "other") == {}
    worker.communicate()
    assert workers(folder / "runs") == {} and records(folder) == []


def test_the_driver_of_a_worker_is_its_parent_alone(folder: Path, start: Start) -> None:
    worker = start("-c", RECORDED, **environment(imported_source(), ""), **{DRIVER_VARIABLE: "1"})
    assert workers(folder / "runs")[SIGNATURE].driver == 0
    worker.communicate()


def test_the_record_of_a_killed_worker_counts_for_nothing_and_goes(folder: Path, start: Start) -> None:
    worker = start("-c", RECORDED, **environment(imported_source(), ""))
    (path,) = records(folder)
    worker.kill()
    # Before anybody has waited for it, and after.
    time.sleep(0.1)
    assert workers(folder / "runs") == {} and not path.exists()
    worker.communicate()


def test_a_later_process_of_the_same_number_is_no_worker(folder: Path) -> None:
    with recorded_worker(SweepFolder(folder / "runs", "s"), SIGNATURE):
        (path,) = records(folder)
        value = json.loads(path.read_text())
        assert value["pid"] == os.getpid() and value["pid_start"] == process_start(os.getpid())
        assert workers(folder / "runs")[SIGNATURE].pid == os.getpid()
        for changed in ({**value, "pid_start": f"{value['pid_start']}0"}, {**value, "pid_start": ""}):
            path.write_text(json.dumps(changed))
            assert workers(folder / "runs") == {} and not path.exists()


@pytest.mark.parametrize("text", ["", "[]", '{"pid": 1}', '{"signature": "a", "pid": null, "pid_start": "x"}'])
def test_what_is_no_record_is_passed_over(folder: Path, text: str) -> None:
    with recorded_worker(SweepFolder(folder / "runs", "s"), SIGNATURE):
        (path,) = records(folder)
        path.with_name("damaged.json").write_text(text)
        assert set(workers(folder / "runs")) == {SIGNATURE}


def test_another_machines_records_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_worker(SweepFolder(folder / "runs", "s"), SIGNATURE):
        (path,) = records(folder)
        elsewhere = os.uname_result(("Linux", "elsewhere", *os.uname()[2:]))
        with monkeypatch.context() as patch:
            patch.setattr(os, "uname", lambda: elsewhere)
            assert workers(folder / "runs") == {}
        assert path.exists()


@pytest.mark.parametrize("module", ["sweeps.job", "gsq.sweeps.running.worker"])
@pytest.mark.parametrize("more", [[], ["shared"]])
def test_a_worker_without_a_record_is_known_by_its_command_line(
    folder: Path, start: Start, module: str, more: list[str]
) -> None:
    """Those of the release before the rooms became one package, and one that could not write."""
    path = folder / "old" / module.replace(".", "/")
    path.parent.mkdir(parents=True)
    for package in path.relative_to(folder / "old").parents:
        (folder / "old" / package / "__init__.py").touch()
    path.with_suffix(".py").write_text("import sys\nprint('here', flush=True)\nsys.stdin.read()\n")
    variables = {**environment(folder / "old", ""), DRIVER_VARIABLE: str(os.getpid()), "CUDA_VISIBLE_DEVICES": "1"}
    worker = start("-m", module, str(folder / "runs"), "s", str(folder / "old"), SIGNATURE, *more, **variables)
    # One that shares a SLURM job is its job's.
    expected = {} if more else {SIGNATURE: Worker(worker.pid, os.getpid(), "1")}
    assert workers(folder / "runs") == expected


def test_a_full_disk_keeps_no_worker_from_its_work(folder: Path) -> None:
    (folder / "runs").write_text("a file where a folder should be")
    with recorded_worker(SweepFolder(folder / "runs", "s"), SIGNATURE):
        assert workers(folder / "runs") == {}


@pytest.mark.parametrize("shared", [False, True])
def test_a_worker_writes_its_record_before_it_does_anything_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """One that shares a SLURM job writes none: its job is the scheduler's to know."""
    seen = []

    def work(sweep: SweepFolder, *rest: object, **more: object) -> int:
        seen.append({signature: worker.pid for signature, worker in workers(sweep.runs).items()})
        return 7

    monkeypatch.setattr(worker_module, "work", work)
    monkeypatch.setattr(worker_module, "_die_with_parent", lambda: None)
    words = [str(folder / "runs"), "s", "source", SIGNATURE, *(["shared"] if shared else [])]
    assert worker_module.main(words) == 7
    assert seen == [{} if shared else {SIGNATURE: os.getpid()}] and records(folder) == []
