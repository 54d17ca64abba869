"""CMMD (Jayasumana et al., arXiv 2401.09603): maximum mean discrepancy of CLIP embeddings with a Gaussian kernel.

Shapes: N images, k features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsq.metrics.kid import Features
from gsq.metrics.parts import IMAGES, SCALE, SIGMA

BLOCK = 512


def cmmd(originals: Features, reconstructions: Features) -> float:
    """SCALE times the squared discrepancy of embeddings (N, k) that are first scaled to length 1; float64.

    It is the published, biased estimator: pairs of an embedding with itself count. 0 for equal sets.
    """
    x, y = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in map(np.float64, (originals, reconstructions))
    )
    return float(SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y)))


def _mean_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    total = 0.0
    for start in range(0, len(x), BLOCK):
        # Vectors of length 1 have |x - y|^2 = 2 - 2 x.y.
        total += float(np.exp((x[start : start + BLOCK] @ y.T - 1) / SIGMA**2).sum())
    return total / (len(x) * len(y))


class Rows:
    """The features of the first IMAGES images, with the interface of FeatureStatistics."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.float32]] = []

    def update(self, features: Tensor) -> None:
        """features: (N, k)."""
        if sum(map(len, self._rows)) < IMAGES:
            self._rows.append(features.detach().to("cpu", torch.float32).numpy())

    def merge(self, other: Rows) -> None:
        """Add the images that come after these."""
        self._rows += other._rows

    @property
    def array(self) -> Features:
        return np.concatenate(self._rows)[:IMAGES]

    def arrays(self) -> dict[str, Features]:
        return {"rows": self.array}

    @classmethod
    def restored(cls, arrays: Mapping[str, Features]) -> Rows:
        rows = cls()
        rows._rows = [arrays["rows"]]
        return rows
