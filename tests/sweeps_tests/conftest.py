"""Each test has an empty working folder and runs folder of its own; run folders can be made by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gsq.record import RunFolder
from sweeps import journal
from sweeps.folder import SweepFolder
from sweeps.planning import Cell, Plan, make_plan
from sweeps.spec import load_spec


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
        from gsq.record import Attempt, write_json

        run = RunFolder.of(folder / "runs", cell.signature)
        attempt = run.new_attempt()
        if heartbeat is not None:
            attempt = Attempt(attempt.path, attempt.number, clock=lambda: heartbeat, started=heartbeat - 1)
            # By another process than this one, which is alive.
            more = {"pid_start": "", **more}
        if state is not None:
            attempt.write_status(state, step, cell.config.train.steps, **more)
        for evaluation in evaluations:
            attempt.write_evaluation(evaluation["protocol"], evaluation["step"], evaluation)
        if environment is not None:
            write_json(attempt.path / "env.json", environment)
        return run

    return write
