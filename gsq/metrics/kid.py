"""Kernel inception distance: the unbiased squared maximum mean discrepancy of features, for small sets too.

Shapes: N images, k features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]

SUBSET = 1000
"""Images of a subset, at most."""
IMAGES = 10 * SUBSET
"""Images that the distance is taken over, at most: its memory does not grow with the data set."""
KID = f"cubic kernel, pairs left out, first {IMAGES} images in parts of at most {SUBSET}"


def kid(originals: Features, reconstructions: Features, subset: int = SUBSET) -> float:
    """Mean over subsets of an unbiased MMD^2 with the kernel (x.y / k + 1)^3 (Binkowski et al. 2018).

    Row i of both, (N, k) with N >= 2, is of one image: they are dependent, so that the term between the two sets
    leaves out i = j as the terms within do. (The usual estimator, made for independent sets, keeps it; reconstructions
    near their originals would come out below zero.) Subsets are consecutive rows in nearly equal parts of at most
    ``subset``, at least 2. The result may be negative. float64. Raises ValueError for fewer than two images.
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
