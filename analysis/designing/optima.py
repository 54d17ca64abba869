"""Find rival optima: local minima of a law's fit between which the rows so far cannot decide.

With few rows a fit has several minima of nearly the same sum of squares whose predictions lie far apart. Each counts
with the likelihood that it has where the scatter is not known, (sum of squares)^(-rows / 2), over that of the best.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gsq.analysis.fitting.result import Fit
from gsq.analysis.fitting.searching import draw_starts, search
from gsq.analysis.tables.table import Array, Index

_LEAST = 1e-3  # weight of an optimum that still counts, over the best one's
_SAME = 0.05  # of the scatter: optima whose predictions differ by less are one
_EXACT = 1e-8  # of the variance of the outcomes: a scatter that counts as none


def leading(cost: Array, wanted: Array, rows: int, variance: float, count: int) -> tuple[Index, Array]:
    """Return at most ``count`` minima with different predictions, the best first, and their weights.

    ``cost``: sums of squares (m,) over ``rows`` rows, whose outcomes have this ``variance``; ``wanted``: what each
    minimum predicts (m, t).
    """
    least = rows * max(_EXACT * variance, 1e-300)
    order = np.argsort(cost)
    log = -rows / 2 * np.log((cost + least) / (cost[order[0]] + least))
    scatter = np.sqrt((cost[order[0]] + least) / rows)
    kept: list[int] = []
    for i in order:
        if kept and not log[i] > np.log(_LEAST):
            break
        apart = [np.sqrt(np.mean((wanted[i] - wanted[j]) ** 2)) for j in kept]
        if np.isfinite(wanted[i]).all() and all(one > _SAME * scatter for one in apart):
            kept.append(int(i))
        if len(kept) == count:
            break
    chosen = np.array(kept or [int(order[0])])
    weights = np.exp(log[chosen])
    return chosen, np.asarray(weights / weights.sum())


def rival_optima(fit: Fit, data: Array, count: int) -> list[tuple[Fit, float]]:
    """``fit`` and up to ``count`` - 1 rivals of it at other minima that predict otherwise at ``data`` (q, t), and the
    weights of all, which sum to 1."""
    if count < 2:
        return [(fit, 1.0)]
    problem = fit.problem
    start = draw_starts(
        problem, list(fit.ranges), fit.scales, fit.weights[None], fit.options.starts, [fit.options.seed, 7]
    )
    found = search(problem, np.concatenate([fit.theta[None], start]), fit.weights)
    good = np.flatnonzero(np.isfinite(found.cost))
    theta, cost = found.theta[good], found.cost[good]
    with np.errstate(all="ignore"):
        wanted, outcome = problem.predict(theta, data), problem.target
        if fit.residuals == "log":
            wanted, outcome = np.log(wanted), np.log(outcome)
    kept, weights = leading(cost, wanted, fit.n_rows, float(np.var(outcome)), count)
    return [(replace(fit, theta=theta[i], cost=float(cost[i])), float(w)) for i, w in zip(kept, weights, strict=True)]
