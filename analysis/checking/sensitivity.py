"""Measure how far a prediction depends on arbitrary choices: the floor, the smallest cells, the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gsq.analysis.checking.held_out import carries
from gsq.analysis.fitting.distributions import ranks
from gsq.analysis.fitting.result import Fit, or_none
from gsq.analysis.fitting.searching import refit
from gsq.analysis.fitting.solver import Problem
from gsq.analysis.jsonable import jsonable
from gsq.analysis.tables.table import Array, large_end, numbers

_STARTS = 4  # of each refit: the fit to all rows, and three random ones
_SMALL = 0.2  # of the cells


@dataclass(frozen=True)
class Sensitivity:
    """The prediction at the largest setting under other choices of the fit."""

    at: Mapping[str, float | str]
    """The law's columns, each at its largest measured value, and the first level of each text column."""
    value: float
    """The prediction of the fit itself."""
    instead: Mapping[str, float]
    """The prediction after each change, by the change in words; NaN if the law cannot be refitted."""

    def text(self, target: str) -> str:
        """Return one line of text."""
        place = ", ".join(
            f"{name} = {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in self.at.items()
        )
        changes = ", ".join(
            f"{'cannot be refitted' if np.isnan(value) else f'{value:.4g}'} {change}"
            for change, value in self.instead.items()
        )
        return f"{target} at {place}: {self.value:.4g}; {changes}"

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; NaN becomes None."""
        return {"at": dict(self.at), "prediction": or_none(self.value), "instead": jsonable(self.instead)}


def sensitivity(fit: Fit) -> Sensitivity:
    """Refit with each floor at 0 and at the upper end of its interval (or the smallest target, where that is open),
    without the smallest fifth of the cells, and with the Huber loss (for a Huber fit: least squares)."""
    columns = {name: large_end(name) * numbers(fit.rows, name) for name in fit.law.columns}
    at: dict[str, float | str] = {name: large_end(name) * float(values.max()) for name, values in columns.items()}
    at |= {name: fit.law.levels[name][0] for name in fit.law.factors}
    found: dict[str, float] = {}
    for i in _floors(fit):
        name, (_, high) = fit.law.parameters[i], fit.intervals[fit.law.parameters[i]]
        least = float(fit.problem.target.min())
        limit = min(high, least) if np.isfinite(high) else least
        for words, end in ((f"with {name} = 0", 0.0), (f"with {name} = {limit:.4g} (its upper limit)", limit)):
            found[words] = _refitted(fit, _pinned(fit.problem, i, end), fit.weights, at)
    kept = _without_smallest(fit, np.stack(list(columns.values())))
    able = bool(carries(fit, kept[None])[0])
    found["without the smallest fifth of the cells"] = (
        _refitted(fit, fit.problem, fit.weights * kept, at) if able else np.nan
    )
    if fit.options.loss == "huber":
        found["with least squares"] = _refitted(fit, replace(fit.problem, loss="least_squares"), fit.weights, at)
    else:
        unit = 1.0 if fit.residuals == "log" else float(np.median(np.abs(fit.problem.target)))
        other = replace(fit.problem, loss="huber", delta=1e-3 * unit)
        found["with the Huber loss"] = _refitted(fit, other, fit.weights, at)
    return Sensitivity(at, float(fit.predict(at)[0][0]), found)


def _floors(fit: Fit) -> list[int]:
    """Return the additive constants that are floors, since none of them lies above the predictions."""
    if fit.problem.target.min() <= 0 or not fit.problem.form.exponents:
        return []
    lowest = float(fit.problem.predict(fit.theta[None]).min())
    return [i for i in fit.problem.form.constants if fit.parameters[fit.law.parameters[i]] <= lowest]


def _pinned(problem: Problem, index: int, value: float) -> Problem:
    """Return the problem with one parameter fixed."""
    low, high = problem.low.copy(), problem.high.copy()
    low[index] = high[index] = value
    return replace(problem, low=low, high=high)


def _without_smallest(fit: Fit, columns: Array) -> Array:
    """1 for the rows that stay, (n,): the cells but for the fifth with the lowest mean rank over the columns (c, n)."""
    size = ranks(columns, axis=1).mean(axis=0)
    cells = np.array([size[fit.configurations == cell].mean() for cell in range(fit.n_configurations)])
    order = np.argsort(cells, kind="stable")[: max(1, int(_SMALL * len(cells)))]
    return np.where(np.isin(fit.configurations, order), 0.0, 1.0)


@np.errstate(all="ignore")
def _refitted(fit: Fit, problem: Problem, weights: Array, at: Mapping[str, float | str]) -> float:
    found = refit(problem, fit.theta, weights[None], list(fit.ranges), fit.scales, _STARTS, [fit.options.seed, 4])
    other = replace(fit, problem=problem, theta=found.theta[0])
    value = float(other.predict(at)[0][0])
    return value if np.isfinite(found.cost[0]) else np.nan
