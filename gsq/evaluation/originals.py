"""Features of the original images under a protocol, computed once for all runs below a runs folder.

``<runs>/originals/<protocol>.npz`` holds the statistics of all originals and the features of the first ones, for the
kernel distance. It appears whole, and all writers write the same; the lock beside it only avoids duplicate work.
"""

from __future__ import annotations

import json
import os
import socket
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsq.files import whole
from gsq.metrics.cmmd import Rows
from gsq.metrics.frechet import FeatureStatistics
from gsq.records.attempt import process_start

FOLDER = "originals"
# Seconds without a sign of life after which the holder of a lock counts as dead.
STALE_SECONDS = 120.0


Collected = FeatureStatistics | Rows


def collected(distance: str) -> type[FeatureStatistics] | type[Rows]:
    """What one of evaluation.distances keeps of the features that it sees."""
    return Rows if distance == "cmmd" else FeatureStatistics


class _Part(dict[str, Any]):
    """The arrays of one distance, by their names without it."""

    def __init__(self, arrays: Any, distance: str) -> None:
        prefix = f"{distance}/"
        super().__init__({n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)})


@dataclass(frozen=True)
class Originals:
    """Features (k dimensions) of the originals of one protocol."""

    statistics: FeatureStatistics
    features: NDArray[np.float32]
    """(N, k): features of the first N images, see gsq.metrics.parts.IMAGES."""
    distances: Mapping[str, Collected] = field(default_factory=dict)
    """What each further distance keeps, by name."""


class Store:
    """The originals of one protocol below a runs folder. It writes below ``originals`` alone."""

    def __init__(self, runs: Path, protocol: str) -> None:
        self.path = runs / FOLDER / f"{protocol}.npz"
        self.lock = self.path.with_suffix(".lock")
        self._seen: tuple[int, float] | None = None
        self._written = 0.0

    def load(self) -> Originals | None:
        """The saved originals; None if there are none or the file is damaged."""
        try:
            with np.load(self.path) as arrays:
                names = dict.fromkeys(name.partition("/")[0] for name in arrays.files if "/" in name)
                distances = {name: collected(name).restored(_Part(arrays, name)) for name in names}
                return Originals(FeatureStatistics.restored(arrays), arrays["features"], distances)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def save(self, originals: Originals) -> None:
        """Save the originals, replacing an earlier file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {**originals.statistics.arrays(), "features": originals.features}
        for name, kept in originals.distances.items():
            arrays |= {f"{name}/{key}": values for key, values in kept.arrays().items()}
        with whole(self.path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def claim(self) -> bool:
        """Try to take the lock, also from a dead holder. Returns whether it is ours now."""
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
        """Give a sign of life as the holder of the lock."""
        if monotonic() - self._written > STALE_SECONDS / 10:
            self._written = monotonic()
            # The lock is gone if another process took this one for dead, which only costs that process time.
            with suppress(OSError):
                os.utime(self.lock)

    def release(self) -> None:
        self.lock.unlink(missing_ok=True)

    def abandoned(self) -> bool:
        """Whether there is a lock whose holder is dead, as far as repeated calls of this process can tell."""
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
        # Count time on this machine's clock since the file last changed; clocks of other machines may differ.
        now = monotonic()
        if self._seen is None or self._seen[0] != changed:
            self._seen = (changed, now)
        return now - self._seen[1] > STALE_SECONDS

    def waiting(self) -> bool:
        """Whether another process is computing the originals."""
        return self.lock.exists() and not self.abandoned()
