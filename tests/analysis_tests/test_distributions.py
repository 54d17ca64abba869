"""Quantiles, tails and ranks against scipy.stats, bit for bit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from gsq.analysis.fitting import distributions as ours

P = np.array([1e-9, 0.025, 0.5, 0.7, 0.95, 0.975, 1 - 1e-9])
X = np.array([-1.0, 0.0, 1e-300, 0.5, 1.0, 3.0, 50.0, 1e5])
FREEDOM = np.array([0.5, 1, 2, 3, 7, 30.5, 1000, 1e7])


def test_quantiles_and_tails_are_those_of_scipy_stats() -> None:
    p, freedom = map(np.array, zip(*product(P, FREEDOM), strict=True))
    assert np.array_equal(ours.t_quantile(p, freedom), stats.t.ppf(p, freedom))
    assert np.array_equal(ours.chi2_quantile(p, freedom), stats.chi2.ppf(p, freedom))
    assert np.array_equal(ours.f_quantile(p, 1, freedom), stats.f.ppf(p, 1, freedom))
    assert np.array_equal(ours.t_quantile(P, np.inf), stats.t.ppf(P, np.inf))
    x, freedom = map(np.array, zip(*product(X, FREEDOM), strict=True))
    assert np.array_equal(ours.chi2_above(x, freedom), stats.chi2.sf(x, freedom))
    assert np.array_equal(ours.f_above(x, 3, freedom), stats.f.sf(x, 3, freedom))
    assert np.array_equal(ours.f_above(x, freedom, 5), stats.f.sf(x, freedom, 5))


@pytest.mark.parametrize("freedom", [0, -1])
def test_nan_without_degrees_of_freedom(freedom: float) -> None:
    values = [
        ours.t_quantile(0.9, freedom),
        ours.chi2_quantile(0.9, freedom),
        ours.chi2_above(1.0, freedom),
        ours.f_quantile(0.9, 1, freedom),
        ours.f_above(1.0, freedom, 2),
        ours.f_above(1.0, 2, freedom),
    ]
    assert np.isnan(values).all()
    assert np.isnan([ours.f_above(np.nan, 1, 2), ours.chi2_above(np.nan, 1)]).all()


def test_ranks_and_their_correlation() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 6, (4, 9)).astype(float)
    for axis in (0, 1):
        assert np.array_equal(ours.ranks(values, axis), stats.rankdata(values, axis=axis))
    values[1, 2] = np.nan
    assert np.array_equal(ours.ranks(values, 1), stats.rankdata(values, axis=1), equal_nan=True)
    for x, y in (random.normal(size=(2, 12)), random.integers(0, 4, (2, 30)), (np.arange(5), np.arange(5) ** 3)):
        expected = stats.spearmanr(x, y)
        assert ours.spearman(x, y) == (expected.statistic, expected.pvalue)
    assert np.isnan(ours.spearman([1, 1, 1], [1, 2, 3])).all()
