"""Which runs are alive on this machine, by the processes that train them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gsq.files import write_json
from gsq.records.attempt import RUNNING, process_start
from gsq.records.read import RunRecord
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state.reconcile import Job, SchedulerState

# In the environment of a worker: the process id of the driver that started it.
DRIVER_VARIABLE = "GSQ_QUEUE_PID"
# Below the sweep folder: a file for each worker that runs.
WORKERS = "workers"
# What `python -m` runs in a worker, now and before the rooms became one package.
WORKER_MODULES = ("gsq.sweeps.running.worker", "sweeps.job")


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


@contextmanager
def recorded_worker(folder: SweepFolder, signature: str) -> Iterator[None]:
    """Inside the block this process is known to every driver as the worker of a cell, by a file that it writes first:
    ``<sweep folder>/workers/<host>/<signature>.<pid>.json``, with the process's start, its driver and its GPU.

    A process that cannot write it, because the disk is full, is still known by its command line.
    """
    path = folder.path / WORKERS / os.uname().nodename / f"{signature}.{os.getpid()}.json"
    value = {
        "signature": signature,
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "driver": os.environ.get(DRIVER_VARIABLE, ""),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def workers(runs: Path) -> dict[str, Worker]:
    """The local queues' workers for cells below ``runs``, by signature, also those that have written nothing else yet.

    Empty where the system is not Linux.
    """
    return {**_by_command_line(runs), **_by_record(runs)}


def _by_record(runs: Path) -> dict[str, Worker]:
    """Workers that wrote that they are one, and are alive. The file of one that was killed is removed."""
    found: dict[str, Worker] = {}
    for path in (runs / "sweeps").glob(f"*/{WORKERS}/{os.uname().nodename}/*.json"):
        try:
            value = json.loads(path.read_text())
            signature, pid, start = str(value["signature"]), int(value["pid"]), str(value["pid_start"])
            driver, gpu = str(value["driver"]), str(value["gpu"])
        except (OSError, ValueError, TypeError, KeyError):
            continue  # It has just ended, or is no record.
        if start and process_start(pid) == start:
            with suppress(OSError):
                found[signature] = Worker(pid, _living_driver(pid, driver), gpu)
        elif Path("/proc/self").exists():
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return found


def _by_command_line(runs: Path) -> dict[str, Worker]:
    """Workers that have written no record: gsq 0.1.0 before its rooms became one package did not, nor has one that
    has only just started."""
    found: dict[str, Worker] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # As start_worker wrote it; those of a SLURM job have one word more.
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[1:-1]
            if len(words) != 6 or words[0] != "-m" or words[1] not in WORKER_MODULES or words[2] != str(runs):
                continue
            pairs = (text.partition("=") for text in (entry / "environ").read_text(errors="replace").split("\0"))
            variables = {name: value for name, _, value in pairs}
            driver = _living_driver(int(entry.name), variables.get(DRIVER_VARIABLE, ""))
        except (OSError, IndexError):
            continue  # It has just ended, or is another user's.
        found[words[5]] = Worker(int(entry.name), driver, variables.get("CUDA_VISIBLE_DEVICES", ""))
    return found


def _living_driver(pid: int, driver: str) -> int:
    """The driver that started a worker, if it lives: then it is the worker's parent still. Raises OSError where the
    worker has ended."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return parent if driver == str(parent) else 0
