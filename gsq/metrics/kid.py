"""Kernel inception distance: the unbiased squared maximum mean discrepancy of features, for small sets too.

Shapes: N images, k features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsq.metrics.parts import SUBSET

Features = NDArray[np.float32]


def kid(originals: Features, reconstructions: Features, subset: int = SUBSET) -> float:
    """Mean over subsets of an unbiased MMD^2 with the kernel (x.y / k + 1)^3 (Binkowski et al. 2018).

    Row i of both, (N, k) with N >= 2, belongs to the same image, so the sets are dependent and the term between them
    leaves out i = j, like the terms within. (The usual estimator, for independent sets, keeps it, and good
    reconstructions would get a negative distance.) Subsets are consecutive rows in nearly equal parts of 2 to
    ``subset``. float64; the result can be negative. Raises ValueError for fewer than two images.
    """
    if originals.shape != reconstructions.shape or len(originals) < 2:
        raise ValueError(f"kid needs at least 2 images of each kind, got {len(originals)} and {len(reconstructions)}")
    parts = -(-len(originals) // subset)
    found = [
        _squared_discrepancy(a.astype(np.float64), b.astype(np.float64))
        for a, b in zip(np.array_split(originals, parts), np.array_split(reconstructions, parts), strict=True)
    ]
    return float(np.mean(found))


def _squared_discrepancy(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    count, dim = x.shape
    total = (x @ x.T / dim + 1) ** 3 + (y @ y.T / dim + 1) ** 3
    cross = (x @ y.T / dim + 1) ** 3
    total -= cross + cross.T
    return float((total.sum() - np.trace(total)) / (count * (count - 1)))
