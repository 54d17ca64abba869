"""The kernel distance against torchmetrics and by its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_features import random
from torchmetrics.image.kid import poly_mmd

from gsq.metrics.kid import kid


def test_kid_is_torchmetrics_without_the_pairs() -> None:
    """Both are unbiased; torchmetrics' kernel between the sets, which it takes for independent, has a diagonal."""
    x, y = (random(i).normal(size=(50, 8)).astype(np.float32) + 0.1 * i for i in (20, 21))
    theirs = float(poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double()))
    cross = (x.astype(np.float64) @ y.T / 8 + 1) ** 3
    without = (cross.sum() - np.trace(cross)) / (50 * 49)
    assert kid(x, y) == pytest.approx(theirs + 2 * cross.mean() - 2 * without, rel=1e-9)


def test_kid_is_unbiased_for_pairs() -> None:
    """The mean is zero for reconstructions with the originals' distribution, however much a pair has in common."""
    found = []
    for seed in range(400):
        shared, own = random(seed).normal(size=(2, 20, 4))
        other = random(10_000 + seed).normal(size=(20, 4))
        found.append(kid((shared + own).astype(np.float32), (shared + other).astype(np.float32)))
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(len(found))
    x = random(22).normal(size=(30, 4)).astype(np.float32)
    assert kid(x, x) == 0


def test_kid_of_subsets_is_their_mean() -> None:
    x, y = random(23).normal(size=(2, 90, 4)).astype(np.float32)
    parts = [kid(x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60)]
    assert kid(x, y, subset=30) == kid(x, y, subset=40) == pytest.approx(np.mean(parts), rel=1e-12)
    # Nearly equal parts: none of a single image, of which there would be no pairs.
    assert math.isfinite(kid(x[:31], y[:31], subset=30))
    with pytest.raises(ValueError, match="at least 2"):
        kid(x[:1], y[:1])
