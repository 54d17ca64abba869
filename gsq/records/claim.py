"""The claim of one process to train a run."""

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
    """Yield True if the caller may train this run, False while another live process does.

    The lock only avoids duplicate work, since two attempts at a run do no harm. Without locks in the file system, or
    with one that outlived its node, the caller goes on after ``patience`` seconds without a sign of life.
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
                pass  # The file system has no locks.
            yield True
            return
