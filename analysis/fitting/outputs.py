"""Fit several outputs that share parameters: the weight of each, and whether their errors are correlated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from gsq.analysis.fitting.distributions import t_quantile
from gsq.analysis.fitting.identify import slopes, unit_columns
from gsq.analysis.fitting.noise import pure_error
from gsq.analysis.fitting.options import Intervals
from gsq.analysis.fitting.solver import Problem, solve
from gsq.analysis.laws.named import Law
from gsq.analysis.tables.outputs import OUT, scales
from gsq.analysis.tables.table import Array, Index, labels
from gsq.words import counted

_ROUNDS = 20  # of the weights, and of the law with them
_TOGETHER, _SURE = 0.3, 0.01  # correlation of the errors of two outputs, and its p-value, that are pointed out


@dataclass(frozen=True)
class Output:
    """One of several outputs that were fitted together."""

    rows: int
    rmse: float
    log_rmse: float
    scatter: float
    """Standard deviation of a run about the law (relative for log residuals); its weight is the inverse square."""
    best: float
    """Its prediction at :attr:`Fit.best`, with the interval."""
    interval: tuple[float, float]
    noise: float
    """Standard deviation between its seeds (relative for log residuals); NaN without seeds."""

    @property
    def text(self) -> str:
        relative = "" if np.isnan(self.log_rmse) else f" (log {self.log_rmse:.3g})"
        noise = "" if np.isnan(self.noise) else f", seed noise {self.noise:.3g}"
        return f"{counted(self.rows, 'row')}, RMSE {self.rmse:.4g}{relative}, scatter {self.scatter:.3g}{noise}"


@np.errstate(all="ignore")
def by_output(fit: Any) -> dict[str, Output]:
    """Size and errors of each of the several outputs of a :class:`gsq.analysis.Fit`, whose module imports this one;
    empty where there is one."""
    value, names = fit.problem.predict(fit.theta[None])[0], labels(fit.rows, OUT) if fit.law.outputs else None
    error, log_error = fit.problem.target - value, np.log(fit.problem.target) - np.log(value)
    found = {}
    for name in fit.law.outputs:
        here = names == name
        rmse, log_rmse = (float(np.sqrt(np.mean(one[here] ** 2))) for one in (error, log_error))
        scatter = fit.scatter * float(np.sqrt(np.mean(1 / fit.weights[here])))
        central, low, high = (float(one[0]) for one in fit.predict({**fit.best, OUT: name}))
        own = fit.weights[here] / np.mean(fit.weights[here])
        cells = np.unique(fit.configurations[here], return_inverse=True)[1]
        pure, seeds = pure_error(replace(fit.problem, target=fit.problem.target[here]), own, cells)
        noise = float(np.sqrt(pure / seeds)) if seeds else np.nan
        found[name] = Output(int(np.sum(here)), rmse, log_rmse, scatter, central, (low, high), noise)
    return found


@np.errstate(all="ignore")
def weighed(problem: Problem, theta: Array, weights: Array, law: Law, rows: pd.DataFrame) -> Array:
    """``weights`` (n,) over the variance of each output about the law, found in turn with the law from ``theta`` (k,).

    Their geometric mean is that of ``weights``, so that sums of squares of laws compare as likelihoods do.
    """
    own, found = weights, theta[None]
    for _ in range(_ROUNDS if law.outputs else 0):
        value = problem.predict(found)[0]
        residual = np.log(value / problem.target) if problem.residuals == "log" else value - problem.target
        robust = problem.loss != "least_squares"
        slope = np.sqrt(own)[:, None] * slopes(problem, found)[0]
        leverage = np.square(np.linalg.qr(unit_columns(problem, slope, found[0])[0])[0]).sum(axis=1)
        variance = scales(rows, law.outputs, np.sqrt(weights) * residual, leverage, robust) ** 2
        new = weights * np.exp(np.mean(np.log(variance))) / variance
        if np.allclose(new, own, rtol=1e-3):
            break
        own, found = new, solve(problem, found, new).theta
    return own


def output_remarks(law: Law, rows: pd.DataFrame, runs: Index, error: Array, kind: Intervals) -> list[str]:
    """Find outputs whose errors (n,) correlate over the ``runs`` (n,), which profile intervals assume independent."""
    if not law.outputs or kind != "profile":
        return []
    table = pd.DataFrame({"run": runs, OUT: labels(rows, OUT), "error": error})
    wide = table.groupby(["run", OUT])["error"].mean().unstack()
    found = []
    for one, other in combinations(law.outputs, 2):
        both = wide[[one, other]].dropna()
        if len(both) < 4 or both.std().min() == 0:
            continue
        together = float(np.corrcoef(both[one], both[other])[0, 1])
        size = abs(together) * np.sqrt((len(both) - 2) / max(1 - together**2, 1e-12))  # Student's t
        if abs(together) > _TOGETHER and size > t_quantile(1 - _SURE / 2, len(both) - 2):
            found.append(
                f"the errors of {one} and {other} go together (correlation {together:+.2f}), so that profile "
                "intervals of what they share are too narrow: use those of the bootstrap, which keeps the outputs of "
                "a run together (--intervals bootstrap)"
            )
    return found
