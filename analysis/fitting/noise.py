"""Seed noise and lack of fit, from replicates."""

from __future__ import annotations

import numpy as np

from gsq.analysis.fitting.distributions import chi2_above, chi2_quantile, f_above
from gsq.analysis.fitting.options import Options
from gsq.analysis.fitting.result import LackOfFit
from gsq.analysis.fitting.solver import Problem
from gsq.analysis.tables.table import (
    Array,
    Index,
)


def pure_error(problem: Problem, weights: Array, configurations: Index) -> tuple[float, int]:
    """Return the sum of squares of seeds about their configuration's mean, and its degrees of freedom."""
    goal = np.log(problem.target) if problem.residuals == "log" else problem.target
    heavy = np.bincount(configurations, weights)
    mean = np.bincount(configurations, weights * goal) / heavy
    return float(np.sum(weights * (goal - mean[configurations]) ** 2)), len(goal) - len(heavy)


def lack_of_fit(cost: float, pure: tuple[float, int], left: int, options: Options) -> LackOfFit | None:
    """Test whether the law misses configurations by more than seeds scatter; ``left``: their degrees of freedom."""
    if options.loss != "least_squares" or left < 1:
        return None
    misfit = max(cost - pure[0], 0.0)
    total = left + pure[1]
    # A smaller seed noise than this rejects the law at 5 %.
    least = float(np.sqrt(cost / chi2_quantile(0.95, total)))
    if options.noise is not None:
        return LackOfFit(options.noise, None, float(chi2_above(cost / options.noise**2, total)), least)
    if pure[1] < 1:
        return LackOfFit(None, None, None, least)
    noise = float(np.sqrt(pure[0] / pure[1]))
    p = float(f_above(misfit / left / noise**2, left, pure[1])) if noise > 0 else (0.0 if misfit > 1e-20 else 1.0)
    return LackOfFit(noise, pure[1], p, least)
