"""Sixty faults on a sweep of twelve cells, and the driver killed at every step of a submission; see faults.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _cluster_of_cluster_py(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if slurm.conf is None or not slurm.ours:
        pytest.skip("kills daemons: only on a cluster that cluster.py started")
    for name in [n for n in os.environ if n.startswith("SLURM_") and n != "SLURM_CONF"]:
        monkeypatch.delenv(name)


def run(program: str, *words: str, seconds: float) -> str:
    """What a program of this folder prints; fails the test with it where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / program), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1800)
def test_a_sweep_survives_sixty_faults(tmp_path: Path) -> None:
    """Every fault kind at least once, one gsq retry; nothing lost, doubled or changed."""
    printed = run("faults.py", "--faults", "60", "--seed", "1", "--dir", str(tmp_path / "faults"), seconds=1800)
    (total,) = [line for line in printed.splitlines() if line.startswith("| all |")]
    assert int(total.split("|")[2]) >= 60
    kinds = {line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")}
    assert kinds >= {"squeue_silent", "controller_away", "ids_reused", "dies_before_python"}


@pytest.mark.timeout(1200)
def test_cells_in_turn_survive_faults(tmp_path: Path) -> None:
    """What hits a cell leaves the others of its job, and what ends the job gives back those that it did not come to."""
    words = ("--faults", "20", "--seed", "5", "--in-turn", "3", "--dir", str(tmp_path / "faults"))
    printed = run("faults.py", *words, seconds=1200)
    (total,) = [line for line in printed.splitlines() if line.startswith("| all |")]
    assert int(total.split("|")[2]) >= 20


@pytest.mark.timeout(600)
def test_a_driver_killed_at_every_step_of_a_submission_loses_and_doubles_nothing(tmp_path: Path) -> None:
    printed = run("killed_drivers.py", "--dir", str(tmp_path / "killed"), seconds=600)
    found = json.loads(printed.splitlines()[-1])
    assert found["problems"] == [] and found["killed"] >= 30, found
