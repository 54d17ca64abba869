"""Least squares of one problem by scipy's trust region, for starts at which the solver of many problems stalls.

Its steps come from the slopes themselves, and grow short before a bound. Where parameters are nearly confounded, or lie
near their bounds, steps from the normal equations that are cut at the bounds hardly get on.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gsq.analysis.fitting.solver import Problem
from gsq.analysis.tables.table import Array

_TOLERANCE = 1e-12
_FAR = 1e10  # stands for a residual that does not exist


def trust_region(problem: Problem, start: Array, weights: Array, evaluations: int) -> tuple[Array, float, bool]:
    """Minimise a sum of squares, without a prior, from ``start`` (k,) in at most so many evaluations.

    Returns theta (k,), its cost, and whether it has converged.
    """
    # It takes 0.3 s to import, and most laws do not come here.
    from scipy.optimize import least_squares

    # It asks for the residuals of a point and, if it likes them, for their slopes.
    @lru_cache(maxsize=1)
    def both(point: bytes) -> tuple[Array, Array]:
        return _residuals(problem, np.frombuffer(point), weights)

    found = least_squares(
        lambda point: both(point.tobytes())[0],
        start,
        lambda point: both(point.tobytes())[1],
        (problem.low, problem.high),
        x_scale="jac",
        ftol=_TOLERANCE,
        xtol=_TOLERANCE,
        gtol=_TOLERANCE,
        max_nfev=evaluations,
    )
    return found.x, 2 * float(found.cost), found.status > 0


def _residuals(problem: Problem, theta: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted residuals (n,) and their slopes (n, k)."""
    value, slope = problem.form.both(theta[None], problem.data, problem.centre)
    value, slope, root = value[0], slope[:, 0], np.sqrt(weights)
    with np.errstate(all="ignore"):
        if problem.residuals == "log":
            value, slope = np.log(value / problem.target), slope / value
        else:
            value = value - problem.target
        residual, slope = np.where(root > 0, root * value, 0), np.where(root > 0, root * slope, 0)
    return (
        np.nan_to_num(residual, nan=_FAR, posinf=_FAR, neginf=-_FAR),
        np.nan_to_num(slope.T, nan=0, posinf=0, neginf=0),
    )
