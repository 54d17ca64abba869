"""Start the workers of a source copy: forked from a warm parent, or as processes of their own where that fails.

There is one parent for each set of environment variables, because modules read them while they are imported, and
because a worker must never run other code than its sweep's copy. Variables that choose GPUs differ from worker to
worker, and take effect after the fork.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gsq.records.attempt import process_start
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.warm_parent import PROGRAM, READY, TOKENIZER
from gsq.sweeps.running.worker import open_log, start_worker, worker_environment, worker_words

# Read after the fork.
OF_A_WORKER = ("CUDA_VISIBLE_DEVICES",)
# Exit code of a worker whose parent was killed, so that nobody knows it.
UNKNOWN = -int(signal.SIGKILL)
# Parents that died before workers are started alone.
PATIENCE = 3


class Process(Protocol):
    """The methods of subprocess.Popen that a driver needs from a worker."""

    pid: int
    returncode: Any

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


class Workers:
    """Starts the workers of one sweep. shared: they share a SLURM job, and end with this process."""

    def __init__(self, folder: SweepFolder, source: Path | str, shared: bool = False) -> None:
        self.folder, self.source, self.shared = folder, str(source), shared
        self.kind = ""
        self.parents: dict[tuple[tuple[str, str], ...], _Parent] = {}
        self.deaths = 0

    def ready(self, signature: str, variables: Mapping[str, str]) -> bool:
        """Return whether ``start`` would not wait for a parent's imports, which this begins."""
        return self._parent(signature, variables).settled(0)

    def start(self, signature: str, variables: Mapping[str, str]) -> Process:
        """Start the worker of a cell, which writes to the cell's log. Waits until its parent is ready."""
        parent = self._parent(signature, variables)
        if parent.settled() and parent.usable:
            open_log(self.folder, signature).close()
            own = {name: variables[name] for name in OF_A_WORKER if name in variables}
            words = worker_words(self.folder, self.source, signature, self.shared)
            log = str(self.folder.log(signature))
            answer = parent.ask({"words": words, "log": log, "variables": own, "shared": self.shared})
            if answer and answer["start"]:
                return _Forked(parent, answer["pid"], answer["start"])
            if answer:
                # It could not write its record.
                parent.reap(answer["pid"])
        return start_worker(self.folder, self.source, signature, variables, self.shared)

    def _parent(self, signature: str, variables: Mapping[str, str]) -> _Parent:
        self.kind = self.kind or (PROGRAM if self.folder.read_cell(signature).config.program else TOKENIZER)
        environment = worker_environment(self.source, variables)
        key = tuple(sorted(pair for pair in environment.items() if pair[0] not in OF_A_WORKER))
        found = self.parents.get(key)
        if found is not None and found.died:
            self.deaths += 1
            found = None
        if found is None:
            usable = sys.platform.startswith("linux") and self.deaths < PATIENCE
            found = self.parents[key] = _Parent(self.kind, environment, usable)
        return found

    def close(self) -> None:
        """End the parents. Workers that still run go on, unless they share a job."""
        for parent in self.parents.values():
            parent.close()
        self.parents.clear()


class _Parent:
    """A warm parent, from the side of its driver."""

    def __init__(self, kind: str, environment: Mapping[str, str], usable: bool) -> None:
        self.usable: bool | None = None if usable else False
        """Whether workers can be forked from it; None while it imports."""
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0
        if usable:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gsq.sweeps.running.warm_parent", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # What keeps it from starting keeps a worker from it too, which says so in the cell's log.
                stderr=subprocess.DEVNULL,
                env=environment,
                # Nothing is left in a buffer for a parent that has died.
                bufsize=0,
                start_new_session=True,
            )

    @property
    def died(self) -> bool:
        """Whether it was usable once and has ended since."""
        return bool(self.usable) and self._process is not None and self._process.poll() is not None

    def settled(self, seconds: float | None = None) -> bool:
        """Wait up to ``seconds``, or without a limit if None, and return whether its imports are done."""
        if self.usable is None and self._process is not None and self._process.stdout is not None:
            if not select.select([self._process.stdout], [], [], seconds)[0]:
                return False
            self.usable = self._process.stdout.readline().decode().strip() == READY
        return True

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer; None if the parent has died.

        Ctrl-C may have interrupted an earlier question, so that its answer, or the end of it, comes first.
        """
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._asked += 1
        with suppress(OSError):
            self._process.stdin.write(json.dumps({"id": self._asked, **request}).encode() + b"\n")
            while line := self._process.stdout.readline():
                with suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict) and found["id"] == self._asked:
                        return found
        return None

    def reap(self, pid: int) -> int:
        """Return the exit code of a worker that has ended."""
        answer = self.ask({"reap": pid})
        return int(answer["code"]) if answer else UNKNOWN

    def close(self) -> None:
        if self._process is None:
            return
        if self.usable is None:
            self._process.kill()  # It is still importing.
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Forked:
    """A worker that a parent has forked. Whether it runs, the kernel says; how it ended, its parent."""

    def __init__(self, parent: _Parent, pid: int, start: str) -> None:
        self.pid, self.returncode = pid, None
        self._parent, self._start = parent, start

    returncode: int | None

    def poll(self) -> int | None:
        if self.returncode is None and process_start(self.pid) != self._start:
            self.returncode = self._parent.reap(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, sig: int) -> None:
        # A zombie keeps its number until its parent has been asked for its end.
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)
