"""Frechet distances against closed forms and scipy."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_features import random

from gsq.metrics.frechet import FeatureStatistics, frechet_distance

Array = NDArray[np.float64]


def exact(mean: Array, covariance: Array, count: int = 100) -> FeatureStatistics:
    return FeatureStatistics.of(count, mean, covariance)


def streamed(features: Array, *parts: int) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    for part in np.split(features, np.cumsum(parts)):
        statistics.update(torch.from_numpy(part))
    return statistics


# Frechet distance.


@pytest.mark.parametrize("dim", [1, 5, 64])
def test_distance_of_commuting_gaussians(dim: int) -> None:
    """Covariances with the same axes: sum of squared differences of standard deviations, and of the means."""
    axes = np.linalg.qr(random(0).normal(size=(dim, dim)))[0]
    s, t = random(1).uniform(0.1, 2, (2, dim))
    m, n = random(2).normal(size=(2, dim))
    a, b = exact(m, (axes * s**2) @ axes.T), exact(n, (axes * t**2) @ axes.T)
    wanted = ((m - n) ** 2).sum() + ((s - t) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-8)


def test_distance_in_two_dimensions_by_hand() -> None:
    """tr (S1 S2)^(1/2) of 2 x 2 matrices is sqrt(tr S1 S2 + 2 sqrt(det S1 S2))."""
    s, t = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    cross = math.sqrt(np.trace(s @ t) + 2 * math.sqrt(np.linalg.det(s @ t)))
    wanted = 9 + 16 + 3 + 4 - 2 * cross
    assert frechet_distance(exact(np.zeros(2), s), exact(np.array([3.0, 4.0]), t)) == pytest.approx(wanted, rel=1e-8)


def test_distance_equals_scipys_square_root() -> None:
    mix = random(3).normal(size=(2, 24, 24)) / 4
    x, y = random(4).normal(size=(200, 24)) @ mix[0], random(5).normal(size=(150, 24)) @ mix[1] + 0.3
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert frechet_distance(streamed(x), streamed(y)) == pytest.approx(wanted, rel=1e-6)


def test_equal_sets_have_no_distance() -> None:
    x = random(6).normal(size=(100, 20))
    assert frechet_distance(streamed(x), streamed(x)) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(streamed(x), streamed(x[::-1].copy())) == pytest.approx(0, abs=1e-10)


def test_rank_deficient_covariances() -> None:
    """Fewer images than features: 8 images that span 7 axes, and the same with those axes twice as wide."""
    x = np.zeros((8, 50))
    x[:, :8] = np.eye(8)
    a, b = streamed(x), streamed(2 * x)
    # S_b = 4 S_a, so that the distance is |mean|^2 + tr S_a.
    wanted = (x.mean(0) ** 2).sum() + np.trace(np.cov(x.T))
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-6)
    apart = np.zeros((8, 50))
    apart[:, 20:28] = np.eye(8)
    # No common axis: nothing crosses.
    wanted = 2 * (x.mean(0) ** 2).sum() + 2 * np.trace(np.cov(x.T))
    assert frechet_distance(a, streamed(apart)) == pytest.approx(wanted, rel=1e-6)


def test_a_shift_of_all_features_is_its_square() -> None:
    x = random(7).normal(size=(300, 10)) * 100
    assert frechet_distance(streamed(x), streamed(x + 0.01)) == pytest.approx(10 * 0.01**2, rel=1e-4)


@pytest.mark.parametrize("parts", [(), (1, 1, 5, 90), (50,), (3,) * 40])
def test_streaming_equals_one_pass(parts: tuple[int, ...]) -> None:
    # Far from the origin: sums of squares would lose half the digits.
    x = random(8).normal(size=(157, 12)) + 1e4
    found = streamed(x, *parts)
    assert found.count == 157
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-10, atol=1e-10)


def test_merging_equals_one_pass() -> None:
    x = random(9).normal(size=(100, 12)) + 50
    merged = FeatureStatistics(12)
    for part in np.split(x, [7, 60]):
        merged.merge(streamed(part))
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-10)
    np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-10, atol=1e-10)
    merged.merge(FeatureStatistics(12))
    assert merged.count == 100


def test_float32_features_are_accumulated_in_float64() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 1000
    statistics = FeatureStatistics(4)
    for part in x.split(5):
        statistics.update(part)
    np.testing.assert_allclose(statistics.covariance, np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 600), max_size=6), st.integers(0, 3))
def test_any_split_and_merge_is_the_same(seed: int, cuts: list[int], processes: int) -> None:
    """Batches of any sizes, on any number of processes: to the rounding of float64."""
    x = random(seed).normal(size=(600, 5)) * [1, 1e3, 1e-3, 1, 1] + [0, 1e3, 0, 50, -3]
    parts = np.split(x, sorted(cuts))
    merged = FeatureStatistics(5)
    for i in range(processes + 1):
        share = FeatureStatistics(5)
        for part in parts[i :: processes + 1]:
            share.update(torch.from_numpy(part))
        merged.merge(pickle.loads(pickle.dumps(share)))
    whole = np.cov(x.T)
    assert merged.count == 600
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    scale = np.sqrt(np.outer(whole.diagonal(), whole.diagonal()))
    np.testing.assert_allclose(merged.covariance / scale, whole / scale, rtol=0, atol=1e-12)


def test_statistics_are_restored_bit_for_bit() -> None:
    before = streamed(random(10).normal(size=(300, 7)), 100, 77)
    after = FeatureStatistics.restored(before.arrays())
    assert after.count == 300 and np.array_equal(after.mean, before.mean)
    assert np.array_equal(after.covariance, before.covariance)
    with pytest.raises(ValueError, match="scatter of shape"):
        FeatureStatistics.restored({**before.arrays(), "mean": np.zeros(3)})


def test_a_features_tensor_may_be_overwritten() -> None:
    statistics, buffer = FeatureStatistics(3), torch.zeros(4, 3, dtype=torch.float64)
    for i in range(5):
        buffer.fill_(i)
        statistics.update(buffer)
    assert statistics.mean.tolist() == [2, 2, 2]


@pytest.mark.parametrize(("rows", "others"), [(30, 40), (120, 40), (30, 300), (81, 81)])
def test_rank_deficient_distance_is_exact(rows: int, others: int) -> None:
    """tr (S_a S_b)^(1/2) is the nuclear norm of X Y^T, for centred features X and Y: no root of rounding noise."""
    x, y = random(11).normal(size=(rows, 80)), random(12).normal(size=(others, 80)) + 0.5
    a, b = ((v - v.mean(0)) / np.sqrt(len(v) - 1) for v in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross
    found = streamed(x), streamed(y)
    assert [s.rank_deficient for s in found] == [rows < 81, others < 81]
    assert frechet_distance(*found) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(*reversed(found)) == pytest.approx(wanted, rel=1e-8)


def test_features_that_never_vary() -> None:
    still, moving = streamed(np.ones((10, 4))), streamed(random(13).normal(size=(10, 4)))
    assert frechet_distance(still, still) == 0
    wanted = ((1 - moving.mean) ** 2).sum() + np.trace(moving.covariance)
    assert frechet_distance(still, moving) == pytest.approx(wanted, rel=1e-12)


def test_features_that_are_not_finite_are_refused() -> None:
    x = random(14).normal(size=(10, 3))
    x[4, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(streamed(x), streamed(x))
    with pytest.raises(ValueError, match="3 and of 2 features"):
        frechet_distance(streamed(x), streamed(np.ones((3, 2))))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        _ = streamed(np.ones((1, 3))).covariance
