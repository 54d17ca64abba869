"""Parts of a user's own that print, leave threads running, or have other indices than the plan counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_reevaluate import TINY

from gsq.templates.write import write_part

# Template of a quantizer, and what a careless user adds at import.
CARELESS = """
import threading, time
print("loading my quantizer")
threading.Thread(target=time.sleep, args=(1000,), name="my-thread").start()
"""


def gsq(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line with a patience of a second for threads."""
    program = "import gsq.ending; gsq.ending.PATIENCE = 1.0; from gsq.cli.main import main; main()"
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def own(folder: Path) -> Path:
    """A sweep with a quantizer of one's own, in my_vq.py."""
    write_part("quantizer", folder / "my_vq.py")
    kind = {"quantizer.kind": "my_vq:Mine", "loss.discriminator_start": 0, "discriminator.kind": "none"}
    (folder / "own.yaml").write_text(json.dumps({"name": "own", "base": "cpu-tiny", "set": {**TINY, **kind}}))
    return folder


def test_what_a_part_prints_and_leaves_running_spoils_and_holds_up_nothing(own: Path) -> None:
    source = (own / "my_vq.py").read_text()
    (own / "my_vq.py").write_text(source + CARELESS)
    done = gsq(own, "plan", "own.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["forecast"]["to_run"] == 1
    assert "loading my quantizer" in done.stderr
    assert "my-thread" in done.stderr and "daemon" in done.stderr
    # Its exit code is kept.
    spec = json.loads((own / "own.yaml").read_text())
    (own / "wrong.yaml").write_text(json.dumps({**spec, "axes": {"quantizer.options.nothing": [1]}}))
    wrong = gsq(own, "plan", "wrong.yaml")
    assert wrong.returncode == 2 and "nothing" in wrong.stderr and "my-thread" in wrong.stderr


def test_indices_that_the_plan_does_not_count_are_named_before_a_step(own: Path) -> None:
    source = (own / "my_vq.py").read_text()
    assert "super().__init__(latent_dim, groups, (codebook_size,) * groups)" in source
    wrong = source.replace("(codebook_size,) * groups)", "(2 * codebook_size,) * groups)")
    (own / "my_vq.py").write_text(wrong)
    assert gsq(own, "plan", "own.yaml").returncode == 0
    done = gsq(own, "submit", "own.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "index_sizes" in done.stdout and "(16,)" in done.stdout and "KINDS" in done.stdout
    assert not list((own / "runs").glob("??/*/attempts/*/metrics.jsonl"))
