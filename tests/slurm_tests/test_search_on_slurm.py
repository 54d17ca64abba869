"""A search on a real two-node cluster: pass by pass, and equal to the one of the local queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna

from gsq import sweeps

SEARCH = """\
name: found
base: cpu-tiny
set:
  model: {channels: 8, norm_groups: 4}
  steps: 20
  batch_size: 2
  evaluation: {num_images: 8, every: 10}
  execution: {checkpoint_every: 5, log_every: 1}
search:
  trials: 3
  parallel: 2
  sampler: random
  pruner: {threshold: {upper: 1.0e9}}
  space:
    learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
    groups: {choice: [1, 2]}
"""


def gsq(*words: str, folder: Path) -> str:
    """What the command prints; fails the test where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "gsq.cli", *words],
        cwd=folder,
        env={**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state.name, t.params, t.intermediate_values, t.value) for t in study.trials]


def test_a_search_goes_on_pass_by_pass_and_equals_the_local_one(slurm: Any, tmp_path: Path) -> None:
    studies = []
    for cluster in ("slurm", "local"):
        folder = tmp_path / cluster
        folder.mkdir()
        (folder / "found.yaml").write_text(SEARCH)
        if cluster == "slurm":
            told = gsq("submit", "found.yaml", "--cluster", "slurm", folder=folder)
            assert "submitted SLURM job" in told and "search: 2 of 3 trials (2 running)" in told
        told = gsq("run", "found.yaml", "--cluster", cluster, folder=folder)
        assert "search: 3 of 3 trials (3 complete)" in told and "best: trial" in told
        found = json.loads(gsq("status", "found", "--json", folder=folder))
        assert found["counts"]["done"] == 3 and found["search"]["counts"]["complete"] == 3
        assert [cell["attempts"] for cell in found["cells"]] == [1, 1, 1]
        assert sorted(cell["trials"] for cell in found["cells"]) == [[0], [1], [2]]
        assert (folder / "results" / "found.parquet").is_file()
        studies.append(sweeps.search("found", runs=folder / "runs"))
    assert results(studies[0]) == results(studies[1])
    assert all(list(trial.intermediate_values) == [10] for trial in studies[0].trials)
