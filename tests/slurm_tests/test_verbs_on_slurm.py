"""cancel, logs and retry of jobs on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gsq.files import read_json
from gsq.records.folder import RunFolder
from gsq.sweeps.schema.columns import read_table

pytestmark = pytest.mark.usefixtures("no_inherited_job")

STEPS = 150
SWEEP = f"""\
name: verbs
base: cpu-tiny
set:
  steps: {STEPS}
  loss.discriminator_start: 0
  evaluation.num_images: 8
  execution: {{checkpoint_every: 50, log_every: 1}}
axes:
  groups: [1, 4]
"""
# One job at a time, so that the other one waits.
CLUSTER = "kind: slurm\nparallel: 1\nminutes: 10\nmemory_gb: 2\n"


def gsq(*words: str, folder: Path, patience: float = 300) -> str:
    """What the command prints; fails the test where it fails, or takes longer than ``patience`` seconds."""
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("gsq")), *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=patience, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(folder: Path) -> list[dict[str, Any]]:
    return json.loads(gsq("status", "verbs", "--json", folder=folder))["cells"]


def test_a_running_and_a_waiting_job_are_cancelled_and_come_back(slurm: Any, tmp_path: Path) -> None:
    (tmp_path / "verbs.yaml").write_text(SWEEP)
    (tmp_path / "mine.yaml").write_text(CLUSTER)
    gsq("submit", "verbs.yaml", "--cluster", "mine.yaml", folder=tmp_path)
    both = {cell["signature"] for cell in cells(tmp_path)}
    running = slurm.wait(
        lambda: [c for c in cells(tmp_path) if c["state"] == "running" and c["step"] >= 10], 60, every=0.2
    )[0]["signature"]
    (waiting,) = both - {running}
    assert next(c["state"] for c in cells(tmp_path) if c["signature"] == waiting) == "queued"
    logged = gsq("logs", "verbs", running[:8], folder=tmp_path).splitlines()
    assert "attempt 1 of 1, running" in logged[0]
    assert any("submitit INFO" in line and "Starting with" in line for line in logged)

    done = json.loads(gsq("cancel", "verbs", "queued", "running", "--json", folder=tmp_path))
    assert (done["waiting"], done["running"]) == ([waiting], [running])
    slurm.wait(lambda: all(c["state"] == "failed" for c in cells(tmp_path)), 90, every=0.5)
    found = {c["signature"]: c for c in cells(tmp_path)}
    assert {c["failure"] for c in found.values()} == {"cancelled"}, found
    # The one that ran said so itself, and wrote a checkpoint between those that were due.
    attempt = RunFolder.of(tmp_path / "runs", running).path / "attempts" / "1"
    status = read_json(attempt / "status.json")
    assert (status["state"], status["failure"]) == ("failed", "cancelled")
    stopped = status["step"]
    assert 10 <= stopped < STEPS and (attempt / f"checkpoint-{stopped:08d}.json").exists()
    assert found[waiting]["attempts"] == 0
    # It requeued nothing.
    assert not slurm.squeue().keys() & {c["job"] for c in found.values()}

    printed = gsq("retry", "verbs", "cancelled", "--cluster", "slurm", folder=tmp_path)
    assert printed.splitlines()[-1].endswith(": 2 cells")
    assert "nothing to retry" in gsq("retry", "verbs", folder=tmp_path)
    slurm.wait(lambda: all(c["state"] == "done" for c in cells(tmp_path)), 240, every=1)
    second_attempt = (attempt.parent / "2" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(second_attempt[0])["step"] == stopped + 1
    assert "attempt 1 of 2, stopped" in gsq("logs", "verbs", running, "--attempt", "1", folder=tmp_path)

    # Finished runs are evaluated again by jobs, and what waits is not submitted twice.
    words = ["evaluate", "verbs", "--num-images", "12", "--cluster", "mine.yaml", "--json"]
    first = json.loads(gsq(*words, folder=tmp_path))
    (signatures,) = first["arrays"].values()
    assert set(signatures) == both and first["new"] == [] and first["failed"] == {}
    second = json.loads(gsq(*words, folder=tmp_path))
    assert second["arrays"] == {} and second["waiting"] <= 2 and second["ended"] == []
    slurm.wait(lambda: not slurm.squeue(), 120, every=1)
    third = json.loads(gsq(*words, folder=tmp_path))
    assert (third["arrays"], third["waiting"], third["finished"]) == ({}, 0, 2)
    # Here, nothing is left to do.
    assert json.loads(gsq(*words[:4], "--json", folder=tmp_path))["new"] == []
    frame = read_table(Path(tmp_path / gsq("gather", "verbs", folder=tmp_path).split()[1]))
    assert sorted(frame["num_images"]) == [8, 8, 12, 12]
    assert frame.loc[frame["num_images"] == 12, "evaluated_by"].notna().all()


def test_an_edited_sweep_file_is_evaluated_by_jobs_without_training(slurm: Any, tmp_path: Path) -> None:
    short = SWEEP.replace(f"steps: {STEPS}", "steps: 2").replace("name: verbs", "name: edited")
    (tmp_path / "edited.yaml").write_text(short)
    (tmp_path / "mine.yaml").write_text(CLUSTER.replace("parallel: 1", "parallel: 2"))
    gsq("run", "edited.yaml", "--cluster", "mine.yaml", folder=tmp_path, patience=400)
    (tmp_path / "edited.yaml").write_text(short.replace("num_images: 8", "num_images: 12"))

    def to_evaluate() -> int:
        planned = json.loads(gsq("plan", "edited.yaml", "--cluster", "mine.yaml", "--json", folder=tmp_path))
        assert planned["forecast"]["to_run"] == 0
        return int(planned["forecast"]["to_evaluate"])

    assert to_evaluate() == 2
    said = gsq("submit", "edited.yaml", "--cluster", "mine.yaml", folder=tmp_path)
    assert "2 finished cells to evaluate" in said
    # What waits is not submitted twice; gsq run waits for it, and draws what the file asks for.
    again = gsq("submit", "edited.yaml", "--cluster", "mine.yaml", folder=tmp_path)
    assert "submitted SLURM job" not in again
    said = gsq("run", "edited.yaml", "--cluster", "mine.yaml", folder=tmp_path, patience=400)
    assert "over 12 images" in said and "over 8 images" not in said
    assert to_evaluate() == 0
    frame = read_table(tmp_path / "results" / "edited.parquet")
    assert sorted(zip(frame["num_images"], frame["asked"], strict=True)) == [(8, False)] * 2 + [(12, True)] * 2
    assert set(frame["attempts"]) == {1}
