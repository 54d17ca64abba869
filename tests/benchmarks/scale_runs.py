"""A large sweep as scale.py measures it: run folders in every state, and a SLURM that answers from files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

# What becomes of a cell, in turn: states of its attempts, sacct's word for its job, and what gsq status must say.
FATES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("done",), "COMPLETED", "done"),
    (("preempted", "done"), "COMPLETED", "done"),
    (("done",), "COMPLETED", "done"),
    (("running",), "RUNNING", "running"),
    (("diverged",), "FAILED", "failed"),
    (("preempted", "running"), "RUNNING", "running"),
    (("done",), "COMPLETED", "done"),
    ((), "PENDING", "queued"),
    (("preempted", "out_of_memory"), "FAILED", "failed"),
    (("preempted",), "PENDING", "queued"),
)
ARRAY = 1000
NODE = "node17"


def write_sweep(folder: Path, cells: int) -> Path:
    """A sweep file of that many cells, and about a quarter as many that a constraint leaves out."""
    seeds = cells // 1000
    assert cells == seeds * 1000, "a multiple of 1000 cells"
    path = folder / f"scale-{cells}.yaml"
    path.write_text(
        f"name: scale-{cells}\n"
        "base: cpu-tiny\n"
        "axes:\n"
        "  latent_dim: [8, 16, 32, 64, 128]\n"
        "  groups: [1, 2, 4, 8, 16]\n"
        "  codebook_size: {log2: [6, 15]}\n"
        "  width: [16, 32, 64, 128, 256]\n"
        f"  seed: {{range: [0, {seeds - 1}]}}\n"
        "where:\n"
        "  - latent_dim % groups == 0 and groups <= 8 and bits_per_pixel <= 100\n"
    )
    return path


def evaluation(step: int, index: int) -> dict[str, Any]:
    groups = [0.5 + index % 7 / 20] * 4
    return {
        "protocol": "dd46299f57e9",
        "protocol_fields": {"split": "validation", "num_images": 384, "features": "efficientnet_lite0"},
        "num_images": 384,
        "features": "efficientnet_lite0@57934424",
        "feature_dim": 320,
        "rank_deficient": False,
        "rfid": 80.0 + index % 101,
        "psnr_db": 25.0,
        "ssim": 0.75,
        "mse": 0.018,
        "usage": 0.98,
        "perplexity": 497.0,
        "usage_per_group": groups,
        "perplexity_per_group": [100 * share for share in groups],
        "effective_bits": 29.9,
        "tokens": 393216,
        "uniform_usage": 1.0,
        "step": step,
        "images_seen": 8 * step,
        "train_flops": 8.5e11,
    }


ENVIRONMENT = {
    "source": "86847a790d03",
    "commit": "3d14fb30a7e464d545f4718f2b5c6b778b0f7f64",
    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "scipy": "1.17.1", "pillow": "13.0.0"},
    "device": "a processor",
    "threads": 1,
    "world_size": 1,
    "micro_batch": 8,
    "execution_signature": "c0a4ca0a9d9c",
}


def write_attempt(path: str, state: str, index: int, steps: int) -> None:
    os.makedirs(path)
    failure = None if state in ("done", "running") else state
    now = time.time()
    status = {
        "state": "failed" if failure else state,
        "step": steps if state == "done" else 7 + index % 90,
        "steps": steps,
        "started": now - 60,
        "heartbeat": now,
        "seconds": 60.0,
        "host": NODE,
        "node": NODE,
        "pid": 1000 + index,
        "images_per_second": 55.5,
        "peak_memory_bytes": 5 << 27,
        "processes": 1,
    }
    if failure:
        status |= {"failure": failure, "message": f"{failure} at step {status['step']}"}
    with open(f"{path}/status.json", "w") as file:
        json.dump(status, file, indent=1)
    with open(f"{path}/env.json", "w") as file:
        json.dump(ENVIRONMENT, file, indent=1)
    if state == "done":
        os.mkdir(f"{path}/evaluations")
        with open(f"{path}/evaluations/dd46299f57e9-{steps:08d}.json", "w") as file:
            json.dump(evaluation(steps, index), file, indent=1)


def submitted(source: Path, runs: Path, tools: Path) -> None:
    """The sweep folder, run folders and the answers of sacct and squeue, as after a submission to SLURM."""
    from gsq.sweeps import load_spec, plan
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.state import journal

    made = plan(load_spec(str(source)))
    folder = SweepFolder(runs, made.name)
    folder.write_plan(made)
    accounted: list[str] = []
    for start in range(0, len(made.cells), ARRAY):
        members = made.cells[start : start + ARRAY]
        array = 100_000 + start // ARRAY
        waiting = []
        for task, cell in enumerate(members):
            index = start + task
            attempts, job_state, _ = FATES[index % len(FATES)]
            for number, state in enumerate(attempts, 1):
                path = f"{runs}/{cell.signature[:2]}/{cell.signature}/attempts/{number}"
                write_attempt(path, state, index, cell.config.train.steps)
            if job_state == "PENDING":
                waiting.append(str(task))
            else:
                accounted.append(f"{array}_{task}|{job_state}")
        accounted.append(f"{array}_[{','.join(waiting)}%32]|PENDING")
        number = start // ARRAY + 1
        entry = journal.Entry(
            path=journal.path_of(folder, number),
            name=f"gsq-{made.name}-{number}",
            cluster="slurm",
            source="",
            minutes=15,
            memory_gb=2,
            time=time.time(),
            host=NODE,
            pid=1,
            signatures=tuple(cell.signature for cell in members),
        )
        journal.add(entry, {})
        entry.decide(str(array))
    (tools / "answer").write_text("\n".join(accounted) + "\n")


def write_tools(folder: Path) -> Path:
    """sacct and squeue print prepared files, sbatch and scontrol as SLURM's do; each adds its name to ``calls``."""
    folder.mkdir(parents=True)
    (folder / "answer").touch()
    (folder / "queue").touch()
    scripts = {
        "sacct": f"exec cat {folder}/answer",
        "squeue": f"exec cat {folder}/queue",
        "sbatch": f'echo "Submitted batch job $(grep -c sbatch {folder}/calls)"',
        "scontrol": "echo 'MaxArraySize = 1001'",
    }
    for name, answer in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\necho {name} >> {folder}/calls\n{answer}\n")
        path.chmod(0o755)
    return folder
