"""Canaries: which cells get one, what it is, what it tells; and one sweep that really runs one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from preamble import PlanOf, WriteRun
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import read_run
from gsq.sweeps import forecast, gather, status
from gsq.sweeps.planning.cells import Cell, Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running import canary
from gsq.sweeps.running.canary import STEPS, choose, run_canaries, shortened
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.spec.cluster import Cluster

# Three sizes that ask for different memory.
WIDTHS = {"width": [16, 128, 512], "seed": [0, 1]}


pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture
def three(plan_of: PlanOf) -> Plan:
    """A sweep whose cells fall into three resource classes."""
    return plan_of(axes=WIDTHS, set={"batch_size": 64, "steps": 1000})


def test_the_largest_cell_of_each_class_gets_a_canary(three: Plan, write_run: WriteRun) -> None:
    cluster = Cluster(kind="slurm", minutes=60)
    chosen = choose(three, cluster)
    assert [c.cell.config.model.channels for c in chosen] == [16, 128, 512]
    assert [c.members for c in chosen] == [2, 2, 2]
    # With one class there is one, of the largest cell.
    (alone,) = choose(three, Cluster(kind="slurm", minutes=60, memory_gb=8))
    assert alone.cell.config.model.channels == 512 and alone.members == 6
    # What is finished, or has been timed itself, needs none.
    for cell in three.cells[4:]:
        write_run(cell, "done", 1000)
    timing = {"training_seconds": 50.0, "trained_steps": 20, "startup_seconds": 1.0}
    write_run(chosen[1].cell, "failed", 20, failure="cancelled", device="cpu", **timing)
    assert [c.cell.config.model.channels for c in choose(three, cluster)] == [16]


def test_measuring_does_not_change_the_choice(three: Plan, write_run: WriteRun) -> None:
    """The same command goes on, also where the first canary says that every cell needs more than was thought."""
    cluster = Cluster(kind="slurm", minutes=60)
    before = choose(three, cluster)
    there = SweepFolder(runs_root(), f"{three.name}-canary")
    there.write_plan(canary.canary_plan(three, before))
    timing = {"training_seconds": 900.0, "trained_steps": STEPS - 1, "startup_seconds": 1.0, "device": "cpu"}
    write_run(before[0].short, "done", STEPS, peak_memory_bytes=40 << 30, **timing)
    after = choose(three, cluster)
    assert [c.short for c in after] == [c.short for c in before]
    # But it does change what is expected.
    assert after[2].expected.memory_bytes > before[2].expected.memory_bytes + (30 << 30)


def test_a_canary_is_the_beginning_of_its_cell(plan_of: PlanOf) -> None:
    values = {"steps": 400, "evaluation.every": 10, "loss.discriminator_start": 0}
    (cell,) = plan_of(axes={"groups": [2]}, set=values).cells
    short = shortened(cell)
    assert short.signature != cell.signature and short.config.train.steps == STEPS
    assert short.config.model == cell.config.model and short.config.loss == cell.config.loss
    assert short.config.execution.keep_checkpoint and short.config.evaluation.num_images == 2
    assert short.config.evaluation.every == 0
    (few,) = plan_of(axes={"groups": [2]}, set={"steps": STEPS}).cells
    assert shortened(few) == few
    # A discriminator that comes later would not be measured; one that never comes is none of the cell's cost.
    for start, expected in ((150, 0), (400, 400), (20, 20)):
        (late,) = plan_of(axes={"groups": [2]}, set={**values, "loss.discriminator_start": start}).cells
        assert shortened(late).config.loss.discriminator_start == expected


def ended(monkeypatch: pytest.MonkeyPatch, end: Callable[[Cell], Any]) -> None:
    """Instead of a submission, ``end`` is called with each of its cells."""

    def submit(plan: Plan, cluster: Cluster, runs: Path, **options: object) -> None:
        SweepFolder(runs, plan.name).write_plan(plan)
        for cell in plan.cells:
            end(cell)

    monkeypatch.setattr(canary, "submit", submit)


def test_a_canary_out_of_memory_says_what_to_do(
    three: Plan, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def end(cell: Cell) -> None:
        width = cell.config.model.channels
        if width == 128:
            write_run(cell, "failed", 0, failure="out_of_memory", message="MemoryError", next_micro_batch=32)
            write_run(cell, "done", STEPS)
        elif width == 512:
            write_run(cell, "failed", 0, failure="out_of_memory", message="MemoryError", next_micro_batch=32)
        else:
            write_run(cell, "failed", 3, failure="diverged", message="Diverged: not finite")

    ended(monkeypatch, end)
    small, middle, large = run_canaries(three, Cluster(memory_gb=0))
    assert [r.failed for r in (small, middle, large)] == [True, False, True]
    for result in (middle, large):
        assert result.advice and "ran out of memory" in result.advice and "execution.micro_batch: 32" in result.advice
    assert large.advice and "memory_gb: more" in large.advice
    assert small.advice and "diverged: Diverged: not finite; gsq logs small-canary" in small.advice
    # The command says so, and submits nothing.
    values = {"name": three.name, "base": "cpu-tiny", "axes": WIDTHS, "set": {"batch_size": 64, "steps": 1000}}
    Path("s.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = CliRunner().invoke(app, ["submit", "s.yaml", "--canary"])
    assert done.exit_code == 1 and "nothing else was submitted" in done.stdout
    text = " ".join(done.stdout.split())
    assert "width=512 seed=0 ran out of memory" in text and "width=16 seed=0 failed as diverged" in text
    assert not (folder / "runs" / "sweeps" / three.name).exists()


TINY = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "steps": STEPS + 6,
    "image_size": 32,
    "discriminator.channels": 8,
    "discriminator.norm_groups": 4,
    "batch_size": 2,
    "loss.discriminator_start": 0,
    "evaluation.num_images": 8,
    "data.max_crop": 2.0,
}


def test_a_sweep_with_a_canary(folder: Path) -> None:
    """Its measurements are in the estimates, and the cell goes on from it."""
    Path("s.yaml").write_text(yaml.safe_dump({"base": "cpu-tiny", "set": TINY, "axes": {"groups": [1, 2]}}))
    done = CliRunner().invoke(app, ["submit", "s.yaml", "--canary"])
    assert done.exit_code == 0, done.stdout
    short = status("s-canary").cells
    assert [(c.state, c.step) for c in short] == [("done", STEPS)]
    cells = SweepFolder(folder / "runs", "s").read_plan().cells
    measured = read_run(RunFolder.of(folder / "runs", short[0].signature))
    assert measured.timed_steps == STEPS - 1 and measured.step_seconds and measured.evaluation_seconds
    assert "->" in done.stdout and "assumed for a cpu" in done.stdout and "measured on 1 run" in done.stdout
    records = {c.signature: read_run(RunFolder.of(folder / "runs", c.signature)) for c in cells}
    assert {r.state for r in records.values()} == {"done"}
    started = [c.signature for c in cells if records[c.signature].started_from]
    assert len(started) == 1 and records[started[0]].started_from == f"{short[0].signature} at step {STEPS}"
    # What was recorded at the submission is what the canary made of it.
    recorded = json.loads((folder / "runs/sweeps/s/estimates.json").read_text())["cells"]
    assert measured.startup_seconds is not None
    trained = measured.startup_seconds + (STEPS + 6) * measured.step_seconds
    for cell in cells:
        assert 0.9 * trained < recorded[cell.signature]["seconds"] < 1.1 * trained + 4 * measured.evaluation_seconds
    found = forecast(SweepFolder(folder / "runs", "s").read_plan())
    # The cell that began with another's checkpoint says nothing of its own estimate.
    assert found.accuracy is not None and found.accuracy.cells == 1 and found.accuracy.median_factor < 10
    frame = read_table(gather("s"))
    assert set(frame["state"]) == {"done"} and frame["source"].nunique() == 1
    # Once more: nothing is left to do, not even a canary.
    again = CliRunner().invoke(app, ["submit", "s.yaml", "--canary"])
    assert again.exit_code == 0 and "2 already done, 0 to run" in again.stdout and "canaries" not in again.stdout
