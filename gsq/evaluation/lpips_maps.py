"""The originals' maps in the network of LPIPS, computed once for all runs below a runs folder, where they are small.

``<runs>/originals/<protocol>.lpips`` holds them as float32, image after image and level after level. Half of an
evaluation on a CPU is this network, and half of that the same originals. A GPU computes them faster than it reads them.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from gsq.files import temporary
from gsq.training.losses import LPIPS

# The most that the maps of one protocol may take on the disk, and the least share of its free space that must remain.
LIMIT, SPARE = 2 << 30, 0.9


class KeptMaps:
    """``LPIPS.maps`` of the originals of one protocol."""

    def __init__(self, path: Path, lpips: LPIPS, images: int, size: int) -> None:
        self.path, self.images = path, images
        with torch.no_grad():
            self.shapes = [one.shape[1:] for one in lpips.maps(torch.zeros(1, 3, size, size))]
        self.bytes = 4 * sum(map(math.prod, self.shapes))
        """Bytes of the maps of one image."""
        self._file: BinaryIO | None = None
        self._partial: Path | None = None

    @property
    def small(self) -> bool:
        return self.images * self.bytes <= LIMIT

    @property
    def known(self) -> bool:
        try:
            return self.path.stat().st_size == self.images * self.bytes
        except OSError:
            return False

    def load(self, first: int, stop: int) -> list[Tensor] | None:
        """The maps of images first, first + 1, ..., up to ``stop``; None if there are none."""
        # Read, since pages of a mapped file would count as memory of the run.
        values = np.empty((stop - first) * self.bytes // 4, np.float32)
        try:
            with self.path.open("rb") as file:
                file.seek(first * self.bytes)
                if file.readinto(values.view(np.uint8).data) != values.nbytes:
                    return None
        except OSError:
            return None
        rows = torch.from_numpy(values).view(stop - first, -1)
        parts = rows.split([math.prod(shape) for shape in self.shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def begin(self) -> None:
        """Start a file, unless it would fill the disk. Failing to write one never fails an evaluation."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.images * self.bytes <= (1 - SPARE) * shutil.disk_usage(self.path.parent).free:
                self._partial = temporary(self.path)
                self._file = self._partial.open("wb")

    def add(self, maps: Sequence[Tensor]) -> None:
        """Append the maps of the next images, each (B, C, h, w)."""
        if self._file is None:
            return
        try:
            self._file.write(torch.cat([one.flatten(1) for one in maps], 1).numpy().data)
        except OSError:
            self.end(False)

    def end(self, complete: bool) -> None:
        """Close the file, and keep it if ``complete``."""
        file, self._file = self._file, None
        if file is None or self._partial is None:
            return
        with suppress(OSError):
            file.close()
            if complete:
                self._partial.replace(self.path)
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)
