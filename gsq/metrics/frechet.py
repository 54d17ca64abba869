"""Frechet distance between two Gaussians fitted to features, in float64.

Shapes: N images, k features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


class FeatureStatistics:
    """Mean and covariance of feature vectors, streamed in one pass and merged exactly (Chan et al. 1979)."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Array = np.zeros(dim)
        self.scatter: Array = np.zeros((dim, dim))

    def update(self, features: Tensor) -> None:
        """features: (N, k), any floating dtype; accumulated in float64."""
        batch = features.detach().to("cpu", torch.float64).numpy()
        other = FeatureStatistics(len(self.mean))
        other.count, other.mean = len(batch), batch.mean(0)
        centred = batch - other.mean
        other.scatter = centred.T @ centred
        self.merge(other)

    def merge(self, other: FeatureStatistics) -> None:
        """Add another set of images."""
        total = self.count + other.count
        delta = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> Array:
        """(k, k), unbiased. Raises ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), from symmetric eigenvalues.

    tr (S_a S_b)^(1/2) is the sum of the square roots of the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is
    symmetric and positive semi-definite, so that rank-deficient covariances need no regularisation.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root @ b.covariance @ root
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(max(distance, 0.0))
