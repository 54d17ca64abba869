"""One attempt at a run: its folder, its status file, and the signs of life that it writes."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsq.files import write_json

RUNNING, DONE, FAILED, PRUNED = "running", "done", "failed", "pruned"
FAILURES = (
    *("out_of_memory", "diverged", "timeout", "preempted", "node_failure", "disk_full", "cancelled", "lost", "error"),
)
# Holds the failure class of an attempt that was killed, as the driver found it.
KILLED = "killed.txt"
# Keys of metrics.jsonl that differ between executions of the same run.
TIMINGS = ("images_per_second", "loader_wait_seconds")
# Seconds without a heartbeat after which a running attempt that no scheduler knows counts as lost.
STALE_SECONDS = 60.0
# A heartbeat later than this from now is of a clock that was wrong, not of a process that is alive [s].
AHEAD_SECONDS = 3600.0


def slurm_job() -> str:
    """Id of the SLURM job that this process is part of, ``12_3`` or ``12``; empty outside of SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def process_start(pid: int) -> str:
    """When a process started: the boot's id and the kernel's ticks since, which no later process of the same number
    shares. Empty if there is no such process, or not on Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Fields 3 and 22 of proc(5). The name before them can hold any character.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else f"{boot}/{rest[18]}"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run: its folder, and the only place that it writes to."""

    path: Path
    number: int
    clock: Callable[[], float] = time.time
    started: float = field(default_factory=time.time)

    def write_status(self, state: str, step: int, steps: int, **more: Any) -> None:
        """Replace status.json. ``more``: failure, message, images_per_second, peak_memory_bytes, processes, ..."""
        now = self.clock()
        value = {
            "state": state,
            "step": step,
            "steps": steps,
            "started": self.started,
            "heartbeat": now,
            "seconds": max(0.0, now - self.started),
            "host": socket.gethostname(),
            "node": os.environ.get("SLURMD_NODENAME", ""),
            "job": slurm_job(),
            "pid": os.getpid(),
            "pid_start": process_start(os.getpid()),
            **more,
        }
        write_json(self.path / "status.json", value, sync=state != RUNNING)

    def log_metrics(self, step: int, values: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def write_evaluation(self, protocol: str, step: int, result: dict[str, Any]) -> Path:
        return write_evaluation(self.path, protocol, step, result)


def write_evaluation(folder: Path, protocol: str, step: int, result: dict[str, Any]) -> Path:
    path = folder / "evaluations" / f"{protocol}-{step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, result)
    return path
