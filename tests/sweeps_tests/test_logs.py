"""What a cell printed, also where its job ended before Python started."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state import journal
from gsq.sweeps.state.logs import read_log


@pytest.fixture
def plan(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> Plan:
    made = plan_of(axes={"seed": [0]})
    SweepFolder(runs_root(), made.name).write_plan(made)
    monkeypatch.setattr("gsq.sweeps.state.status.slurm_jobs", lambda folder: {})
    return made


@pytest.fixture
def output(plan: Plan, handed_over: Callable[..., journal.Entry]) -> Path:
    return handed_over(plan.name, plan.cells).path / "7_0_0_log.out"


def shown(plan: Plan, attempt: int | None = None) -> Any:
    return read_log(plan.name, plan.cells[0].signature, attempt)


def stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@pytest.mark.parametrize(
    "text",
    ["", "\n", "slurmstepd: error: execve(): /sw/python: No such file\n", "--- gsq job started 2026-01-01 00:00:00\n"],
)
def test_a_job_that_ended_before_python_shows_what_there_is(plan: Plan, output: Path, text: str) -> None:
    output.write_text(text)
    found = shown(plan)
    assert found.attempt == 0 and found.text.strip() == text.strip()


def test_what_slurm_said_before_the_first_start_belongs_to_it(plan: Plan, output: Path) -> None:
    output.write_text("module: not found\n--- gsq job started 2026-01-01 00:00:00\nTraceback\n")
    assert shown(plan).text.startswith("module: not found") and "Traceback" in shown(plan).text


def test_attempts_are_told_apart_by_the_scripts_line_or_by_submitits(
    plan: Plan, output: Path, write_run: Callable[..., RunFolder]
) -> None:
    begun = time.time() - 100
    write_run(plan.cells[0], "failed", 1, heartbeat=begun + 5, failure="preempted")
    write_run(plan.cells[0], "failed", 2, heartbeat=begun + 15, failure="preempted")
    submitit = "submitit INFO ({},123) - Starting with JobEnvironment\n"
    old = f"{submitit.format(stamp(begun))}one\n{submitit.format(stamp(begun + 10))}two\n"
    output.write_text(old)
    assert "one" in shown(plan, 1).text and "two" in shown(plan, 2).text and "one" not in shown(plan, 2).text
    marked = [f"--- gsq job started {stamp(t)}\nloading\n{submitit.format(stamp(t))}" for t in (begun, begun + 10)]
    output.write_text(f"{marked[0]}one\n{marked[1]}two\n")
    assert shown(plan, 1).text.count("loading") == 1 and "one" in shown(plan, 1).text
    assert shown(plan, 2).text.count("loading") == 1 and "two" in shown(plan, 2).text
    assert shown(plan).text == shown(plan, 2).text


def test_a_later_start_without_an_attempt_is_what_one_wants_to_see(
    plan: Plan, output: Path, write_run: Callable[..., RunFolder]
) -> None:
    begun = time.time() - 100
    write_run(plan.cells[0], "failed", 1, heartbeat=begun + 5, failure="preempted")
    output.write_text(
        f"--- gsq job started {stamp(begun)}\none\n--- gsq job started {stamp(begun + 50)}\npython: not found\n"
    )
    found = shown(plan)
    assert found.attempt == 0 and "python: not found" in found.text and "one" not in found.text
    assert "one" in shown(plan, 1).text
