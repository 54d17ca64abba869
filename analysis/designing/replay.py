"""Measure what a designed order of runs saves: replay a finished study cell by cell in other orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.designing.information import RIDGE, variances_after
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.fit import fit_determined
from gsq.analysis.fitting.options import Options, Residuals
from gsq.analysis.fitting.result import Fit, or_none
from gsq.analysis.fitting.searching import refit
from gsq.analysis.laws.named import Law, get_law
from gsq.analysis.tables.table import Array, Index, numbers


@dataclass(frozen=True)
class Replay:
    """Errors of a law as runs arrive, in a designed order and in random orders.

    An error is the largest deviation, over all rows, of the predictions so far from those of the fit to all rows:
    relative, or with linear residuals over the range of those. Costs count from the start, whose rows every order
    shares.
    """

    full: Fit
    """The fit to all rows."""
    start: tuple[int, ...]
    """Rows of ``full.rows`` that every order begins with."""
    start_cost: float
    order: tuple[int, ...]
    """The designed order of the other rows."""
    cost: Array
    """Cumulative cost after the start and after each further run of the designed order, (steps + 1,)."""
    error: Array
    """Error at each of these costs, (steps + 1,)."""
    random_cost: Array
    """Cumulative cost of each random order, (orders, steps + 1)."""
    random_error: Array
    tolerance: float

    def reached(self, *, first: bool = False) -> float:
        """Return the cost from which the designed order's error stays within the tolerance, or first reaches it."""
        return float(_reach(self.cost[None], self.error[None], self.tolerance, first)[0])

    def random_reached(self, *, first: bool = False) -> Array:
        """Return the same cost for each random order, (orders,)."""
        return _reach(self.random_cost, self.random_error, self.tolerance, first)

    def ratio(self, *, first: bool = False) -> float:
        """Return the designed order's cost over that of the median random order; NaN if neither needs any."""
        median = float(np.median(self.random_reached(first=first)))
        return self.reached(first=first) / median if median > 0 else np.nan

    def runs(self, cost: float) -> int:
        """Count the runs of the designed order up to ``cost``."""
        return int((self.cost[1:] <= cost * (1 + 1e-12)).sum())

    def text(self) -> str:
        """Return both costs and their ratio, for staying within the tolerance and for first reaching it."""
        lines = [
            f"{self.full.law.name}: from {len(self.start)} of {self.full.n_rows} rows to the predictions of the fit to "
            f"all, within {self.tolerance:.0%} on every row"
        ]
        for words, first in (("for good", False), ("for the first time", True)):
            mine, others = self.reached(first=first), self.random_reached(first=first)
            low, median, high = np.quantile(others, [0.05, 0.5, 0.95])
            lines.append(
                f"  {words}: designed order {mine:.3g} ({self.runs(mine)} runs); median of {len(others)} random orders "
                f"{median:.3g} [{low:.3g}, {high:.3g}]; ratio {self.ratio(first=first):.2f}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        kinds = {"for_good": False, "first_time": True}
        return {
            "law": self.full.law.name,
            "rows": self.full.n_rows,
            "start": list(self.start),
            "start_cost": self.start_cost,
            "order": list(self.order),
            "tolerance": self.tolerance,
            "orders": len(self.random_cost),
            **{
                name: {
                    "designed": self.reached(first=first),
                    "random_median": float(np.median(self.random_reached(first=first))),
                    "ratio": or_none(self.ratio(first=first)),
                }
                for name, first in kinds.items()
            },
        }


def replay(
    frame: pd.DataFrame,
    law: str | Law,
    cost: str | Array,
    start: Sequence[int],
    *,
    orders: int = 200,
    tolerance: float = 0.05,
    seed: int = 0,
    starts: int = 8,
    residuals: Residuals = "log",
) -> Replay:
    """Replay a finished study from the rows ``start``: fit, choose the next row, add its value, and repeat.

    The designed order takes each time the row that lowers the widest prediction interval over all rows the most for its
    cost, the criterion of ``design(..., "predict")``, around the fit to the rows so far; values of rows not yet taken
    are never looked at. Random orders are permutations of the same rows.

    frame: finished runs, every one of which the law can use. cost: a column, or values above 0, (rows,). start:
    positions of rows. starts: of each refit of a random order, the fit before and random ones; the designed
    order, on which all that follows depends, gets four times as many. residuals: "log", whose errors are relative, or
    "linear", whose errors are over the range of the full fit's predictions, for outcomes that may be 0 or negative. For
    outcomes held out, or budgets, see :func:`analysis.replay_budgets`.

    Raises AnalysisError like :func:`analysis.fit`, for a row that cannot be used, or for costs that are missing.
    """
    chosen = get_law(law, [str(name) for name in frame.columns])
    rows, excluded = chosen.rows(frame)
    if len(rows) < len(frame):
        why = excluded.text or f"{chosen.name} takes {len(rows)} of {len(frame)} rows, the last of each run"
        raise AnalysisError(f"replay needs every row of the table: {why}; leave the others out first")
    price = numbers(frame, cost) if isinstance(cost, str) else np.asarray(cost, dtype=np.float64)
    if price.shape != (len(rows),) or not (np.isfinite(price) & (price > 0)).all():
        raise AnalysisError(f"cost must be one number above 0 for each of {len(rows)} rows")
    first = np.unique(np.asarray(start, dtype=np.int64))
    if not len(first) or first[0] < 0 or first[-1] >= len(rows) or len(first) >= len(rows):
        raise AnalysisError(f"start must be some, but not all, of the row numbers 0 to {len(rows) - 1}; got {start}")
    full = fit_determined(rows, excluded, chosen, Options(residuals=residuals, bootstrap=0, seed=seed))
    goal = full.problem.predict(full.theta[None])[0]
    scale = np.abs(goal) if residuals == "log" else float(np.ptp(goal)) or 1.0

    def refitted(taken: Array, theta: Array, count: int, step: int) -> tuple[Array, Array]:
        """Parameters and errors of fits to the rows marked in ``taken`` (m, rows)."""
        weights, ranges = taken * full.weights, list(full.ranges)
        found = refit(full.problem, theta, weights, ranges, full.scales, count, [seed, 5, step])
        with np.errstate(all="ignore"):
            error = (np.abs(full.problem.predict(found.theta) - goal) / scale).max(axis=1)
        return found.theta, np.nan_to_num(error, nan=np.inf)

    others = np.setdiff1d(np.arange(len(rows)), first)
    steps = len(others) + 1
    taken = np.zeros((1, len(rows)))
    taken[:, first] = 1
    begun, begun_error = refitted(taken, full.theta, 4 * starts, 0)
    order: list[int] = []
    error = np.full(steps, begun_error[0])
    theta, mine = begun, taken.copy()
    for step in range(1, steps):
        order.append(_next(full, theta[0], mine[0], price))
        mine[0, order[-1]] = 1
        theta, one = refitted(mine, theta, 4 * starts, step)
        error[step] = one[0]
    shuffled = np.random.default_rng([seed, 6]).permuted(np.tile(others, (orders, 1)), axis=1)
    theta, theirs = np.tile(begun, (orders, 1)), np.tile(taken, (orders, 1))
    random_error = np.full((orders, steps), begun_error[0])
    for step in range(1, steps):  # all orders at once
        np.put_along_axis(theirs, shuffled[:, [step - 1]], 1, axis=1)
        theta, random_error[:, step] = refitted(theirs, theta, starts, step)
    return Replay(
        full=full,
        start=tuple(int(row) for row in first),
        start_cost=float(price[first].sum()),
        order=tuple(order),
        cost=np.concatenate([[0.0], np.cumsum(price[order])]),
        error=error,
        random_cost=np.concatenate([np.zeros((orders, 1)), np.cumsum(price[shuffled], axis=1)], axis=1),
        random_error=random_error,
        tolerance=tolerance,
    )


def _next(full: Fit, theta: Array, taken: Array, price: Array) -> int:
    """Choose the row to run next."""
    value, slope = full.problem.form.both(theta[None], full.problem.data, full.problem.centre)
    slopes = slope[:, 0].T
    if full.residuals == "log":
        slopes = slopes / value[0][:, None]
    size = np.linalg.norm(slopes, axis=0)
    slopes = np.nan_to_num(slopes / np.where(size > 0, size, 1))
    covariance = np.linalg.inv(np.einsum("r,ri,rj->ij", taken, slopes, slopes) + RIDGE * np.eye(slopes.shape[1]))
    left = np.flatnonzero(taken == 0)
    now = np.einsum("rk,kl,rl->r", slopes, covariance, slopes).max()
    after = variances_after(covariance, slopes[left], np.ones(len(left)), slopes).max(axis=1)
    return int(left[np.argmax(np.log(now / np.maximum(after, 1e-300)) / price[left])])


def _reach(cost: Array, error: Array, tolerance: float, first: bool) -> Array:
    """Return the cost at which each order (m, steps + 1) first reaches the tolerance, or stays within it."""
    within = error <= tolerance
    if first:
        step = np.argmax(within, axis=1)
    else:
        outside: Index = (~within).astype(np.int64)
        step = np.where(outside.any(axis=1), within.shape[1] - np.argmax(outside[:, ::-1], axis=1), 0)
    return np.asarray(np.take_along_axis(cost, np.minimum(step, cost.shape[1] - 1)[:, None], axis=1)[:, 0])
