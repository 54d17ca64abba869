"""A SLURM job with several cells: some at a time, the others in turn, each in a process forked from a warm parent.

Each cell is an attempt of its own, which records its own end; a cell that fails, is killed or runs out of memory leaves
the others. What has begun and ended is written down (gsq.sweeps.state.turns), so that a job that SLURM starts again
continues there, and the reconciler gives back what a job did not come to.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from gsq.records.attempt import DONE, RUNNING, slurm_job
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord, note_killed, read_run
from gsq.sweeps.running.worker import STOPPED
from gsq.sweeps.running.workers import Process, Workers
from gsq.sweeps.spec.states import CANCELLED
from gsq.sweeps.state.turns import Turns, read_turns, write_turns

if TYPE_CHECKING:
    from gsq.runs.stop import StopRequest
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.state.journal import Entry

POLL_SECONDS = 0.05


class SharedJob:
    """The cells of one task of an array."""

    def __init__(self, folder: SweepFolder, entry: Entry, signatures: tuple[str, ...], stop: StopRequest) -> None:
        from gsq.surroundings import visible_gpus

        self.folder, self.entry, self.stop, self.job = folder, entry, stop, slurm_job()
        before = read_turns(entry.path, self.job) or Turns()
        self.begun, self.ended = set(before.begun), set(before.ended)
        self.todo = deque(signature for signature in signatures if signature not in self.ended)
        self.workers = Workers(folder, entry.source, shared=True)
        self.running: dict[str, Process] = {}
        self.place_of: dict[str, int] = {}
        # Last heartbeat of earlier attempts.
        self.before: dict[str, float] = {}
        self.gpus = visible_gpus() or []
        self.outcomes: dict[str, str] = {}
        # Whether a SIGTERM has come that the workers have not been told of.
        self.cancelled = False
        self.kills = _memory_kills()

    def run(self) -> str:
        """Run the cells. Returns what became of them.

        Raises Stopped if SLURM asked the job to stop: the running cells have written a checkpoint, and they and the
        rest are still to do.
        """
        from gsq.runs.stop import Stopped

        with ExitStack() as stack:
            stack.callback(self.workers.close)
            stack.callback(self._tell, signal.SIGKILL)
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, self._on_cancel))
            told = False
            while self.running or (self.todo and not self.stop.reason):
                if self.cancelled:
                    self.cancelled = False
                    # The marker of its cell tells each worker whether it is meant.
                    self._tell(signal.SIGTERM)
                    self._drop()
                if not self.stop.reason:
                    self._fill()
                elif not told:
                    told = True
                    self._tell(signal.SIGUSR2)
                time.sleep(POLL_SECONDS)
                for signature in [s for s, worker in self.running.items() if worker.poll() is not None]:
                    self._end(signature, self.running.pop(signature))
            if self.stop.reason and not self.ended.issuperset(self.place_of | dict.fromkeys(self.todo)):
                raise Stopped(self.stop.reason)
        return ", ".join(f"{signature}: {outcome}" for signature, outcome in self.outcomes.items())

    def _on_cancel(self, number: int, frame: FrameType | None) -> None:
        # Workers are told outside of the handler, which may have interrupted a question to their parent.
        self.cancelled = True

    def _tell(self, number: int) -> None:
        for worker in self.running.values():
            worker.send_signal(number)

    def _fill(self) -> None:
        """Start cells in the places that are free, but those that have been cancelled."""
        while self.todo and len(self.running) < self.entry.cells_per_job:
            self._drop()
            if self.todo:
                self._start(self.todo.popleft())

    def _drop(self) -> None:
        """Leave out waiting cells that were cancelled."""
        from gsq.sweeps.state.cancellation import marked

        cancelled = marked(self.folder)
        if dropped := [signature for signature in self.todo if signature in cancelled]:
            self.todo = deque(signature for signature in self.todo if signature not in cancelled)
            self.ended.update(dropped)
            self._note()
            self.outcomes |= dict.fromkeys(dropped, CANCELLED)

    def _start(self, signature: str) -> None:
        record = read_run(RunFolder.of(self.folder.runs, signature))
        if record.state == DONE:
            self.ended.add(signature)
            self.outcomes[signature] = DONE
            self._note()
            return
        self.begun.add(signature)
        self._note()
        self.before[signature] = record.heartbeat
        taken = {self.place_of[other] for other in self.running}
        place = next(i for i in range(self.entry.cells_per_job) if i not in taken)
        share = len(self.gpus) // self.entry.cells_per_job
        variables = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus[place * share :][:share])} if share else {}
        self.place_of[signature] = place
        self.running[signature] = self.workers.start(signature, variables)

    def _end(self, signature: str, worker: Process) -> None:
        record = read_run(RunFolder.of(self.folder.runs, signature))
        code = worker.returncode
        self.outcomes[signature] = f"exit code {code}"
        written = record.heartbeat != self.before[signature]
        if (code == STOPPED and record.failure != CANCELLED) or (written and record.failure == "preempted"):
            return  # It goes on when SLURM starts the job again.
        if code not in (0, STOPPED):
            with suppress(OSError):
                self._note_death(record, worker)
        self.ended.add(signature)
        self._note()

    def _note_death(self, record: RunRecord, worker: Process) -> None:
        """Record the end of a worker that could not do so itself: the job continues, so SLURM does not notice it."""
        from gsq.sweeps.state.deaths import note_worker_death

        # If the kernel has killed one of several workers, it is the one that is dead.
        kills, self.kills = self.kills, _memory_kills()
        if record.heartbeat == self.before[record.signature]:
            note_worker_death(self.folder, record.signature, worker.returncode)
        elif record.state == RUNNING and record.pid == worker.pid:
            failure = "out_of_memory" if self.kills > kills else "lost"
            note_killed(RunFolder.of(self.folder.runs, record.signature), failure)

    def _note(self) -> None:
        write_turns(self.entry.path, self.job, self.begun, self.ended)


def _memory_kills() -> int:
    """Return how many processes of this job's memory cgroup the kernel has killed; 0 if there is no such group."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            second = not controllers
            if second or "memory" in controllers.split(","):
                root = Path("/sys/fs/cgroup") if second else Path("/sys/fs/cgroup/memory")
                place = root / group.lstrip("/") / ("memory.events" if second else "memory.oom_control")
                if not place.exists():
                    continue
                words = [line.split() for line in place.read_text().splitlines()]
                return next(int(number) for name, number in words if name == "oom_kill")
    return 0
