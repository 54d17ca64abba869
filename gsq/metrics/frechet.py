"""Frechet distance between two Gaussians fitted to features, in float64.

Shapes: N images, k features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.linalg import blas, lapack
from torch import Tensor

Array = NDArray[np.float64]

# Rows gathered before an update of the scatter matrix, whose memory traffic costs more than a small batch's products.
BLOCK = 256


class FeatureStatistics:
    """Mean and covariance of feature vectors, streamed in one pass (Chan et al. 1979): no array of all images.

    Parts can be merged in any grouping (batches of any sizes, processes). Results differ by float64 rounding alone,
    about 1e-15 of the scatter's largest entries, and are bitwise equal for equal parts in equal order.
    """

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._mean: Array = np.zeros(dim)
        # Only its lower triangle is kept up to date.
        self._scatter: Array = np.zeros((dim, dim), order="F")
        self._waiting: list[Array] = []

    @classmethod
    def of(cls, count: int, mean: Array, covariance: Array) -> FeatureStatistics:
        """Statistics of ``count`` images with this mean (k,) and unbiased covariance (k, k)."""
        statistics = cls(len(mean))
        statistics._count, statistics._mean = count, np.array(mean, dtype=np.float64)
        statistics._scatter = np.array(covariance, dtype=np.float64, order="F") * (count - 1)
        return statistics

    def arrays(self) -> dict[str, Array]:
        """The whole state, from which ``restored`` makes bitwise equal statistics."""
        self._flush()
        return {"count": np.array(self._count), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def restored(cls, arrays: Mapping[str, Array]) -> FeatureStatistics:
        """Statistics from what ``arrays`` returned. Raises KeyError or ValueError for anything else."""
        statistics = cls(len(arrays["mean"]))
        if arrays["scatter"].shape != statistics._scatter.shape:
            raise ValueError(f"a scatter of shape {arrays['scatter'].shape} for {statistics.dim} features")
        statistics._count, statistics._mean = int(arrays["count"]), np.array(arrays["mean"])
        statistics._scatter = np.asfortranarray(arrays["scatter"])
        return statistics

    @property
    def dim(self) -> int:
        return len(self._mean)

    @property
    def count(self) -> int:
        """Images seen."""
        return self._count + sum(map(len, self._waiting))

    @property
    def mean(self) -> Array:
        """(k,); zeros before the first image."""
        self._flush()
        return self._mean

    @property
    def covariance(self) -> Array:
        """(k, k), unbiased. Raises ValueError for fewer than two images."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        self._flush()
        lower = np.tril(self._scatter)
        return (lower + np.tril(lower, -1).T) / (self._count - 1)

    @property
    def rank_deficient(self) -> bool:
        """True for fewer images than features + 1: the covariance is singular and a distance biased upwards."""
        return self.count < self.dim + 1

    def update(self, features: Tensor) -> None:
        """features: (N, k), any floating dtype; accumulated in float64."""
        batch = features.detach().to("cpu", torch.float64).numpy()
        if len(batch):
            # Copy, since the caller can still write to its tensor.
            self._waiting.append(batch.copy() if features.dtype == torch.float64 else batch)
        if sum(map(len, self._waiting)) >= BLOCK:
            self._flush()

    def merge(self, other: FeatureStatistics) -> None:
        """Add another set of images, leaving ``other`` unchanged."""
        self._flush()
        other._flush()
        if not other._count:
            return
        delta = other._mean - self._mean
        total = self._count + other._count
        self._scatter = np.asfortranarray(self._scatter + other._scatter)
        self._add((delta * np.sqrt(self._count * other._count / total))[None])
        self._mean = self._mean + delta * (other._count / total)
        self._count = total

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting = []
        count, total = len(rows), self._count + len(rows)
        mean = rows.mean(0)
        delta = mean - self._mean
        # Merging two sets adds the outer product of the difference of their means: one more row.
        self._add(np.concatenate([rows - mean, (delta * np.sqrt(self._count * count / total))[None]]))
        self._mean = self._mean + delta * (count / total)
        self._count = total

    def _add(self, rows: Array) -> None:
        """Add rows^T rows to the scatter, in place."""
        self._scatter = blas.dsyrk(1.0, rows.T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), from symmetric eigenvalues, in float64.

    tr (S_a S_b)^(1/2) is the sum of the square roots of the eigenvalues of F^T S_b F with S_a = F F^T. F is a Cholesky
    factor, pivoted if S_a is singular: it has as many columns as S_a has rank, so no root is taken of a rounded zero.
    Raises ValueError for fewer than two images or for statistics that are not finite.
    """
    if a.dim != b.dim:
        raise ValueError(f"statistics of {a.dim} and of {b.dim} features cannot be compared")
    # The factor of the lower rank makes the smaller matrix.
    if b.count < a.count:
        a, b = b, a
    first, second = a.covariance, b.covariance
    difference = a.mean - b.mean
    constant = difference @ difference + np.trace(first) + np.trace(second)
    if not np.isfinite(constant):
        raise ValueError("features are not finite, or too large for a covariance")
    inner = _squeezed(first, second)
    cross = np.sqrt(np.clip(scipy.linalg.eigvalsh(inner, check_finite=False), 0, None)).sum() if len(inner) else 0.0
    return float(max(constant - 2 * cross, 0.0))


def _squeezed(a: Array, b: Array) -> Array:
    """F^T b F for a = F F^T; (rank, rank), symmetric."""
    # The rounding errors of a sum of products reach this share of a's largest entry.
    noise = len(a) * np.finfo(np.float64).eps * a.diagonal().max(initial=0.0)
    factor, failed = lapack.dpotrf(a, lower=1, clean=1)
    if not failed and factor.diagonal().min() ** 2 > noise:
        half = blas.dtrmm(1.0, factor, b, side=1, lower=1)
        return blas.dtrmm(1.0, factor, half, side=0, lower=1, trans_a=1)
    factor, pivots, rank, _ = lapack.dpstrf(a, lower=1, tol=noise)
    columns = np.empty((len(a), rank))
    columns[pivots - 1] = np.tril(factor)[:, :rank]
    return columns.T @ (b @ columns)
