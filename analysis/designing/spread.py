"""Measure how far rival predictions lie apart, now and as expected after one more run.

Rivals are laws, or local minima of one law's fit, with weights w_i. The variance of a prediction under all of them is
the mean of their own variances plus the spread between them, sum over i < j of w_i w_j (f_i - f_j)^2. A run with
outcome y moves each f_i by its gain times (y - m_i), and the weights by Bayes' rule; the expected spread is the mean
over y, taken by Gauss-Hermite quadrature in each rival's predictive distribution (the second half of the mean squared
prediction error that Li et al., arXiv 2604.22753, reduce; the first is V-optimality).

Shapes: m rivals, t things wanted, c candidates.
"""

from __future__ import annotations

import numpy as np

from gsq.analysis.tables.table import Array

_NODES = 7


def spread(weights: Array, wanted: Array) -> float:
    """Return the weighted variance between rivals, averaged over the wanted quantities ``wanted`` (m, t)."""
    middle = weights @ wanted
    return float(np.mean(weights @ (wanted - middle) ** 2))


def spread_after(weights: Array, value: Array, variance: Array, wanted: Array, gain: Array) -> Array:
    """Expected :func:`spread` after one run of each candidate, (c,).

    ``value`` and ``variance`` (m, c) are each rival's prediction of the run's outcome, ``gain`` (m, t, c) is how far
    ``wanted`` (m, t) moves for each unit by which the outcome differs from that prediction.
    """
    nodes, share = np.polynomial.hermite_e.hermegauss(_NODES)
    share = share / share.sum()
    rivals = range(len(weights))
    outcome = value[:, None] + np.sqrt(variance)[:, None] * nodes[:, None]  # (m, nodes, c)
    with np.errstate(all="ignore"):
        log = (
            np.log(weights)[:, None, None, None]
            - 0.5 * (outcome - value[:, None, None]) ** 2 / variance[:, None, None]
            - 0.5 * np.log(variance)[:, None, None]
        )
        then = np.exp(log - log.max(axis=0))
    then /= then.sum(axis=0)  # weight of each rival, (m, m, nodes, c), once that outcome is known
    mass = weights[:, None, None] * share[:, None]
    found = np.zeros(value.shape[1])
    for i in rivals:
        for j in range(i):
            still = (wanted[i] - wanted[j])[:, None] - gain[i] * value[i] + gain[j] * value[j]
            moves = gain[i] - gain[j]
            # The squared distance is a quadratic in the outcome.
            a, b, c = (still**2).mean(0), 2 * (still * moves).mean(0), (moves**2).mean(0)
            found += (mass * then[i] * then[j] * (a + b * outcome + c * outcome**2)).sum((0, 1))
    return found
