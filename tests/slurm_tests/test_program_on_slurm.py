"""A training program of one's own on a real cluster: killed, requeued, resumed, and equal to a local run."""

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
from gsq.templates.write import write_part

SWEEP = """\
name: lm
program: "my_train:train"
base: {{text: "{text}", seed: 0, steps: 400}}
axes: {{width: [4, 8]}}
columns: {{parameters: 32 * width**2 + 1284 * width + 256, tokens: 16 * steps}}
"""


def gsq(*words: str, folder: Path) -> str:
    """What the command prints; fails the test where it fails."""
    command = [str(Path(sys.executable).with_name("gsq")), *words]
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def science(folder: Path) -> pd.DataFrame:
    table = read_table(folder / "results/lm.parquet")
    assert table["state"].tolist() == ["done", "done"]
    return table[[*SCIENCE_COLUMNS, "loss", "parts"]].sort_values("signature").reset_index(drop=True)


def test_a_program_survives_a_kill_on_slurm_and_equals_the_local_queue(slurm: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be, that is the question\n" * 40)
    there, here = tmp_path / "slurm", tmp_path / "local"
    for folder in (there, here):
        folder.mkdir()
        write_part("program", folder / "my_train.py")
        (folder / "lm.yaml").write_text(SWEEP.format(text=text))
    # Long enough to be killed in the middle.
    logs = "        run.log(step, train_loss=loss.item())\n"
    for program in (there / "my_train.py", here / "my_train.py"):
        assert logs in program.read_text()
        program.write_text(program.read_text().replace(logs, f'{logs}        __import__("time").sleep(0.01)\n'))
    gsq("submit", "lm.yaml", "--cluster", "slurm", folder=there)

    def saved() -> list[dict[str, Any]]:
        """Running cells that have saved."""
        cells = json.loads(gsq("status", "lm", "--json", folder=there))["cells"]
        return [cell for cell in cells if cell["state"] == "running" and 51 <= cell["step"] <= 300]

    killed = slurm.wait(saved, 60, every=0.1)[0]
    attempt = RunFolder.of(there / "runs", killed["signature"]).path / "attempts/1"
    os.kill(read_json(attempt / "status.json")["pid"], signal.SIGKILL)
    slurm.scontrol("requeue", killed["job"])

    def ended() -> bool:
        counts = json.loads(gsq("status", "lm", "--json", folder=there))["counts"]
        return bool(counts["done"] == 2)

    slurm.wait(ended, 90, every=0.5)
    gsq("gather", "lm", folder=there)
    table = read_table(there / "results/lm.parquet")
    assert table.set_index("signature")["attempts"][killed["signature"]] == 2
    gsq("run", "lm.yaml", folder=here)
    pd.testing.assert_frame_equal(science(there), science(here))
