"""Three training lengths that share a trunk on a real cluster: their order, and the rows of runs trained alone."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
from test_sweep_on_slurm import gsq, sorted_science

from gsq import override, train
from gsq.files import read_json
from gsq.records.folder import RunFolder
from gsq.records.read import read_run
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.tables.gather import gather

SWEEP = """\
name: horizons
base: cpu-tiny
set:
  loss.discriminator_start: 20
  evaluation.num_images: 24
  optimizer: {schedule: wsd, decay_share: 0.5, warmup_steps: 4}
  execution: {checkpoint_every: 5, log_every: 1}
axes:
  steps: [12, 100, 110]
"""


def test_rows_are_those_of_runs_trained_alone(slurm: Any, tmp_path: Path) -> None:
    """After all at once; then one without its trunk's checkpoint, and one whose job is killed in its cool-down."""
    (tmp_path / "horizons.yaml").write_text(SWEEP)
    runs, other = tmp_path / "runs", tmp_path / "alone"
    plan = make_plan(load_spec(str(tmp_path / "horizons.yaml")))
    short, middle, longest = (RunFolder.of(runs, cell.signature) for cell in plan.cells)
    SweepFolder(other, plan.name).write_plan(plan)
    for cell in plan.cells:
        train(override(cell.config, {"execution.keep_at": ()}), other)
    expected = sorted_science(gather(SweepFolder(other, plan.name), tmp_path / "alone.parquet"))

    def submit() -> None:
        gsq("submit", "horizons.yaml", "--cluster", "slurm", folder=tmp_path)

    def finish() -> None:
        slurm.wait(lambda: all(read_run(run).state == "done" for run in (short, middle, longest)), 240, every=0.5)
        gsq("gather", "horizons", folder=tmp_path)
        found = sorted_science(tmp_path / "results" / "horizons.parquet")
        pd.testing.assert_frame_equal(found, expected, check_exact=True)

    submit()
    finish()
    assert read_run(short).started_from == f"{longest.signature} at step 6"
    assert read_run(middle).started_from == f"{longest.signature} at step 50"
    for run in (short, middle):
        shutil.rmtree(run.path)
    (gone,) = longest.path.glob("attempts/*/checkpoint-00000006.pt")
    gone.unlink()
    submit()
    slurm.wait(lambda: any(middle.path.glob("attempts/1/checkpoint-*.json")), 120, every=0.05)
    status = read_json(middle.path / "attempts" / "1" / "status.json")
    os.kill(status["pid"], signal.SIGKILL)
    # Submitting again, rather than requeueing, saves the two minutes that SLURM holds a requeued job.
    slurm.wait(lambda: status["job"] not in slurm.squeue(), 60)
    submit()
    finish()
    assert read_run(short).started_from is None
    assert (read_run(middle).attempts, read_run(middle).started_from) == (2, f"{longest.signature} at step 50")
