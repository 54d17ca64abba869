"""Which process trains a run, where several could."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gsq.records.attempt import STALE_SECONDS
from gsq.records.folder import RunFolder
from gsq.records.read import read_run


@contextmanager
def claim(folder: RunFolder, patience: float = STALE_SECONDS) -> Iterator[bool]:
    """Whether the caller may train this run: False where another process does, and shows signs of life.

    Nothing rests on it but work saved, for two attempts do each other no harm: where the file system has no
    locks, or a dead node's outlives it, the caller goes on after ``patience`` seconds without such a sign.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / ".lock").open("a") as file:
        before, deadline = read_run(folder).heartbeat, time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if read_run(folder).heartbeat != before:
                    yield False
                    return
                if time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
            except OSError:
                pass  # No locks here.
            yield True
            return
