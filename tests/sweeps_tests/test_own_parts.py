"""A sweep of parts of one's own, in a folder outside the repository: planned, trained, killed, resumed, gathered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from gsq.config.parts import TAKEN
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, describe, read_table
from gsq.templates.write import KINDS, write_part

GSQ = str(Path(sys.executable).with_name("gsq"))
SWEEP = """\
name: own
base: cpu-tiny
set:
  steps: 12
  batch_size: 2
  downsample: 4
  latent_dim: 4
  codebook_size: 16
  data.image_size: 16
  {settings}
  loss.discriminator_start: 2
  evaluation: {{num_images: 60, every: 6}}
  execution: {{checkpoint_every: 2, log_every: 1}}
axes:
  quantizer.options.temperature: [0.5, 1]
  groups: [1, 2]
"""


def gsq(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([GSQ, *words], cwd=folder, env=variables, capture_output=True, text=True, check=False)


def write_sweep(folder: Path) -> None:
    """A sweep that takes every part from a file of this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [write_part(kind, folder / f"my_{kind}.py")[2] for kind in KINDS]
    (folder / "own.yaml").write_text(SWEEP.format(settings="\n  ".join(settings)))


def science(folder: Path) -> pd.DataFrame:
    table = read_table(folder / "results/own.parquet")
    columns = [*SCIENCE_COLUMNS, "parts", "largest_error"]
    return table[columns].sort_values(["signature", "step"]).reset_index(drop=True)


@pytest.mark.timeout(600)
def test_parts_of_ones_own_go_from_yaml_to_table_through_a_kill(tmp_path: Path) -> None:
    here, there = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (here, there):
        write_sweep(folder)
    done = gsq(here, "run", "own.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    with subprocess.Popen(
        [GSQ, "run", "own.yaml"],
        cwd=there,
        env={**os.environ, "GSQ_RUNS": str(there / "runs"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as driver:
        deadline = time.monotonic() + 300
        while not list((there / "runs").glob("*/*/attempts/*/checkpoint-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(driver.pid, signal.SIGKILL)
    # Edited meanwhile: what was submitted goes on with its copy.
    again = gsq(there, "run", "own.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    pd.testing.assert_frame_equal(science(here), science(there))
    found = science(here)
    assert len(found) == 8
    assert {json.loads(text)["quantizer.options.temperature"] for text in found["other_axes"]} == {0.5, 1}
    assert set(json.loads(found["parts"][0])) == set(TAKEN)
    assert found["largest_error"].between(0, 2).all()
    columns = {column.name: column for column in describe(here / "results/own.parquet")}
    assert columns["largest_error"].role == "metric"
    assert columns["largest_error"].type == "float64"
    # Everything after the training works where the modules are gone, by the copy that the jobs ran.
    for kind in KINDS:
        (here / f"my_{kind}.py").unlink()
    (here / "results/own.parquet").unlink()
    for words in (("status", "own"), ("gather", "own"), ("fit", "own", "--law", "rfid = c * bits_per_pixel^-a")):
        done = gsq(here, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    pd.testing.assert_frame_equal(science(here), found)
    # A change of what trains is a new run, one of a metric a new protocol.
    for kind, trained, evaluated in (("metric", 0, 4), ("quantizer", 4, 0)):
        with (there / f"my_{kind}.py").open("a") as file:
            file.write("# another thought\n")
        planned = json.loads(gsq(there, "plan", "own.yaml", "--json").stdout)["forecast"]
        assert (planned["to_run"], planned["to_evaluate"]) == (trained, evaluated)
        assert any(f"my_{kind}:" in note for note in planned["notes"]), planned["notes"]
