"""Cells that one job trains in turn on a real cluster: killed, cancelled, preempted, and equal to a local run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gsq.files import read_json
from gsq.records.folder import RunFolder
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table

pytestmark = pytest.mark.usefixtures("no_inherited_job")

STEPS = 60
SWEEP = f"""\
name: turns
base: cpu-tiny
set:
  steps: {STEPS}
  batch_size: 4
  model: {{channels: 8, norm_groups: 4}}
  loss: {{perceptual: none, discriminator_start: 10}}
  evaluation: {{num_images: 8}}
  execution: {{checkpoint_every: 4, log_every: 1}}
axes: {{seed: {{range: [0, 5]}}}}
"""
CLUSTER = "kind: slurm\npartition: test\nminutes: 10\nmemory_gb: 2\ncells_in_turn: 3\n"


def gsq(*words: str, folder: Path) -> str:
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gsq.cli", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads(gsq("status", "turns", "--json", folder=folder))["cells"])


def science(folder: Path) -> pd.DataFrame:
    gsq("gather", "turns", folder=folder)
    table = read_table(folder / "results" / "turns.parquet")
    return table[list(SCIENCE_COLUMNS)].sort_values("signature").reset_index(drop=True)


def test_cells_in_turn_survive_what_happens_to_one_of_them(slurm: Any, tmp_path: Path) -> None:
    """Two jobs of three cells. In one the first cell is killed and the last cancelled while it waits; the other is
    preempted in its second cell. One more submission trains what is left, and nothing twice."""
    there, here = tmp_path / "slurm", tmp_path / "local"
    for folder in (there, here):
        folder.mkdir()
        (folder / "sweep.yaml").write_text(SWEEP)
        (folder / "mine.yaml").write_text(CLUSTER)
    assert "2 tasks of up to 3" in gsq("submit", "sweep.yaml", "--cluster", "mine.yaml", folder=there)
    signatures = [cell["signature"] for cell in cells(there)]

    def training(number: int) -> dict[str, Any] | None:
        """The attempt of a cell in the middle of its training."""
        found = read_json(RunFolder.of(there / "runs", signatures[number]).path / "attempts/1/status.json") or {}
        return found if found.get("state") == "running" and 5 <= found["step"] <= STEPS - 20 else None

    first = slurm.wait(lambda: training(0), 180, every=0.02)
    os.kill(first["pid"], signal.SIGKILL)
    gsq("cancel", "turns", signatures[2], folder=there)
    second = slurm.wait(lambda: training(4), 180, every=0.02)
    slurm.run("scancel", "--signal=USR2", second["job"])
    slurm.wait(lambda: not slurm.squeue(), 240, every=0.5)
    found = {cell["signature"]: (cell["state"], cell["failure"], cell["attempts"]) for cell in cells(there)}
    assert [found[signature] for signature in signatures] == [
        ("failed", "lost", 1),
        ("done", None, 1),
        ("failed", "cancelled", 0),
        ("done", None, 1),
        ("done", None, 2),
        ("done", None, 1),
    ]
    run = RunFolder.of(there / "runs", signatures[4]).path / "attempts"
    stopped = read_json(run / "1" / "status.json")
    assert stopped["failure"] == "preempted"
    assert json.loads((run / "2" / "metrics.jsonl").read_text().splitlines()[0])["step"] == stopped["step"] + 1

    assert "2 cells" in gsq("submit", "sweep.yaml", "--cluster", "mine.yaml", folder=there)
    slurm.wait(lambda: not slurm.squeue(), 180, every=0.5)
    attempts = [cell["attempts"] for cell in cells(there)]
    assert attempts == [2, 1, 1, 1, 2, 1] and {cell["state"] for cell in cells(there)} == {"done"}
    gsq("submit", "sweep.yaml", folder=here)
    pd.testing.assert_frame_equal(science(there), science(here), check_exact=True)
