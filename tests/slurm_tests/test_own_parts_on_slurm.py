"""Parts of a user's own on a real cluster: requeued, and equal to the local queue; their modules are on no node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from gsq.files import read_json
from gsq.records.folder import RunFolder
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table
from gsq.templates.write import KINDS, write_part

STEPS = 300
SWEEP = """\
name: own
base: cpu-tiny
set:
  steps: {steps}
  batch_size: 4
  codebook_size: 16
  {settings}
  loss.discriminator_start: 10
  evaluation: {{num_images: 60}}
  execution: {{checkpoint_every: 5, log_every: 1}}
axes:
  quantizer.options.temperature: [0.5, 1]
"""


def gsq(*words: str, folder: Path) -> str:
    """What the command prints; fails the test where it fails."""
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("gsq")), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gsq("status", "own", "--json", folder=folder))["cells"]
    return found


def science(path: Path) -> pd.DataFrame:
    return read_table(path)[[*SCIENCE_COLUMNS, "parts", "largest_error"]].sort_values("signature", ignore_index=True)


def test_own_parts_go_through_a_kill_and_a_requeue(slurm: Any, tmp_path: Path) -> None:
    there, here = tmp_path / "slurm", tmp_path / "local"
    for folder in (there, here):
        folder.mkdir()
        settings = [write_part(kind, folder / f"my_{kind}.py")[2] for kind in KINDS]
        (folder / "own.yaml").write_text(SWEEP.format(steps=STEPS, settings="\n  ".join(settings)))
    gsq("submit", "own.yaml", "--cluster", "slurm", folder=there)
    # Jobs run the copies that the sweep took: what is edited or removed here does not reach them.
    for kind in KINDS:
        (there / f"my_{kind}.py").write_text("raise RuntimeError('a job must not import this')\n")

    def running() -> list[dict[str, Any]]:
        return [c for c in cells(there) if c["state"] == "running" and 6 <= c["step"] <= STEPS - 60]

    killed = slurm.wait(running, 120, every=0.1)[0]
    first = RunFolder.of(there / "runs", killed["signature"]).path / "attempts" / "1" / "status.json"
    os.kill(read_json(first)["pid"], signal.SIGKILL)
    slurm.scontrol("requeue", killed["job"])
    slurm.wait(lambda: all(c["state"] == "done" for c in cells(there)), 240, every=1)
    assert {c["signature"]: c["attempts"] for c in cells(there)}[killed["signature"]] == 2
    for kind in KINDS:
        (there / f"my_{kind}.py").unlink()
    gsq("gather", "own", folder=there)
    gsq("run", "own.yaml", folder=here)
    remote, local = (science(folder / "results" / "own.parquet") for folder in (there, here))
    assert len(remote) == 2
    pd.testing.assert_frame_equal(remote, local, check_exact=True)
