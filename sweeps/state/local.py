"""Which runs are alive on this machine, by the processes that train them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gsq.records.attempt import RUNNING, process_start
from gsq.records.read import RunRecord
from gsq.sweeps.state.reconcile import Job, SchedulerState

# In the environment of a worker: the process id of the driver that started it.
DRIVER_VARIABLE = "GSQ_QUEUE_PID"


def alive(pid: int, heartbeat: float, pid_start: str = "") -> bool:
    """Whether the process that wrote a heartbeat still runs; a later process of the same number is another one.

    pid_start: what process_start said of it then. Without, the heartbeat tells, unless the clock was set back.
    """
    if pid_start:
        return process_start(pid) == pid_start
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, ValueError, StopIteration):
        return False
    # Field 22 of proc(5): start after boot in clock ticks. Boot time is in whole seconds, hence the margin.
    started = int(boot.split()[1]) + int(rest[18]) / os.sysconf("SC_CLK_TCK")
    return state != "Z" and started <= heartbeat + 2


def local_jobs(records: Mapping[str, RunRecord]) -> dict[str, Job]:
    """Running attempts whose process belongs to this machine: alive, or gone without having said so."""
    jobs: dict[str, Job] = {}
    if not Path("/proc/self").exists():
        return jobs  # Not Linux: the heartbeat has to do.
    for signature, record in records.items():
        # A SLURM node on this host (record.node) is for the scheduler to know.
        if record.state == RUNNING and record.host == os.uname().nodename and not record.node:
            running = alive(record.pid, record.heartbeat, record.pid_start)
            state: SchedulerState = "running" if running else "gone"
            jobs[signature] = Job(state, name=str(record.pid))
    return jobs


def with_local_jobs(on_slurm: Mapping[str, Job], records: Mapping[str, RunRecord]) -> dict[str, Job]:
    """SLURM's jobs and this machine's: the one that may be alive counts. A run can have an attempt of each."""
    here = local_jobs(records)
    over = {s for s in here if here[s].state == "gone" and s in on_slurm and on_slurm[s].state != "gone"}
    return {**on_slurm, **{s: job for s, job in here.items() if s not in over}}


@dataclass(frozen=True)
class Worker:
    """A worker process on this machine, of whichever driver."""

    pid: int
    driver: int
    """Process id of its driver; 0 where that is dead."""
    gpu: str
    """Its CUDA_VISIBLE_DEVICES."""


def workers(runs: Path) -> dict[str, Worker]:
    """The local queues' workers for cells below ``runs``, by signature, also those that have written nothing yet.

    Empty where the system is not Linux.
    """
    found: dict[str, Worker] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # As start_worker wrote it; those of a SLURM job have one word more.
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[1:-1]
            if words[:3] != ["-m", "gsq.sweeps.running.worker", str(runs)] or len(words) != 6:
                continue
            pairs = (text.partition("=") for text in (entry / "environ").read_text(errors="replace").split("\0"))
            variables = {name: value for name, _, value in pairs}
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # It has just ended, or is another user's.
        driver = parent if variables.get(DRIVER_VARIABLE) == str(parent) else 0
        found[words[5]] = Worker(int(entry.name), driver, variables.get("CUDA_VISIBLE_DEVICES", ""))
    return found
