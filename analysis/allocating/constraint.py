"""The constraint on an allocation: the cost, and which columns are free, held or limited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.allocating.optimum import Bools, Search
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.result import Fit
from gsq.analysis.laws.formula import read_expression
from gsq.analysis.laws.syntax import names_of, numeric
from gsq.analysis.tables.columns import labels
from gsq.analysis.tables.table import Array, is_results, numbers, quoted, unquoted, with_derived
from gsq.words import span

_SIZES = ("N", "params", "parameters", "n_params", "num_params")
_EXAMPLES = ("D", "tokens", "n_tokens", "num_tokens")
_AROUND = 1e3  # a free column without limits is searched this many times beyond its measured range
_MOST_FREE = 4
Limits = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Constraint:
    """The cost as a function of columns, and its values and columns in the measured rows."""

    text: str
    """The cost expression as the user wrote it."""
    source: str
    """Where a default cost comes from; "" if the user named the cost."""
    search: Search
    measured: dict[str, tuple[float, float]]
    """Least and largest measured value of each free column."""
    given: frozenset[str]
    """Free columns whose limits the user gave."""
    here: Bools
    """The fitted rows at the levels of the search, (n,): all, unless levels have parameters of their own."""
    costs: Array
    """Cost of each of these rows."""

    @property
    def free(self) -> tuple[str, ...]:
        return self.search.free

    @property
    def held(self) -> dict[str, float | str]:
        """What is held, by column."""
        return {**self.search.levels, **self.search.fixed}

    def at_held(self, fit: Fit) -> Bools:
        """Return which fitted rows lie at what is held, (n,)."""
        found = self.here.copy()
        for name, value in self.search.fixed.items():
            found &= numbers(fit.rows, name) == value if name in fit.rows else True
        return found

    def held_text(self) -> str:
        return ", ".join(f"{n} = {v if isinstance(v, str) else format(v, 'g')}" for n, v in self.held.items())


def default_cost(fit: Fit) -> tuple[str, str]:
    """Return the default cost and where it comes from: 6 N D for a law of parameters and tokens, and the measured cost
    of gsq's own runs for one of parameters and images. Raises AnalysisError for a law of other columns."""
    columns = fit.law.columns
    size = [name for name in _SIZES if name in columns]
    data = [name for name in _EXAMPLES if name in columns]
    if len(size) == len(data) == 1:
        return f"6 * {size[0]} * {data[0]}", "six FLOPs a parameter and token"
    if {"parameters", "images_seen"} <= {*columns} and is_results(fit.rows) and "train_flops" in fit.rows:
        each = numbers(fit.rows, "train_flops") / numbers(fit.rows, "parameters") / numbers(fit.rows, "images_seen")
        each = each[np.isfinite(each)]
        if len(each):
            low, middle, high = np.quantile(each, [0, 0.5, 1])
            return (
                f"{middle:.4g} * parameters * images_seen",
                f"the median of train_flops over parameters * images_seen, which is "
                f"{span(f'{low:.3g}', f'{high:.3g}')}",
            )
    raise AnalysisError(
        f"{fit.law.name} reads {', '.join(columns)}, for which there is no default cost: name one with --cost, such as "
        f'--cost "6 * {quoted(columns[0])}' + (f' * {quoted(columns[1])}"' if len(columns) > 1 else '"')
    )


def read_constraint(
    fit: Fit, cost: str | None, at: Mapping[str, float | str], within: Limits, largest: float | None
) -> Constraint:
    """Read the constraint on the columns of ``fit``'s law; ``largest`` is the largest budget that will be asked for.

    Raises AnalysisError for a cost that cannot be read, that depends on none of the law's columns, or that does not
    rise with a free column, and for a column of the law or the cost that has no value.
    """
    text, source = (cost, "") if cost else default_cost(fit)
    law = fit.law
    asked = {unquoted(name): value for name, value in at.items()}
    levels = _levels_of(fit, asked)
    here = np.all([labels(fit.rows, name) == level for name, level in levels.items()], axis=0)
    here = np.broadcast_to(here, len(fit.rows))
    rows = with_derived(fit.rows[here])
    within = {unquoted(name): pair for name, pair in within.items()}
    tree = read_expression(text, list(dict.fromkeys([*law.columns, *map(str, rows.columns)])), "the cost")
    priced = names_of(tree, text)
    for name in {*asked, *within} - {*law.columns, *priced, *law.factors}:
        raise AnalysisError(
            f"{name!r} is in neither the law nor the cost; they read "
            f"{', '.join(dict.fromkeys([*law.columns, *priced]))}"
        )
    held = {name: _number(name, value) for name, value in asked.items() if name not in law.factors}
    free = tuple(name for name in law.columns if name in priced and name not in held)
    if not free:
        raise AnalysisError(
            f"the cost {text!r} depends on none of the columns that {law.name} reads ({', '.join(law.columns)})"
            + (" and that --at leaves free" if held else "")
            + ", so a budget would limit nothing; name a cost that depends on them (--cost)"
        )
    if len(free) > _MOST_FREE:
        raise AnalysisError(
            f"{len(free)} columns are free ({', '.join(free)}); at most {_MOST_FREE}: hold some with --at"
        )
    others = [name for name in (*law.columns, *priced) if name not in free and name not in held]
    fixed = {**held, **{name: _held(rows, name, law.columns) for name in others}}
    for name in set(within) - set(free):
        raise AnalysisError(f"--within {name}: {name} is held at {fixed[name]:g}; limits are for {', '.join(free)}")
    measured = {name: _range(rows, name) for name in free}
    for name, (low, high) in measured.items():
        if low == high:
            raise AnalysisError(
                f"{name} is {low:g} in all rows, so that {law.name} cannot say how much of it is best: add runs with "
                f"other values, or hold it with --at {name}={low:g}"
            )
    evaluate = numeric(tree)
    with np.errstate(all="ignore"):
        costs = evaluate({**fixed, **{name: numbers(rows, name) for name in priced if name in rows}})
        costs = np.broadcast_to(np.asarray(costs, dtype=np.float64), len(rows))
    if not (np.isfinite(costs) & (costs > 0)).all():
        raise AnalysisError(
            f"the cost {text!r} must be a positive number; for a measured cell it is "
            f"{costs[~(costs > 0) | ~np.isfinite(costs)][0]:g}"
        )
    more = max(1.0, (largest or 0) / float(costs.max()))
    ends = [within.get(n, (measured[n][0] / _AROUND, measured[n][1] * _AROUND * more)) for n in free]
    for name, (low, high) in zip(free, ends, strict=True):
        if not 0 < low < high < np.inf:
            raise AnalysisError(f"--within {name}={low:g}:{high:g}: give two numbers above 0, the smaller first")
    # The cost gives the column that may vary the most; the others are searched.
    wide = sorted(range(len(free)), key=lambda i: ends[i][1] / ends[i][0])
    free, ends = tuple(free[i] for i in wide), [ends[i] for i in wide]
    limits = np.log(ends)
    search = Search(law, evaluate, free, fixed, limits[:, 0], limits[:, 1], levels)
    middle = np.array([[np.log(np.sqrt(low * high)) for low, high in (measured[name] for name in free)]])
    with np.errstate(all="ignore"):
        inside = np.isfinite(search.cost_at(middle)).all()
    if not inside:
        what = ", ".join(f"{name}={value:g}" for name, value in fixed.items() if name in priced)
        raise AnalysisError(f"the cost {text!r} is not a positive number with {what}; hold other values with --at")
    for i, name in enumerate(free):
        step = np.eye(len(free))[i] * 0.1
        if not search.cost_at(middle + step)[0] > search.cost_at(middle - step)[0]:
            raise AnalysisError(f"the cost {text!r} does not rise with {name}, so a budget does not limit {name}")
    return Constraint(text, source, search, measured, frozenset(within), here, np.asarray(costs))


def _levels_of(fit: Fit, at: Mapping[str, float | str]) -> dict[str, str]:
    """Return the level of each column by which the law's parameters are indexed: the one in ``at``, or the only one."""
    found = {}
    for name in fit.law.factors:
        known = fit.law.levels[name]
        asked = at.get(name, known[0] if len(known) == 1 else None)
        level = f"{asked:.15g}" if isinstance(asked, int | float) else asked
        if level not in known:
            got = "" if asked is None else f", got {level}"
            raise AnalysisError(
                f"{fit.law.name} has parameters for each {name} ({', '.join(known)}), and an allocation is for one of "
                f"them{got}: hold it with --at {name}={known[0]}"
            )
        found[name] = level
    return found


def _number(name: str, value: float | str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise AnalysisError(f"--at {name}={value}: {name} is held at a finite number, such as {name}=12")
    return number


def _held(rows: pd.DataFrame, name: str, columns: tuple[str, ...]) -> float:
    values = np.unique(numbers(rows, name))
    if len(values) == 1 and np.isfinite(values[0]):
        return float(values[0])
    where = "law, but not in the cost" if name in columns else "cost, but not in the law"
    raise AnalysisError(
        f"{name} is in the {where}, so that the budget alone does not say how much of it is best, and the rows have "
        f"several values of it ({values[0]:g} to {values[-1]:g}): hold it with --at {name}={values[-1]:g}"
    )


def _range(rows: pd.DataFrame, name: str) -> tuple[float, float]:
    values = numbers(rows, name)
    if not (values > 0).all():
        raise AnalysisError(
            f"{name} must be above 0 to be allocated, as it is searched in its logarithm; got {values.min():g}"
        )
    return float(values.min()), float(values.max())
