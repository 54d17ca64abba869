"""Replay a design on a finished study, and score its predictions at each of several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.designing.pool import Part, Settings
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.options import Residuals
from gsq.analysis.fitting.result import or_none
from gsq.analysis.jsonable import jsonable
from gsq.analysis.laws.named import Law, get_law
from gsq.analysis.tables.table import Array, Index, numbers

_FIRST = 2  # times as many starts for fits that are scored
_SCORED = 16  # minima that a prediction is the median of
_STEPS, _LATE = 150, 600  # steps of the best starts, and of those of fits that are scored


@dataclass(frozen=True)
class BudgetReplay:
    """Predictions of the held-out rows at each budget."""

    budgets: tuple[float, ...]
    """The budgets, as shares of the cost of the whole pool."""
    truth: Array
    """Outcomes of the held-out rows, (rows,)."""
    predictions: Array
    """Predictions of the held-out rows at each budget, (budgets, rows)."""
    table: pd.DataFrame
    """One row for each group and budget: group, budget, runs, spent (share of the pool's cost), rmse, r2."""
    order: pd.DataFrame
    """One row for each run: group, run, row (its first in the pool), cost, spent; the runs given come first."""

    def r2(self, budget: float) -> float:
        """1 - squared errors over squared deviations from the mean outcome, over all held-out rows together."""
        return r_squared(self.truth, self.predictions[self.budgets.index(budget)])

    def to_dict(self) -> dict[str, object]:
        """JSON-ready: the score of all held-out rows at each budget, that of each group, and the order of the runs."""
        return {
            "budgets": [{"budget": one, "r2": or_none(self.r2(one))} for one in self.budgets],
            "groups": jsonable(self.table.to_dict("records")),
            "order": jsonable(self.order.to_dict("records")),
        }

    def text(self) -> str:
        """One line a budget."""
        lines = []
        for budget in self.budgets:
            rows = self.table[self.table["budget"] == budget]
            lines.append(
                f"{budget:.3g} of the cost: {rows['runs'].sum()} runs for {rows['spent'].mean():.3g}, held-out R2 "
                f"{self.r2(budget):.3f}"
            )
        return "\n".join(lines)


def r_squared(truth: Array, value: Array) -> float:
    """1 - squared errors over squared deviations from the mean; minus infinity where a value is not finite."""
    if not np.isfinite(value).all():
        return -np.inf
    return float(1 - np.sum((truth - value) ** 2) / max(float(np.sum((truth - truth.mean()) ** 2)), 1e-300))


def cheapest_runs(
    pool: pd.DataFrame, law: str | Law, cost: str, by: str | None = None, share: float = 0.02
) -> list[int]:
    """Choose the rows that a study begins with (for each value of ``by``): its cheapest, 2.5 for each
    parameter of the law, at most ``share`` of its cost together, and one at least (the start of arXiv 2604.22753)."""
    most = int(2.5 * len(get_law(law, [str(name) for name in pool.columns]).parameters))
    price, found = numbers(pool, cost), []
    studies = pool.groupby(by, sort=False).indices.values() if by else [np.arange(len(pool))]
    for rows in map(np.asarray, studies):
        order = rows[np.argsort(price[rows], kind="stable")][:most]
        within = np.cumsum(price[order]) <= share * price[rows].sum()
        found += [int(row) for row in order[: max(1, int(within.sum()))]]
    return found


def replay_budgets(
    pool: pd.DataFrame,
    law: str | Law | Sequence[str | Law],
    cost: str,
    held_out: pd.DataFrame,
    budgets: Sequence[float],
    start: Sequence[int],
    *,
    by: str | None = None,
    each: str | None = None,
    run: str | None = None,
    target: str | None = None,
    residuals: Residuals = "log",
    cost_exponent: float = 0.5,
    optima: int = 4,
    starts: int = 32,
    average: bool = True,
    seed: int = 0,
) -> BudgetReplay:
    """Buy runs of a finished study one by one, and score the law's predictions of the ``held_out`` rows.

    pool: finished runs, with outcomes. law: one, or rivals, which count with their AICc weights. cost: the
    column of costs, above 0. held_out: rows with the same columns, whose outcomes only the score looks at.
    budgets: shares of the pool's cost, 0 to 1. start: positions of the rows that every order begins with, whatever
    they cost; rows of a run come together.
    by: a column, each value of which is a study of its own (its law, its start, its budget); the score is of all.
    each: a column, each value of which has parameters of its own though runs are bought together (several outputs).
    run: a column that says which rows one run gives, all at once; without it, each row is a run.
    cost_exponent, optima: as for :func:`analysis.design`. average: predict the median, by weight, of up to 16 minima
    of each law instead of the best one. starts: random starts of a fit, twice as many at each budget. Parameters that
    the runs bought so far do not determine are pulled weakly towards the middle of their bounds, if both are finite.

    Raises AnalysisError for columns, costs, outcomes or budgets that cannot be used, or a group without a start.
    """
    given = [law] if isinstance(law, str | Law) else list(law)
    names = [str(name) for name in pool.columns]
    laws = [get_law(one, names, target=target) for one in given]
    how = Settings(residuals, cost_exponent, optima, starts, seed=seed)
    budgets = tuple(sorted({float(one) for one in budgets}))
    _check(pool, held_out, laws, cost, budgets, start, how, by, each, run)
    price = numbers(pool, cost)
    truth = numbers(held_out, laws[0].target)
    groups = list(pool[by].drop_duplicates()) if by else [None]
    begun = np.zeros(len(pool), dtype=bool)
    begun[np.asarray(start, dtype=np.int64)] = True
    predictions = np.full((len(budgets), len(held_out)), np.nan)
    table, order = [], []
    for group in groups:
        here = np.flatnonzero(pool[by] == group) if by else np.arange(len(pool))
        far = np.flatnonzero(held_out[by] == group) if by else np.arange(len(held_out))
        if not len(far):
            continue
        if not begun[here].any():
            raise AnalysisError(f"start has no row with {by} = {group}; every study begins with a row or more")
        study = _Study(pool.iloc[here], held_out.iloc[far], laws, price[here], begun[here], each, run, how, average)
        for at, budget in enumerate(budgets):
            predictions[at, far] = study.spend(budget)
            value, outcome = predictions[at, far], truth[far]
            table.append(
                {
                    "group": group,
                    "budget": budget,
                    "runs": len(study.bought),
                    "spent": study.spent / study.total,
                    "rmse": float(np.sqrt(np.mean((value - outcome) ** 2))),
                    "r2": r_squared(outcome, value),
                }
            )
        paid = np.cumsum(study.cost[study.bought])
        order += [
            {"group": group, "run": i, "row": int(here[study.first[one]]), "cost": study.cost[one], "spent": total}
            for i, (one, total) in enumerate(zip(study.bought, paid, strict=True))
        ]
    seen = np.isfinite(predictions).any(axis=0) if by else np.ones(len(held_out), dtype=bool)
    return BudgetReplay(budgets, truth[seen], predictions[:, seen], pd.DataFrame(table), pd.DataFrame(order))


class _Study:
    """The state of one group: its parts, and the runs bought so far."""

    def __init__(
        self,
        pool: pd.DataFrame,
        held_out: pd.DataFrame,
        laws: Sequence[Law],
        price: Array,
        begun: Array,
        each: str | None,
        run: str | None,
        how: Settings,
        average: bool,
    ) -> None:
        self.how, self.average = how, average
        self.runs: Index = pd.factorize(pool[run])[0] if run else np.arange(len(pool))
        self.cost = np.bincount(self.runs, price)
        self.first = np.unique(self.runs, return_index=True)[1]
        self.total, self.size = float(price.sum()), len(held_out)
        levels = list(pool[each].drop_duplicates()) if each else [None]
        self.rows = [np.flatnonzero(pool[each] == level) if each else np.arange(len(pool)) for level in levels]
        self.far = [np.flatnonzero(held_out[each] == level) if each else np.arange(len(held_out)) for level in levels]
        self.parts = [
            Part(laws, pool.iloc[rows], held_out.iloc[far], self.runs[rows], len(self.cost), how)
            for rows, far in zip(self.rows, self.far, strict=True)
        ]
        self.bought = list(dict.fromkeys(self.runs[np.flatnonzero(begun)].tolist()))
        self.left = np.ones(len(self.cost), dtype=bool)
        self.left[self.bought] = False
        self.fit(how.starts)

    @property
    def spent(self) -> float:
        return float(self.cost[self.bought].sum())

    def fit(self, starts: int, steps: int = _STEPS, most: int | None = None) -> None:
        for part in self.parts:
            part.fit(part.taken(self.bought), starts, steps, most or self.how.optima)

    def spend(self, budget: float) -> Array:
        """Buy all the runs that the budget affords, and predict the held-out rows, (rows,)."""
        most = budget * self.total * (1 + 1e-9)
        while True:
            new = self.batch(most)
            if not new:
                break
            self.fit(max(self.how.starts // 4, 1))
        self.fit(_FIRST * self.how.starts, _LATE, _SCORED if self.average else 1)
        found = np.empty(self.size)
        for part, far in zip(self.parts, self.far, strict=True):
            part.linearise(part.taken(self.bought))
            found[far] = part.predictions(self.average)
            part.keep(self.how.optima * len(part.laws))
        return found

    def batch(self, most: float) -> int:
        """Buy at least one run, and up to a tenth as many as were bought, before the next fit; return how many."""
        spent, count = self.spent, 0
        while count < max(1, int(self.how.batch * len(self.bought))):
            free = np.flatnonzero(self.left & (spent + self.cost <= most))
            if not len(free):
                break
            if not count:
                for part in self.parts:
                    part.linearise(part.taken(self.bought))
            gain = sum(part.gains(free) for part in self.parts)
            chosen = int(free[np.argmax(gain / self.cost[free] ** self.how.cost_exponent)])
            for part in self.parts:
                part.add(chosen)
            self.bought.append(chosen)
            self.left[chosen] = False
            spent += float(self.cost[chosen])
            count += 1
        return count


def _check(
    pool: pd.DataFrame,
    held_out: pd.DataFrame,
    laws: Sequence[Law],
    cost: str,
    budgets: Sequence[float],
    start: Sequence[int],
    how: Settings,
    *columns: str | None,
) -> None:
    """Raise AnalysisError for input that :func:`replay_budgets` cannot use; ``columns`` are by, each and run."""
    if not laws or len({one.target for one in laws}) > 1:
        raise AnalysisError("give one law, or several of the same target, to replay")
    if not budgets or not all(0 < one <= 1 for one in budgets):
        got = ", ".join(f"{one:g}" for one in budgets) or "none"
        raise AnalysisError(f"budgets are shares of the pool's cost, above 0 and up to 1 (0.05: 5 %); got {got}")
    if (
        how.optima < 1
        or how.starts < 1
        or not 0 <= how.cost_exponent < np.inf
        or how.residuals not in ("log", "linear")
    ):
        raise AnalysisError(
            f"optima and starts must be at least 1, cost_exponent 0 or more, residuals 'log' or 'linear'; got {how}"
        )
    read = list(dict.fromkeys(name for one in laws for name in (*one.columns, one.target)))
    of_pool = [name for name in columns if name is not None]
    of_both = [name for name in columns[:2] if name is not None]
    for words, verb, frame, wanted, also in (
        ("the pool", "has", pool, [*read, cost], of_pool),
        ("the held-out rows", "have", held_out, read, of_both),
    ):
        for name in (*wanted, *also):
            if name not in frame:
                raise AnalysisError(
                    f"{words} {verb} no column {name!r}; columns: {', '.join(map(str, frame.columns[:12]))}"
                )
        for name in wanted:
            bad = ~np.isfinite(numbers(frame, name))
            if bad.any():
                raise AnalysisError(
                    f"{words}: {name} is not a number in {bad.sum()} of {len(frame)} rows; leave those rows out first"
                )
    if not (numbers(pool, cost) > 0).all():
        raise AnalysisError(f"cost {cost!r} must be above 0 for every row of the pool")
    if how.residuals == "log" and not (numbers(pool, laws[0].target) > 0).all():
        raise AnalysisError(
            f"{laws[0].target} is not positive in every row of the pool, and log residuals take its logarithm; pass "
            "residuals='linear'"
        )
    first = np.asarray(start, dtype=np.int64)
    if not len(first) or first.min() < 0 or first.max() >= len(pool):
        raise AnalysisError(f"start must be row numbers of the pool, 0 to {len(pool) - 1}; got {list(start)[:8]}")
