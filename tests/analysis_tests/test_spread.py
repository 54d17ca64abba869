"""The expected spread between rivals against a simulation of the runs."""

from __future__ import annotations

import numpy as np
import pytest

from gsq.analysis.designing.spread import spread, spread_after


def test_the_expected_spread_is_that_of_simulated_runs() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([0.5, 0.3, 0.2])
    value, variance = rng.normal(0, 1, (3, 2)), rng.uniform(0.3, 1.0, (3, 2))
    wanted, gain = rng.normal(0, 1, (3, 4)), rng.normal(0, 0.3, (3, 4, 2))
    found = spread_after(weights, value, variance, wanted, gain)
    right = rng.choice(3, 200_000, p=weights)
    for c in range(2):
        outcome = rng.normal(value[right, c], np.sqrt(variance[right, c]))
        density = weights[:, None] * np.exp(-((outcome - value[:, [c]]) ** 2) / 2 / variance[:, [c]])
        density /= np.sqrt(variance[:, [c]])
        then = density / density.sum(0)
        moved = wanted[:, :, None] + gain[:, :, [c]] * (outcome - value[:, None, [c]])
        middle = np.einsum("mn,mtn->tn", then, moved)
        simulated = np.einsum("mn,mtn->tn", then, (moved - middle) ** 2).mean()
        assert found[c] == pytest.approx(simulated, rel=0.02)


def test_a_run_that_all_rivals_predict_alike_leaves_their_spread() -> None:
    weights, wanted = np.array([0.6, 0.4]), np.array([[1.0, 2.0], [3.0, 2.0]])
    assert spread(weights, wanted) == pytest.approx(0.6 * 0.4 * 4 / 2)
    alike = spread_after(weights, np.zeros((2, 1)), np.ones((2, 1)), wanted, np.zeros((2, 2, 1)))
    assert alike[0] == pytest.approx(spread(weights, wanted))
    apart = spread_after(weights, np.array([[0.0], [50.0]]), np.ones((2, 1)), wanted, np.zeros((2, 2, 1)))
    assert apart[0] == pytest.approx(0, abs=1e-12)
