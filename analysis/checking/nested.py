"""Test by simulation whether a law is worth what it adds to a simpler one; the level holds where F tables fail.

Under a law without a break, the position of the break means nothing, so that no F or chi-squared table applies. The
simpler law therefore simulates the table many times, and both laws are fitted to each: parametric bootstrap of the
likelihood ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.fit import fit_rows
from gsq.analysis.fitting.noise import pure_error
from gsq.analysis.fitting.result import Fit
from gsq.analysis.fitting.searching import refit
from gsq.analysis.jsonable import jsonable
from gsq.analysis.laws.named import LAWS, Law, get_law
from gsq.analysis.tables.left_out import Excluded
from gsq.analysis.tables.table import Array

_STARTS = 8  # of each refit of a simulated table


@dataclass(frozen=True)
class NestedTest:
    """The test of a law against a simpler one on the same rows."""

    law: str
    simpler: str
    ratio: float
    """The simpler law's sum of squares divided by that of the law."""
    p: float
    """Share of tables simulated from the simpler law with at least this ratio; the table itself counts as one."""
    simulations: int

    @property
    def text(self) -> str:
        verdict = "the rows support the larger law" if self.p < 0.05 else "the rows do not support the larger law"
        return (
            f"{self.law} against {self.simpler}: sum of squares {self.ratio:.3g} times as large without it, p = "
            f"{self.p:.2g} ({self.simulations} simulated tables): {verdict}"
        )

    def to_dict(self) -> dict[str, object]:
        return dict(jsonable(self))


@np.errstate(all="ignore")
def nested_test(fit: Fit, simpler: str | Law | None = None, simulations: int = 199) -> NestedTest:
    """Test the law of ``fit`` against a ``simpler`` one, by default the one that the law names.

    Tables are simulated from the simpler law with normal errors (of logarithms for log residuals) of configurations
    and, if there are replicates, of seeds. The result depends only on the seed in the fit's options. Raises
    AnalysisError for other losses than least squares, where no simpler law is given or it cannot be fitted, and where
    it has as many parameters.
    """
    if fit.options.loss != "least_squares":
        raise AnalysisError(f"a test against a simpler law needs the loss least_squares, got {fit.options.loss}")
    if simulations < 19:
        raise AnalysisError(f"at least 19 simulated tables are needed to reject at 5 %, got {simulations}")
    simpler = simpler if simpler is not None else fit.law.simpler
    if not simpler:
        tested = ", ".join(law.name for law in LAWS.values() if law.simpler)
        raise AnalysisError(f"{fit.law.name} names no simpler law; give one (named ones that do: {tested})")
    null = get_law(simpler, [str(name) for name in fit.rows.columns], target=fit.law.outputs or fit.target)
    small = fit_rows(fit.rows, Excluded.none(fit.rows), null, replace(fit.options, bootstrap=0, intervals="bootstrap"))
    if small.rank >= fit.rank:
        raise AnalysisError(
            f"{null.name} has {small.rank} parameters and {fit.law.name} has {fit.rank}: a test needs a simpler law"
        )
    targets = _simulated(small, simulations)
    costs = [_costs(one, targets) for one in (small, fit)]
    ratios = np.maximum(costs[0] / costs[1], 1)
    ratio = max(small.cost / fit.cost, 1.0)
    p = (1 + int(np.sum(ratios >= ratio))) / (1 + simulations)
    return NestedTest(fit.law.name, null.name, float(ratio), p, simulations)


def _simulated(fit: Fit, count: int) -> Array:
    """Simulate targets (count, n) for which the law of ``fit`` is true."""
    rng = np.random.default_rng([fit.options.seed, 11])
    square, left = pure_error(fit.problem, fit.weights, fit.configurations)
    cells = fit.n_configurations
    within = square / left if left else 0.0
    size = fit.n_rows / cells
    between = max(0.0, (fit.cost - square) / max(1, cells - fit.rank) - within) / size if left else fit.scatter**2
    error = np.sqrt(between) * rng.standard_normal((count, cells))[:, fit.configurations]
    error = error + np.sqrt(within) * rng.standard_normal((count, fit.n_rows))
    error = error / np.sqrt(fit.weights)
    value = fit.problem.predict(fit.theta[None])
    return np.asarray(value * np.exp(error) if fit.residuals == "log" else value + error)


def _costs(fit: Fit, targets: Array) -> Array:
    """Return the sums of squares (m,) of the law's best fits to ``targets`` (m, n)."""
    problem = replace(fit.problem, target=targets)
    weights = np.broadcast_to(fit.weights, targets.shape)
    found = refit(problem, fit.theta, weights, list(fit.ranges), fit.scales, _STARTS, [fit.options.seed, 12])
    return found.cost
