"""The local queue: as many worker processes as cores (or GPUs), one cell and one thread each.

Workers write to the run folders like any job; the queue reads those, so a driver that was killed and started
again finds what its predecessor's workers did. Those that still run it adopts: it waits for them, and stops them with
its own. Two drivers at the same time share the work of a sweep.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from gsq.record import RUNNING, RunRecord, process_start
from sweeps.cancellation import claim_signal, mark, marked, with_cancelled
from sweeps.cluster import Cluster, local_gpus, local_workers
from sweeps.deaths import note_worker_death
from sweeps.folder import SweepFolder
from sweeps.job import DRIVER_VARIABLE, STOPPED, start_worker
from sweeps.reconcile import Action, Job, SchedulerState, reconcile

POLL_SECONDS = 0.25
# How often it looks through the processes of this machine, beside whenever it starts one.
LOOK_SECONDS = 2.0
# How long a worker may take to end its step, write a checkpoint and leave, before it is killed.
GRACE_SECONDS = 60.0


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
            if words[:3] != ["-m", "sweeps.job", str(runs)] or len(words) != 6:
                continue
            pairs = (text.partition("=") for text in (entry / "environ").read_text(errors="replace").split("\0"))
            variables = {name: value for name, _, value in pairs}
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # It has just ended, or is another user's.
        driver = parent if variables.get(DRIVER_VARIABLE) == str(parent) else 0
        found[words[5]] = Worker(int(entry.name), driver, variables.get("CUDA_VISIBLE_DEVICES", ""))
    return found


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP where the terminal is closed, end the block as Ctrl-C does. nohup's is left ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class LocalQueue:
    """Runs the cells of a sweep on this machine until nothing more can be done for any of them."""

    def __init__(
        self,
        folder: SweepFolder,
        source: Path,
        signatures: list[str],
        cluster: Cluster,
        on_update: Callable[[list[Action], dict[str, RunRecord]], None] = lambda actions, records: None,
        retry: bool = False,
        more: Callable[[list[Action], dict[str, RunRecord]], list[str]] = lambda actions, records: [],
    ) -> None:
        """source: the copy of the source that workers run. retry: all failed cells are tried once again at the start.
        more: asked again and again for further cells to run, given what is known of
        those there are."""
        self.folder, self.signatures, self.on_update = folder, signatures, on_update
        self.source = source
        self.slots = local_workers(cluster)
        self.gpus = local_gpus()
        self.environment = cluster.environment
        self.more = more
        self.resumed_first = cluster.resumed("request" if retry else "submit")
        self.resumed = cluster.resumed("itself")
        self.search = folder.search_id
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.slot_of: dict[str, int] = {}
        self.fruitless: Counter[str] = Counter()
        self.steps: dict[str, int] = {}
        self.started: set[str] = set()
        self.exits: dict[str, int] = {}
        # The last sign of life in the run folder, of earlier attempts, when this driver started a worker.
        self.before: dict[str, float] = {}
        self.found: dict[str, Worker] = {}
        self.looked = -LOOK_SECONDS
        # Kept also when a cell is submitted again: then another queue runs it.
        self.cancelled: set[str] = set()

    def run(self) -> list[Action]:
        """Returns the last actions: finished and left cells. Ctrl-C, SIGTERM and a closed terminal stop the workers at
        the end of their step, each with a checkpoint, and raise KeyboardInterrupt; after SIGKILL they go on."""
        with _stopped_by_signals():
            try:
                while True:
                    with self._alone():
                        actions, records = self._look()
                        if further := self.more(actions, records):
                            self.signatures = [*self.signatures, *(s for s in further if s not in self.signatures)]
                            continue
                        busy = sum(action.kind == "wait" for action in actions)
                        ready = [action.cell.signature for action in actions if action.kind == "submit"]
                        if ready and busy < self.slots:
                            others = self._others(fresh=True)
                            free = self.slots - busy - sum(signature in others for signature in ready)
                            for signature in [s for s in ready if s not in others][: max(0, free)]:
                                self.before[signature] = records[signature].heartbeat
                                self._start(signature)
                    self.on_update(actions, records)
                    if not busy and not ready:
                        return actions
                    time.sleep(POLL_SECONDS)
            finally:
                self._stop()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other driver of the sweep on this machine looks and starts at the same time. On a file system without
        locks two of them could start a cell twice, which costs time and nothing else."""
        with ExitStack() as stack:
            with suppress(OSError):
                fcntl.flock(stack.enter_context((self.folder.path / "queue.lock").open("w")), fcntl.LOCK_EX)
            yield

    def _look(self) -> tuple[list[Action], dict[str, RunRecord]]:
        self.cancelled |= marked(self.folder)
        records = self.folder.records(self.signatures)
        jobs: dict[str, Job] = {}
        for signature, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                jobs[signature] = Job("running", name=str(process.pid))
                if signature in self.cancelled:
                    self._ask_to_stop(signature, process.pid)
                continue
            del self.processes[signature], self.slot_of[signature]
            advanced = records[signature].step > self.steps.get(signature, -1)
            self.fruitless[signature] = 0 if advanced else self.fruitless[signature] + 1
            self.steps[signature] = records[signature].step
            self.exits[signature] = code
            if code not in (0, STOPPED) and records[signature].heartbeat == self.before.get(signature):
                with suppress(OSError):
                    note_worker_death(self.folder, signature, code)
                    records |= self.folder.records([signature])
        # Attempts that this driver did not start: workers of a predecessor or of another driver, alive or dead.
        others = self._others()
        jobs = {**local_jobs(records), **{s: Job("running", name=str(w.pid)) for s, w in others.items()}, **jobs}
        for signature in self.cancelled & set(others):
            self._ask_to_stop(signature, others[signature].pid)
        for signature in self.started - set(jobs):
            if records[signature].state is None:
                # It could not be recorded: the disk is full.
                code, log = self.exits.get(signature), self.folder.log(signature)
                jobs[signature] = Job("gone", "lost", f"{signature} (exit code {code}, see {log})")
        records, jobs = with_cancelled(self.cancelled, records, jobs)
        now = time.time()
        # What this driver has not touched yet is treated as on a new submission; later only what resumes by itself.
        ask = partial(reconcile, self.signatures, records, jobs, now, search=self.search)
        first = ask(resumed=self.resumed_first)
        again = ask(resumed=self.resumed, fruitless=self.fruitless)
        never = ask(resumed=())
        actions = [
            c if (sig := c.cell.signature) in self.cancelled else b if sig in self.started else a
            for a, b, c in zip(first, again, never, strict=True)
        ]
        return actions, records

    def _others(self, fresh: bool = False) -> dict[str, Worker]:
        """Workers of this sweep's cells that this driver did not start, as of now or of a moment ago."""
        if fresh or time.monotonic() - self.looked > LOOK_SECONDS:
            self.found, self.looked = workers(self.folder.runs), time.monotonic()
        return {s: self.found[s] for s in self.signatures if s in self.found and s not in self.processes}

    def _ask_to_stop(self, signature: str, pid: int) -> None:
        """Once, for a second signal would end the worker without a checkpoint."""
        try:
            mark(self.folder, ())
            first = claim_signal(self.folder, signature, pid)
        except OSError:
            first = True  # The disk may be full.
        if first:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)

    def _start(self, signature: str) -> None:
        taken = {*self.slot_of.values()}
        if self.gpus:
            taken |= {self.gpus.index(w.gpu) for w in self._others().values() if w.gpu in self.gpus}
        slot = next(i for i in range(self.slots + len(taken) + 1) if i not in taken)
        # Threads of several workers on the same cores slow each other down many times over.
        own = {name: os.path.expandvars(value) for name, value in self.environment.items()}
        variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **own}
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        self.processes[signature] = start_worker(self.folder, str(self.source), signature, variables)
        self.slot_of[signature] = slot
        self.started.add(signature)

    def _stop(self) -> None:
        """Our own workers, and those whose driver is dead: another driver's are its own."""
        adopted = {s: w.pid for s, w in self._others(fresh=True).items() if w.driver in (0, os.getpid())}
        for signature, process in self.processes.items():
            if process.poll() is None:
                self._ask_to_stop(signature, process.pid)
        for signature, pid in adopted.items():
            self._ask_to_stop(signature, pid)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        while adopted.items() & {s: w.pid for s, w in self._others(fresh=True).items()}.items():
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
