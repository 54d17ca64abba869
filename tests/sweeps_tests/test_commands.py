"""How SLURM's commands are run: time limits, environment, and the words of a failure."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gsq.sweeps.state.commands import Answer, clean_environment, run


@pytest.fixture
def program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command `squeue` to be written, alone on the PATH with the system's own."""
    path = folder / "bin" / "squeue"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return path


def write(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_an_answer(program: Path) -> None:
    write(program, 'echo "$*"; echo two; echo a greeting >&2')
    answer = run("squeue", "-h", "-o", "%i")
    assert (answer.ok, answer.lines, answer.problem) == (True, ["-h -o %i", "two"], "")
    assert answer.errors == "a greeting\n"


def test_a_failure_has_all_the_words_and_no_lines(program: Path) -> None:
    write(program, "echo partial; echo welcome to the cluster >&2; echo 'slurm_load_jobs error: timed out' >&2; exit 3")
    answer = run("squeue")
    assert not answer.ok and answer.code == 3 and answer.lines == []
    assert answer.problem == "squeue: welcome to the cluster; slurm_load_jobs error: timed out; partial"
    write(program, "exit 1")
    assert "exit code 1" in run("squeue").problem


def test_a_command_that_is_not_there_or_cannot_run(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(program.parent))
    assert run("squeue") == Answer("squeue") and "not found on the PATH" in run("squeue").problem
    program.write_text("no program")
    assert not run("squeue").ok


@pytest.mark.parametrize(
    "body", ["exec sleep 100", "sleep 100", "sleep 100 & wait", "trap '' TERM; sleep 100; sleep 100"]
)
def test_a_command_that_hangs_is_killed_with_all_that_it_started(program: Path, body: str) -> None:
    """A site's command may be a script, whose children hold the pipes open."""
    write(program, f"echo $$ > {program}.pid; {body}")
    began = time.monotonic()
    answer = run("squeue", seconds=0.5)
    assert time.monotonic() - began < 5
    assert answer.timed_out and not answer.ok and "did not answer within 0.5 s" in answer.problem
    group = int(Path(f"{program}.pid").read_text())
    deadline = time.monotonic() + 5
    while any(_group(int(p.name)) == group for p in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _group(pid: int) -> int:
    """Process group of a process that runs; 0 for one that has ended."""
    try:
        state, _, group, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if state in "ZX" else int(group)


def test_every_command_of_slurm_has_a_limit() -> None:
    from gsq.sweeps.state.commands import DEFAULT_LIMIT, LIMITS

    assert {"scontrol", "squeue", "sacct", "scancel", "sbatch"} <= LIMITS.keys()
    assert all(0 < limit <= 120 for limit in (*LIMITS.values(), DEFAULT_LIMIT))


USERS = "SQUEUE_STATES SQUEUE_FORMAT SQUEUE_PARTITION SACCT_FORMAT SACCT_FEDERATION SCANCEL_INTERACTIVE SCANCEL_STATE"


@pytest.mark.parametrize("name", [*USERS.split(), "SLURM_TIME_FORMAT"])
def test_a_users_own_filters_and_formats_are_not_handed_on(
    program: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "RUNNING")
    write(program, "env")
    assert not any(line.startswith(f"{name}=") for line in run("squeue").lines)
    # But which cluster is asked is the user's to say.
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    monkeypatch.setenv("SLURM_BITSTR_LEN", "64")
    lines = run("squeue").lines
    assert {"SLURM_CONF=/etc/mine.conf", "SLURM_CLUSTERS=other", "SLURM_BITSTR_LEN=0"} <= set(lines)
    assert os.environ[name] == "RUNNING" and name not in clean_environment()
    assert run("squeue", environment={"PATH": os.environ["PATH"], "A": "b"}).lines.count("A=b") == 1
