"""The local queue: as many worker processes as cores (or GPUs), one cell and one thread each.

Workers write to the run folders like any job; the queue reads those, so a driver that was killed and started
again finds what its predecessor's workers did, and waits for those that still run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from gsq.record import RUNNING, RunRecord
from sweeps.cancellation import claim_signal, marked, with_cancelled
from sweeps.cluster import Cluster, local_gpus, local_workers
from sweeps.folder import SweepFolder
from sweeps.job import start_worker
from sweeps.reconcile import RESUMED, RESUMED_ON_SUBMIT, Action, Job, SchedulerState, reconcile

POLL_SECONDS = 0.25
# How long a worker may take to end its step, write a checkpoint and leave, before it is killed.
GRACE_SECONDS = 60.0


def alive(pid: int, heartbeat: float) -> bool:
    """Whether the process that wrote a heartbeat still runs; a later process of the same number is another one."""
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
            state: SchedulerState = "running" if alive(record.pid, record.heartbeat) else "gone"
            jobs[signature] = Job(state, name=str(record.pid))
    return jobs


class LocalQueue:
    """Runs the cells of a sweep on this machine until nothing more can be done for any of them."""

    def __init__(
        self,
        folder: SweepFolder,
        source: Path,
        signatures: list[str],
        cluster: Cluster,
        on_update: Callable[[list[Action], dict[str, RunRecord]], None] = lambda actions, records: None,
        retry: frozenset[str] = frozenset(),
        more: Callable[[list[Action], dict[str, RunRecord]], list[str]] = lambda actions, records: [],
    ) -> None:
        """source: the copy of the source that workers run. retry: failure classes, beside the usual ones, that are
        tried once again at the start. more: asked again and again for further cells to run, given what is known of
        those there are."""
        self.folder, self.signatures, self.on_update = folder, signatures, on_update
        self.source = source
        self.slots = local_workers(cluster)
        self.gpus = local_gpus()
        self.environment = cluster.environment
        self.retry, self.more = retry, more
        self.search = folder.search_id
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.slot_of: dict[str, int] = {}
        self.fruitless: Counter[str] = Counter()
        self.steps: dict[str, int] = {}
        self.started: set[str] = set()
        self.exits: dict[str, int] = {}
        # Kept also when a cell is submitted again: then another queue runs it.
        self.cancelled: set[str] = set()

    def run(self) -> list[Action]:
        """Returns the last actions: finished and left cells. Ctrl-C stops the workers at the end of their step,
        each with a checkpoint, and raises KeyboardInterrupt."""
        try:
            while True:
                actions, records = self._look()
                if further := self.more(actions, records):
                    self.signatures = [*self.signatures, *(s for s in further if s not in self.signatures)]
                    continue
                self.on_update(actions, records)
                busy = sum(action.kind == "wait" for action in actions)
                ready = [action.cell.signature for action in actions if action.kind == "submit"]
                if not busy and not ready:
                    return actions
                for signature in ready[: max(0, self.slots - busy)]:
                    self._start(signature)
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()

    def _look(self) -> tuple[list[Action], dict[str, RunRecord]]:
        self.cancelled |= marked(self.folder)
        records = self.folder.records(self.signatures)
        jobs: dict[str, Job] = {}
        for signature, process in list(self.processes.items()):
            code = process.poll()
            if code is None:
                jobs[signature] = Job("running", name=str(process.pid))
                if signature in self.cancelled and claim_signal(self.folder, signature, process.pid):
                    process.terminate()
                continue
            del self.processes[signature], self.slot_of[signature]
            advanced = records[signature].step > self.steps.get(signature, -1)
            self.fruitless[signature] = 0 if advanced else self.fruitless[signature] + 1
            self.steps[signature] = records[signature].step
            self.exits[signature] = code
        # Attempts that this driver did not start: workers of a predecessor, alive or dead.
        jobs = {**local_jobs(records), **jobs}
        for signature in self.started - set(jobs):
            if records[signature].state is None:
                code = self.exits.get(signature)
                log = self.folder.log(signature)
                jobs[signature] = Job("gone", "error", f"{signature} (exit code {code}, see {log})")
        records, jobs = with_cancelled(self.cancelled, records, jobs)
        now = time.time()
        # What this driver has not touched yet is treated as on a new submission; later only what resumes by itself.
        ask = partial(reconcile, self.signatures, records, jobs, now, search=self.search)
        first = ask(resumed=RESUMED_ON_SUBMIT | self.retry)
        again = ask(resumed=RESUMED, fruitless=self.fruitless)
        never = ask(resumed=())
        actions = [
            c if (sig := c.cell.signature) in self.cancelled else b if sig in self.started else a
            for a, b, c in zip(first, again, never, strict=True)
        ]
        return actions, records

    def _start(self, signature: str) -> None:
        slot = next(i for i in range(self.slots + len(self.slot_of)) if i not in self.slot_of.values())
        # Threads of several workers on the same cores slow each other down many times over.
        variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **self.environment}
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        self.processes[signature] = start_worker(self.folder, str(self.source), signature, variables)
        self.slot_of[signature] = slot
        self.started.add(signature)

    def _stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
