"""Improved precision and recall of Kynkaanniemi et al. (arXiv 1904.06991): images inside the other set's manifold.

Shapes: N images, k features. A set's manifold is the union of balls around its features, each as large as the distance
to the NEIGHBOURS-th nearest other feature of the set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsq.config.run import NEIGHBOURS
from gsq.metrics.kid import Features

# Rows of a block of distances, so that memory grows as N, not N^2.
BLOCK = 512

Array = NDArray[np.float64]


def precision_recall(
    originals: Features, reconstructions: Features, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Share of reconstructions in the originals' manifold, and of originals in the reconstructions'; float64.

    Both (N, k). Raises ValueError unless there are more images of each kind than neighbours.
    """
    if min(len(originals), len(reconstructions)) <= neighbours:
        raise ValueError(f"precision and recall need more than {neighbours} images of each kind")
    # Distances do not depend on the origin, and lose the fewest digits near the mean.
    centre = originals.mean(0, dtype=np.float64)
    real, made = originals - centre, reconstructions - centre
    return _covered(made, real, neighbours), _covered(real, made, neighbours)


def _squared_distances(x: Array, y: Array) -> Array:
    return np.maximum((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T, 0)


def _covered(points: Array, centres: Array, neighbours: int) -> float:
    radii = np.empty(len(centres))
    for start in range(0, len(centres), BLOCK):
        block = _squared_distances(centres[start : start + BLOCK], centres)
        # A feature is no neighbour of itself.
        block[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        radii[start : start + BLOCK] = np.partition(block, neighbours - 1, axis=1)[:, neighbours - 1]
    inside = [
        (_squared_distances(points[start : start + BLOCK], centres) <= radii).any(1)
        for start in range(0, len(points), BLOCK)
    ]
    return float(np.concatenate(inside).mean())
