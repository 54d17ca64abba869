"""Features of the original images under a protocol: computed once below a runs folder, shared by all of its runs.

``<runs>/originals/<protocol>.npz`` holds the statistics of all originals and the features of the first ones, for the
kernel distance. It is written whole or not at all, so that whoever finds it may use it, and two that write it write
the same; the lock beside it only keeps a thousand runs from doing the same work.
"""

from __future__ import annotations

import json
import os
import socket
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsq.files import whole
from gsq.metrics.frechet import FeatureStatistics
from gsq.records.attempt import process_start

FOLDER = "originals"
# Without a sign of life for so long, the holder of a lock is taken for dead.
STALE_SECONDS = 120.0


@dataclass(frozen=True)
class Originals:
    """Features of the originals of one protocol, of k dimensions."""

    statistics: FeatureStatistics
    features: NDArray[np.float32]
    """(N, k), of the first N images, see gsq.metrics.kid.IMAGES."""


class Store:
    """Where one protocol's originals lie below a runs folder. It reads, and writes below ``originals`` alone."""

    def __init__(self, runs: Path, protocol: str) -> None:
        self.path = runs / FOLDER / f"{protocol}.npz"
        self.lock = self.path.with_suffix(".lock")
        self._seen: tuple[int, float] | None = None
        self._written = 0.0

    def load(self) -> Originals | None:
        """What is there; None where nothing is, or not a whole file."""
        try:
            with np.load(self.path) as arrays:
                return Originals(FeatureStatistics.restored(arrays), arrays["features"])
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def save(self, originals: Originals) -> None:
        """Replace the file atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {**originals.statistics.arrays(), "features": originals.features}
        with whole(self.path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def claim(self) -> bool:
        """Take the lock, or one whose holder is dead; whether it is ours now."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        if self.abandoned():
            self.lock.unlink(missing_ok=True)
        try:
            with self.lock.open("x") as file:
                json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        except FileExistsError:
            return False
        self._written = monotonic()
        return True

    def refresh(self) -> None:
        """A sign of life from the holder, now and then."""
        if monotonic() - self._written > STALE_SECONDS / 10:
            self._written = monotonic()
            # Gone where someone took this process for dead, which costs their time only.
            with suppress(OSError):
                os.utime(self.lock)

    def release(self) -> None:
        self.lock.unlink(missing_ok=True)

    def abandoned(self) -> bool:
        """Whether there is a lock and its holder is dead, as far as this process has seen; asked again and again."""
        try:
            changed = self.lock.stat().st_mtime_ns
            holder = json.loads(self.lock.read_text())
        except FileNotFoundError:
            self._seen = None
            return False
        except (OSError, ValueError):
            holder = {}
        if holder.get("host") == socket.gethostname() and not process_start(holder["pid"]):
            return True
        # By this machine's own clock since it last saw the file change: clocks of other machines may differ.
        now = monotonic()
        if self._seen is None or self._seen[0] != changed:
            self._seen = (changed, now)
        return now - self._seen[1] > STALE_SECONDS

    def waiting(self) -> bool:
        """Whether another process is at work on it."""
        return self.lock.exists() and not self.abandoned()
