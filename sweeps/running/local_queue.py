"""The local queue: as many worker processes as cores (or GPUs), with one cell and one thread each.

Workers are forked from a parent that has imported torch and gsq (gsq.sweeps.running.workers).

The queue reads the run folders that its workers write. So a driver started after a kill finds what its predecessor's
workers did, and adopts those still running: it waits for them, and stops them with its own. Two drivers at the same
time share the work of a sweep.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from gsq.records.attempt import process_start
from gsq.records.read import RunRecord
from gsq.runs.stop import handled
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.worker import STOPPED
from gsq.sweeps.running.workers import Process, Workers
from gsq.sweeps.spec.cluster import Cluster, local_gpus, local_workers
from gsq.sweeps.state.cancellation import claim_signal, mark, marked, with_cancelled
from gsq.sweeps.state.deaths import note_worker_death
from gsq.sweeps.state.local import Worker, local_jobs, workers
from gsq.sweeps.state.reconcile import Action, Job, OnUpdate, coming, no_update, reconcile

POLL_SECONDS = 0.25
# Interval between looks at this machine's processes, besides one at each start of a worker [s].
LOOK_SECONDS = 2.0
# Time for a worker to end its step and write a checkpoint before it is killed [s].
GRACE_SECONDS = 60.0


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a closed terminal) end the block like Ctrl-C, unless they are ignored, as by nohup."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(n) == signal.SIG_DFL]
    with handled(numbers, stop):
        yield


class LocalQueue:
    """Runs the cells of a sweep on this machine until no cell can make progress."""

    def __init__(
        self,
        folder: SweepFolder,
        source: Path,
        signatures: list[str],
        cluster: Cluster,
        on_update: OnUpdate = no_update,
        retry: bool = False,
        more: Callable[[list[Action], dict[str, RunRecord]], list[str]] = lambda actions, records: [],
        held: Callable[[set[str], dict[str, RunRecord]], Collection[str]] = lambda coming, records: (),
    ) -> None:
        """source: the source copy that workers run. retry: retry all failed cells once at the start. more: returns
        further cells to run; it is called in every round. held: returns which of the cells that are running or to run
        should not start yet; it must not return all of those to run if none is running."""
        self.folder, self.signatures, self.source = folder, signatures, source
        self.on_update, self.more, self.held = on_update, more, held
        self.slots, self.gpus, self.environment = local_workers(cluster), local_gpus(), cluster.environment
        self.resumed_first = cluster.resumed("request" if retry else "submit")
        self.resumed = cluster.resumed("itself")
        self.search = folder.search_id
        self.workers = Workers(folder, source)
        self.processes: dict[str, Process] = {}
        self.slot_of: dict[str, int] = {}
        self.fruitless: Counter[str] = Counter()
        self.steps: dict[str, int] = {}
        self.started: set[str] = set()
        self.exits: dict[str, int] = {}
        # Last heartbeat of earlier attempts when this driver started a worker.
        self.before: dict[str, float] = {}
        self.found: dict[str, Worker] = {}
        self.looked = -LOOK_SECONDS
        # Kept even if a cell is submitted again, because then another queue runs it.
        self.cancelled: set[str] = set()

    def run(self) -> list[Action]:
        """Run the cells. Returns the last actions, of finished and left cells.

        Ctrl-C, SIGTERM and closing the terminal stop the workers after their step, with a checkpoint, and raise
        KeyboardInterrupt; after SIGKILL the workers continue.
        """
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
                        if ready and busy < self.slots and self.workers.ready(ready[0], self._variables()):
                            others = self._others(fresh=True)
                            later = {*others, *self.held(coming(actions), records)}
                            free = self.slots - busy - sum(signature in others for signature in ready)
                            for signature in [s for s in ready if s not in later][: max(0, free)]:
                                self.before[signature] = records[signature].heartbeat
                                self._start(signature)
                    self.on_update(actions, records)
                    if not busy and not ready:
                        return actions
                    time.sleep(POLL_SECONDS)
            finally:
                try:
                    self._stop()
                finally:
                    self.workers.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other drivers of the sweep on this machine from starting cells. Without file locks two drivers could
        start a cell twice, which only wastes time."""
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
        # Other attempts belong to workers of a predecessor or of another driver, alive or dead.
        others = self._others()
        jobs = {**local_jobs(records), **{s: Job("running", name=str(w.pid)) for s, w in others.items()}, **jobs}
        for signature in self.cancelled & set(others):
            self._ask_to_stop(signature, others[signature].pid)
        for signature in self.started - set(jobs):
            if records[signature].state is None:
                # A full disk prevented a record.
                code, log = self.exits.get(signature), self.folder.log(signature)
                jobs[signature] = Job("gone", "lost", f"{signature} (exit code {code}, see {log})")
        records, jobs = with_cancelled(self.cancelled, records, jobs)
        now = time.time()
        # Treat cells that this driver has not started like a new submission; later only resume what resumes itself.
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
        """Workers of this sweep's cells that this driver did not start; ``fresh``: as of now."""
        if fresh or time.monotonic() - self.looked > LOOK_SECONDS:
            self.found, self.looked = workers(self.folder.runs), time.monotonic()
        return {s: self.found[s] for s in self.signatures if s in self.found and s not in self.processes}

    def _ask_to_stop(self, signature: str, pid: int) -> None:
        """Signal a worker once, because a second signal would end it without a checkpoint."""
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
        variables = self._variables()
        if self.gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        self.processes[signature] = self.workers.start(signature, variables)
        self.slot_of[signature] = slot
        self.started.add(signature)

    def _variables(self) -> dict[str, str]:
        """Variables of every worker."""
        # Threads of several workers on the same cores slow each other down many times over.
        own = {name: os.path.expandvars(value) for name, value in self.environment.items()}
        return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **own}

    def _stop(self) -> None:
        """Stop our own workers and those whose driver is dead."""
        adopted = {s: w.pid for s, w in self._others(fresh=True).items() if w.driver in (0, os.getpid())}
        starts = {pid: process_start(pid) for pid in adopted.values()}
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
                process.send_signal(signal.SIGKILL)
                process.wait()
        # A worker removes its record shortly before it ends.
        while any(start and process_start(pid) == start for pid, start in starts.items()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
