"""What is told of a job that left no word of its own: class, exit code, last line of its log."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import read_run
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state.deaths import FAILED_SOMEHOW, described, failure_of, last_line, note_worker_death

BEGAN = "submitit INFO (2026-01-02 03:04:05,678) - Starting with JobEnvironment(job_id=5)\n"
STARTED = "--- gsq job started 2026-01-02 03:04:05\n"
EXITED = "srun: error: n1: task 0: Exited with exit code 1\n"
AWAY = (
    "srun: error: Task launch for StepId=26.0 failed on node n1: Zero Bytes were transmitted or received\n"
    "srun: error: Application launch failed: Zero Bytes were transmitted or received\nsrun: Job step aborted\n"
)
KILLED = "srun: error: n1: task 0: Killed\n"


@pytest.mark.parametrize(
    ("exit_code", "text", "failure"),
    [
        # It failed by itself, before Python or in it.
        ("3:0", "slurm_script: line 17: module: command not found\n", "error"),
        ("1:0", f"{BEGAN}submitit ERROR - ImportError: no torch\n", "error"),
        ("1:0", "", "error"),
        ("0:53", None, "error"),
        ("11:0", "srun: error: n2: task 0: Segmentation fault\n", "error"),
        ("139:0", "", "error"),
        ("0:11", BEGAN, "error"),
        ("9:0", "exit 9 of a setup\n", "error"),
        # So full a disk that the run could not say so in its folder.
        ("1:0", f"{BEGAN}OSError: [Errno 28] No space left on device\n{EXITED}", "disk_full"),
        (FAILED_SOMEHOW, "cp: cannot create 'data': Disk quota exceeded\n", "disk_full"),
        ("0:9", f"{BEGAN}No space left on device\n", "lost"),
        # Somebody killed it.
        ("0:9", "", "lost"),
        ("0:15", BEGAN, "lost"),
        ("137:0", "", "lost"),
        ("143:0", "", "lost"),
        ("9:0", BEGAN + KILLED, "lost"),
        ("15:0", "slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-01-02T03:04:05 ***\n", "lost"),
        # The node's slurmd died as srun launched the step.
        ("13:0", AWAY, "lost"),
        (FAILED_SOMEHOW, AWAY, "lost"),
        ("3:0", f"{AWAY}{STARTED}no such module\n", "error"),
        ("2:0", "srun: error: Application launch failed: Invalid argument\n", "error"),
        # Told to stop before it could listen, as on preemption.
        ("0:12", "", "lost"),
        ("140:0", "", "lost"),
        ("12:0", "srun: error: n1: task 0: User defined signal 2\n", "lost"),
        # That it failed is known before its exit code.
        (FAILED_SOMEHOW, "", "error"),
        (FAILED_SOMEHOW, BEGAN + KILLED, "lost"),
        # How it ended is not known, or it ended well: then it counts whether Python began.
        (None, "conda: no such environment\n", "error"),
        ("0:0", "conda: no such environment\n", "error"),
        (None, BEGAN, "lost"),
        ("0:0", BEGAN, "lost"),
        (None, "", "lost"),
        (None, None, "lost"),
        # SLURM has started it again: its last start counts.
        (None, f"{STARTED}{BEGAN}{STARTED}conda: no such environment\n", "error"),
        (None, f"{STARTED}conda: no such environment\n{STARTED}{BEGAN}", "lost"),
        (None, "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-02T03:04:05 DUE TO NODE FAILURE ***\n", "lost"),
    ],
)
def test_the_class_of_a_death(folder: Path, exit_code: str | None, text: str | None, failure: str) -> None:
    log = folder / "5_0_0_log.out"
    if text is not None:
        log.write_text(text)
    assert failure_of(exit_code, log) == failure
    if not text:
        assert failure_of(exit_code, None) == failure


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", ""),
        (b"one\ntwo\n\n  \n", "two"),
        (b"module: command not found\nsrun: error: n1: task 0: Exited with exit code 1\n", "module: command not found"),
        (b"why\nsrun: error: n[1-2]: tasks 0-3: Exited with exit code 1\nsrun: Terminating StepId=5.0\n", "why"),
        # SLURM's own reason is one.
        (b"srun: error: execve(): python: No such file\n", "srun: error: execve(): python: No such file"),
        (b"srun: error: n1: task 0: Killed\n", "srun: error: n1: task 0: Killed"),
        (
            b"ModuleNotFoundError: x\n\nCurrent thread 0x7f (most recent call first):\n  <no Python frame>\n",
            "ModuleNotFoundError: x",
        ),
        (b"10 %\r50 %\r90 %\r\n", "90 %"),
        (b"windows\r\n", "windows"),
        (b"caf\xe9\n", "caf\ufffd"),
        (b"before\n--- gsq worker started 2026-01-02 03:04:05\n", ""),
        (b"before\n--- gsq job started 2026-01-02 03:04:05\nafter\n", "after"),
        (b"x" * 100_000 + b"\nlast\n", "last"),
    ],
)
def test_the_last_line_that_says_something(folder: Path, text: bytes, line: str) -> None:
    log = folder / "log"
    log.write_bytes(text)
    assert last_line(log) == line


def test_how_it_is_said(folder: Path) -> None:
    log = folder / "log"
    log.write_text("no such module\n")
    assert described("3:0", log) == (" with exit code 3", ": no such module")
    assert described("0:11", log)[0] == " by signal 11"
    assert described(None, log) == ("", ": no such module")
    assert described(None, None) == ("", "") and described(FAILED_SOMEHOW, None) == ("", "")
    # SLURM's sign that it could not open the log, which the user cannot know.
    how, why = described("0:53", folder / "not-there")
    assert "53" in how and "not-there" in why and "nodes" in why
    log.write_text("y" * 5000)
    assert len(described("1:0", log)[1]) < 400


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        *((code, "error") for code in (1, 2, 120, -signal.SIGSEGV, -signal.SIGABRT)),
        *((-number, "lost") for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)),
    ],
)
def test_a_worker_that_ended_before_it_wrote_anything_is_a_failed_attempt(
    plan_of: Callable[..., Plan], code: int, failure: str
) -> None:
    plan = plan_of(axes={"groups": [1]})
    sweep, signature = SweepFolder(runs_root(), plan.name), plan.cells[0].signature
    sweep.write_plan(plan)
    sweep.log(signature).parent.mkdir(parents=True)
    sweep.log(signature).write_text("--- gsq worker started 2026-01-02 03:04:05\nFatal Python error: no encodings\n")
    note_worker_death(sweep, signature, code)
    record = read_run(RunFolder.of(sweep.runs, signature))
    assert (record.state, record.failure, record.attempts, record.step) == ("failed", failure, 1, 0)
    assert record.steps == plan.cells[0].config.train.steps
    assert str(abs(code)) in str(record.message) and "no encodings" in str(record.message)
