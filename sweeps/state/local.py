"""Which runs are alive on this machine, judged by their processes."""

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

# Environment variable of a worker with the process id of its driver.
DRIVER_VARIABLE = "GSQ_QUEUE_PID"
# Folder in the sweep folder with a file for each running worker.
WORKERS = "workers"
# Modules that `python -m` runs in a worker, today and before the rooms became one package.
WORKER_MODULES = ("gsq.sweeps.running.worker", "sweeps.job")


def alive(pid: int, heartbeat: float, pid_start: str = "") -> bool:
    """Return whether the process that wrote a heartbeat still runs, and not a later one with its number.

    pid_start: its process_start at that time. Without it the heartbeat decides, unless the clock was set back.
    """
    if pid_start:
        return process_start(pid) == pid_start
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, ValueError, StopIteration):
        return False
    # Field 22 of proc(5) is the start in clock ticks after boot. Boot time is in whole seconds, hence the margin.
    started = int(boot.split()[1]) + int(rest[18]) / os.sysconf("SC_CLK_TCK")
    return state != "Z" and started <= heartbeat + 2


def local_jobs(records: Mapping[str, RunRecord]) -> dict[str, Job]:
    """Return a job for each running attempt of this machine: running, or gone without a record of its end."""
    jobs: dict[str, Job] = {}
    if not Path("/proc/self").exists():
        return jobs  # Elsewhere than on Linux only the heartbeat tells.
    for signature, record in records.items():
        # The scheduler knows about a SLURM node on this host (record.node).
        if record.state == RUNNING and record.host == os.uname().nodename and not record.node:
            running = alive(record.pid, record.heartbeat, record.pid_start)
            state: SchedulerState = "running" if running else "gone"
            jobs[signature] = Job(state, name=str(record.pid))
    return jobs


def with_local_jobs(on_slurm: Mapping[str, Job], records: Mapping[str, RunRecord]) -> dict[str, Job]:
    """Merge SLURM's jobs with this machine's. If a run has both, the one that may be alive counts."""
    here = local_jobs(records)
    over = {s for s in here if here[s].state == "gone" and s in on_slurm and on_slurm[s].state != "gone"}
    return {**on_slurm, **{s: job for s, job in here.items() if s not in over}}


@dataclass(frozen=True)
class Worker:
    """A worker process of any driver on this machine."""

    pid: int
    driver: int
    """Process id of its driver; 0 if the driver is dead."""
    gpu: str
    """Its CUDA_VISIBLE_DEVICES."""


@contextmanager
def recorded_worker(folder: SweepFolder, signature: str) -> Iterator[bool]:
    """Announce this process to every driver as the worker of a cell while the block runs. Yields whether it could.

    It writes ``<sweep folder>/workers/<host>/<signature>.<pid>.json`` with its start, driver and GPU. If the disk is
    full, drivers still know it by its command line, if it was not forked by a warm parent.
    """
    path = folder.path / WORKERS / os.uname().nodename / f"{signature}.{os.getpid()}.json"
    value = {
        "signature": signature,
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "driver": os.environ.get(DRIVER_VARIABLE, ""),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }
    recorded = False
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value, sync=False)
        recorded = True
    try:
        yield recorded
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def workers(runs: Path) -> dict[str, Worker]:
    """Return the local queues' workers for cells below ``runs``, by signature; none unless the system is Linux."""
    return {**_by_command_line(runs), **_by_record(runs)}


def _by_record(runs: Path) -> dict[str, Worker]:
    """Live workers with a record. Records of killed workers are removed."""
    found: dict[str, Worker] = {}
    for path in (runs / "sweeps").glob(f"*/{WORKERS}/{os.uname().nodename}/*.json"):
        try:
            value = json.loads(path.read_text())
            signature, pid, start = str(value["signature"]), int(value["pid"]), str(value["pid_start"])
            driver, gpu = str(value["driver"]), str(value["gpu"])
        except (OSError, ValueError, TypeError, KeyError):
            continue  # The worker has just ended, or this is no record.
        if start and process_start(pid) == start:
            with suppress(OSError):
                found[signature] = Worker(pid, _living_driver(pid, driver), gpu)
        elif Path("/proc/self").exists():
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return found


def _by_command_line(runs: Path) -> dict[str, Worker]:
    """Workers without a record: those that have only just started, or that an early gsq 0.1.0 started."""
    found: dict[str, Worker] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # start_worker writes these words, and one more for a worker of a SLURM job.
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[1:-1]
            if len(words) != 6 or words[0] != "-m" or words[1] not in WORKER_MODULES or words[2] != str(runs):
                continue
            pairs = (text.partition("=") for text in (entry / "environ").read_text(errors="replace").split("\0"))
            variables = {name: value for name, _, value in pairs}
            driver = _living_driver(int(entry.name), variables.get(DRIVER_VARIABLE, ""))
        except (OSError, IndexError):
            continue  # The process has just ended, or belongs to another user.
        found[words[5]] = Worker(int(entry.name), driver, variables.get("CUDA_VISIBLE_DEVICES", ""))
    return found


def _living_driver(pid: int, driver: str) -> int:
    """The driver of a worker if it is still the parent, or the parent of the warm one, so alive; else 0. Raises OSError
    if the worker has ended."""
    parent = _parent(pid)
    with suppress(OSError):
        if driver in (str(parent), str(_parent(parent))):
            return int(driver)
    return 0


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
