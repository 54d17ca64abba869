"""Seed noise and lack of fit, from replicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gsq.analysis.fitting.distributions import chi2_above, chi2_quantile, f_above
from gsq.analysis.fitting.options import Options
from gsq.analysis.fitting.solver import Problem
from gsq.analysis.tables.table import (
    Array,
    Index,
)


@dataclass(frozen=True)
class LackOfFit:
    """Whether a law misses the configurations by more than seeds scatter."""

    noise: float | None
    """Standard deviation between seeds (relative for log residuals): estimated, or as given; None without seeds."""
    freedom: int | None
    """Degrees of freedom of the estimate; None where it was given."""
    p: float | None
    """Probability of so large a misfit if the law were right; None without seeds."""
    rejected_below: float
    """A seed noise smaller than this would reject the law at 5 %."""
    pooled: bool = False
    """Whether it is that of several outputs, whose noise counts by their weights: a number in the unit of none."""

    @property
    def text(self) -> str:
        if self.noise is None or self.p is None:
            if self.pooled:
                return "no seeds to measure noise by"
            return (
                f"no seeds to measure noise by; a seed noise below {self.rejected_below:.2g} would reject the law "
                "at 5 %"
            )
        source = "as given" if self.freedom is None else f"{self.freedom} degrees of freedom"
        verdict = "the law is rejected at 5 %" if self.p < 0.05 else "no lack of fit found"
        noise = "seeds of all outputs, by their weights" if self.pooled else f"seed noise {self.noise:.2g}"
        return f"{noise} ({source}): p = {self.p:.2g}, {verdict}"


def pure_error(problem: Problem, weights: Array, configurations: Index) -> tuple[float, int]:
    """Return the sum of squares of seeds about their configuration's mean, and its degrees of freedom."""
    goal = np.log(problem.target) if problem.residuals == "log" else problem.target
    heavy = np.bincount(configurations, weights)
    mean = np.bincount(configurations, weights * goal) / heavy
    return float(np.sum(weights * (goal - mean[configurations]) ** 2)), len(goal) - len(heavy)


def lack_of_fit(
    cost: float, pure: tuple[float, int], left: int, options: Options, pooled: bool = False
) -> LackOfFit | None:
    """Test whether the law misses configurations by more than seeds scatter; ``left``: their degrees of freedom.
    ``pooled``: the rows are those of several outputs."""
    if options.loss != "least_squares" or left < 1:
        return None
    misfit = max(cost - pure[0], 0.0)
    total = left + pure[1]
    # A smaller seed noise than this rejects the law at 5 %.
    least = float(np.sqrt(cost / chi2_quantile(0.95, total)))
    if options.noise is not None:
        return LackOfFit(options.noise, None, float(chi2_above(cost / options.noise**2, total)), least)
    if pure[1] < 1:
        return LackOfFit(None, None, None, least, pooled)
    noise = float(np.sqrt(pure[0] / pure[1]))
    p = float(f_above(misfit / left / noise**2, left, pure[1])) if noise > 0 else (0.0 if misfit > 1e-20 else 1.0)
    return LackOfFit(noise, pure[1], p, least, pooled)
