"""gsq as a user of a round of faults runs it, and the same sweep undisturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fault_plan import SWEEP

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def gsq(*words: str, folder: Path, faults: Path | None = None) -> subprocess.Popen[str]:
    """Start a verb of this source, with its runs below ``folder``/runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    environment |= {"GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = f"{HERE / 'inject'}{os.pathsep}{ROOT}"
    if faults is not None:
        environment |= {"GSQ_FAULTS": str(faults), "PATH": f"{faults / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-m", "gsq.cli", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def undisturbed(folder: Path) -> Path:
    """The sweep on the local queue, gathered: the folder of runs/ and results/ that a round is compared with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(SWEEP)
    for words in (("submit", "sweep.yaml"), ("gather", "faults")):
        process = gsq(*words, folder=folder)
        output, _ = process.communicate(timeout=900)
        if process.returncode:
            raise RuntimeError(f"the undisturbed sweep failed: gsq {' '.join(words)}: {output}")
    return folder
