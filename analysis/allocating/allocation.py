"""Spend a budget by a fitted law: the best model size and length of training, with intervals.

``allocate(fit, budget=1e21, cost="6*N*D")``; the figure is ``analysis.allocation_figure``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gsq.analysis.allocating.constraint import Constraint, Limits, read_constraint
from gsq.analysis.allocating.optimum import OUTSIDE, Optima, ends_of
from gsq.analysis.allocating.parabolas import WHY, Parabolas, parabolas
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.derived import Derived, Quantity
from gsq.analysis.fitting.intervals import percentile_interval
from gsq.analysis.fitting.result import Fit, interval_text, or_none, write_json
from gsq.analysis.tables.outputs import OUT
from gsq.analysis.tables.table import Array, numbers, unquoted
from gsq.words import span

_CURVE = 13  # budgets of a curve
_BEYOND = 1.05  # times what was measured counts as beyond it


@dataclass(frozen=True)
class BestPoint:
    """The best way to spend one budget."""

    budget: float
    columns: dict[str, Derived]
    """The best value of each free column."""
    predicted: tuple[float, float, float]
    """The law's prediction at that point: (value, low, high)."""
    exponents: dict[str, Derived]
    """d ln column / d ln budget of each free column at this budget; empty on a curve or if only one column is free."""
    warnings: tuple[str, ...]

    def to_dict(self, target: str) -> dict[str, object]:
        value, low, high = map(or_none, self.predicted)
        return {
            "budget": self.budget,
            "columns": {name: one.to_dict() for name, one in self.columns.items()},
            target: {"value": value, "low": low, "high": high},
            "exponents": {name: one.to_dict() for name, one in self.exponents.items()},
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Allocation:
    """The points at which a law is best for its cost."""

    fit: Fit
    constraint: Constraint
    points: tuple[BestPoint, ...]
    """The best point at the requested budget, or at both ends of the curve."""
    curve: tuple[BestPoint, ...]
    """Best points at budgets evenly spaced in the logarithm, with bootstrap intervals if the fit has resamples."""
    reach: tuple[float, Derived] | None
    """The target value to reach and the smallest budget that reaches it; None if a budget was given."""
    parabolas: tuple[Parabolas, ...]
    """One for each of two free columns, if the table has isoFLOP slices."""

    @property
    def target(self) -> str:
        """The column that the points are best for."""
        return self.constraint.search.levels.get(OUT, self.fit.target)

    @property
    def measured_costs(self) -> tuple[float, float]:
        return float(self.constraint.costs.min()), float(self.constraint.costs.max())

    def line(self, low: float, high: float, count: int = 61) -> tuple[Array, dict[str, Array]]:
        """Return ``count`` budgets from ``low`` to ``high``, and the best value of each free column at them, without
        intervals; NaN where the search ends at a limit."""
        budgets = np.geomspace(low, high, count)
        found = self.constraint.search.best(np.repeat(_natural(self.fit), count, axis=0), budgets)
        place = np.where(found.at_limit == 0, np.exp(found.place), np.nan)
        return budgets, dict(zip(self.constraint.free, place.T, strict=True))

    def slice_of(self, budget: float, column: str, values: Array) -> Array:
        """Return the law (n,) at the cost ``budget`` and at ``values`` (n,) of one of two free columns."""
        return self.constraint.search.along(_natural(self.fit), budget, column, values)

    def text(self) -> str:
        """The allocation in lines."""
        fit, low, high = self.fit, *self.measured_costs
        source = f" ({self.constraint.source})" if self.constraint.source else ""
        lines = [f"{fit.law.name}: {fit.formula()}", f"cost: {self.constraint.text}{source}"]
        lines += [f"held: {self.constraint.held_text()}"] if self.constraint.held else []
        lines.append(f"measured cells cost {span(f'{low:.3g}', f'{high:.3g}')}")
        if self.reach is not None:
            value, found = self.reach
            lines += ["", f"cheapest budget that brings {self.target} to {value:g}: {found.value:.4g}  {found.ends()}"]
        for point in self.points:
            lines += ["", f"budget {point.budget:.4g}"]
            for name, one in point.columns.items():
                open_ = np.isnan(one.value)
                lines.append(f"  {name}: none found" if open_ else f"  {name} = {one.value:.4g}  {one.ends()}")
                if name in point.exponents:
                    power = point.exponents[name]
                    lines.append(f"    {name} ~ budget^{power.value:.3f}  {power.ends()}")
            value, least, most = point.predicted
            band = "" if np.isnan(least) else f"  [{interval_text((least, most))}]"
            lines.append(f"  {self.target} = {value:.4g}{band}")
            lines += [f"  warning: {warning}" for warning in point.warnings]
        if self.parabolas:
            lines += ["", "parabolas through isoFLOP slices would say"]
            lines += [f"  {one.text(self.points[0].exponents[one.column].value)}" for one in self.parabolas]
            lines.append(f"  {WHY}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; open ends become None."""
        target = self.target
        return {
            "law": self.fit.law.name,
            "formula": self.fit.law.formula,
            "target": target,
            "cost": self.constraint.text,
            "held": self.constraint.held,
            "measured": {
                "cost": list(self.measured_costs),
                **{name: list(pair) for name, pair in self.constraint.measured.items()},
            },
            "confidence": self.fit.confidence,
            "intervals": self.fit.interval_kind,
            "reach": None if self.reach is None else {target: self.reach[0], "budget": self.reach[1].to_dict()},
            "points": [one.to_dict(target) for one in self.points],
            "curve": [one.to_dict(target) for one in self.curve],
            "parabolas": [one.to_dict() for one in self.parabolas],
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON to ``path``; folders are made."""
        write_json(self.to_dict(), Path(path))


def allocate(
    fit: Fit,
    budget: float | None = None,
    *,
    budgets: tuple[float, float] | None = None,
    reach: float | None = None,
    cost: str | None = None,
    at: Mapping[str, float | str] | None = None,
    within: Limits | None = None,
    slices: str | None = None,
) -> Allocation:
    """Find the best point of ``fit``'s law at the cost ``budget``, or the cheapest point at which the law reaches
    ``reach``. The free columns are those that the law and the cost share; they are continuous and above 0.

    cost: an expression over columns, such as "6*N*D", in the unit of the budget; by default that, for a law of
    parameters and tokens, and what gsq's own runs cost for one of parameters and images.
    budgets: (low, high), for a curve; with neither ``budget`` nor ``reach``, both ends are points as well.
    at: values of other columns of the law or the cost (by default the one value that all rows have), and the level of
    each column that indexes parameters: {"out": "loss"} of several outputs, {"quantizer": "simvq"} of several arms.
    within: limits of free columns; by default they are searched up to 1,000 times beyond what was measured.
    slices: a column whose values name isoFLOP slices, for the parabolas; by default rows of about one cost.

    Raises AnalysisError where no point meets the constraints, where a budget is below the cost of the cheapest measured
    cell, and where the law lacks the columns of the cost.
    """
    asked = [one for one in (budget, *(budgets or ())) if one is not None]
    if (budget is None) == (reach is None) and (budget is not None or budgets is None):
        raise AnalysisError(
            "an allocation needs a budget (--budget 1e21), a range of them (--budgets 1e20:1e22), or a value to reach "
            "(--reach 2.5), and not both a budget and a value"
        )
    if budgets is not None and not 0 < budgets[0] < budgets[1] < np.inf:
        raise AnalysisError(
            f"budgets {budgets[0]:g}:{budgets[1]:g} is not a range: give two numbers above 0, the smaller first"
        )
    if reach is not None and not np.isfinite(reach):
        raise AnalysisError(f"the value to reach must be a finite number, such as --reach 2.5; got {reach:g}")
    wrong = [one for one in asked if not 0 < one < np.inf]
    if wrong:
        raise AnalysisError(f"a budget is a finite number above 0, in the unit of the cost; got {wrong[0]:g}")
    constraint = read_constraint(fit, cost, at or {}, within or {}, max(asked, default=None))
    for one in asked:
        _require_measured(constraint, one)
    found = None
    if reach is not None:
        found = _cheapest(fit, constraint, reach)
        budget = found.value
    chosen = [budget] if budget is not None else list(budgets or ())
    points = tuple(_point(fit, constraint, one) for one in chosen)
    curve = () if budgets is None else np.geomspace(*budgets, _CURVE)
    return Allocation(
        fit,
        constraint,
        points,
        tuple(_point(fit, constraint, float(one), on_curve=True) for one in curve),
        None if reach is None or found is None else (reach, found),
        _parabolas(fit, constraint, slices) if points[0].exponents else (),
    )


def _require_measured(constraint: Constraint, budget: float) -> None:
    least = float(constraint.costs.min())
    if budget < least * (1 - 1e-9):
        raise AnalysisError(
            f"a budget of {budget:g} is below the cheapest measured cell, which costs {least:.4g} by "
            f"{constraint.text!r}: the law says nothing about such small runs; give more, in the unit of the cost"
        )


def _natural(fit: Fit) -> Array:
    return fit.problem.form.natural(fit.theta[None], fit.problem.centre)


def _point(fit: Fit, constraint: Constraint, budget: float, on_curve: bool = False) -> BestPoint:
    search = constraint.search
    best = search.best(_natural(fit), budget)
    if np.isnan(best.value[0]):
        limits = ", ".join(
            f"{name} in {np.exp(low):.4g} to {np.exp(high):.4g}"
            for name, low, high in zip(search.free, search.low, search.high, strict=True)
        )
        raise AnalysisError(
            f"{fit.law.name} has no value at any point that costs {budget:g} by {constraint.text!r} with {limits}; "
            "change the budget, the limits (--within) or the columns that are held (--at)"
        )
    place = {name: float(np.exp(value)) for name, value in zip(search.free, best.place[0], strict=True)}
    shown = [name for name in fit.law.columns if name in search.free]
    exponents: dict[str, Derived] = {}
    if len(search.free) == 1:  # the cost alone says it
        columns = {name: Derived(name, place[name], *[(place[name], place[name])] * 3) for name in shown}
    elif on_curve and len(fit.draws):
        columns = _by_draws(fit, constraint, budget, best)
    else:
        columns = {name: _logged(fit.derive(name, _best_of(constraint, budget, name, best))) for name in shown}
        if not on_curve and not best.at_limit.any():
            ends = [search.best(_natural(fit), budget * factor, best.place[0]).place[0] for factor in (0.5, 2)]
            for name in shown:
                power = _exponent_of(constraint, budget, name, (ends[0], ends[1]))
                exponents[name] = fit.derive(f"exponent of {name}", power)
    value, low, high = (float(one[0]) for one in fit.predict({**constraint.held, **place}))
    return BestPoint(
        budget,
        {name: columns[name] for name in shown},
        (value, low, high),
        exponents,
        _warnings(constraint, budget, best, columns),
    )


def _best_of(constraint: Constraint, budget: float, name: str, near: Optima) -> Quantity:
    """Return ln of a column's best value as a function of the parameters."""
    i = constraint.free.index(name)

    def quantity(natural: Array) -> Array:
        found = constraint.search.best(natural, budget, near.place[0])
        # A limit that the user gave is part of the question; one of the search's own is where the answer is not known.
        return found.place[:, i] if name in constraint.given else ends_of(found.place[:, i], found.at_limit[:, i])

    return quantity


def _exponent_of(constraint: Constraint, budget: float, name: str, near: tuple[Array, Array]) -> Quantity:
    i = constraint.free.index(name)
    return lambda natural: constraint.search.exponents(natural, budget, near)[:, i]


def _by_draws(fit: Fit, constraint: Constraint, budget: float, best: Optima) -> dict[str, Derived]:
    natural, columns = fit.problem.form.natural(fit.draws, fit.problem.centre), {}
    for i, name in enumerate(constraint.free):
        sampled = _best_of(constraint, budget, name, best)(natural)
        low, high = percentile_interval(sampled[~np.isnan(sampled)], fit.confidence, fit.freedom)
        pair, nothing = (float(low), float(high)), (np.nan, np.nan)
        columns[name] = _logged(Derived(name, float(best.place[0, i]), pair, nothing, pair))
    return columns


def _logged(one: Derived) -> Derived:
    """Return exp of ``one``; ends that lie at a limit of the search become open."""

    def ends(pair: tuple[float, float]) -> tuple[float, float]:
        low, high = pair
        return (
            -np.inf if low < 0.9 * -OUTSIDE else float(np.exp(low)),
            np.inf if high > 0.9 * OUTSIDE else float(np.exp(high)),
        )

    limited = abs(one.value) > 0.9 * OUTSIDE
    value = np.nan if limited else float(np.exp(one.value))
    return replace(
        one, value=value, interval=ends(one.interval), profile=ends(one.profile), bootstrap=ends(one.bootstrap)
    )


def _cheapest(fit: Fit, constraint: Constraint, reach: float) -> Derived:
    search, target = constraint.search, constraint.search.levels.get(OUT, fit.target)
    least, most = (float(np.log(end)) for end in (constraint.costs.min(), constraint.costs.max()))
    found = float(search.cheapest(_natural(fit), reach, most)[0])
    first = float(search.best(_natural(fit), float(np.exp(least))).value[0])
    if found >= OUTSIDE and not first < reach:
        far = search.best(_natural(fit), float(np.exp(most)) * 1e6)
        raise AnalysisError(
            f"no budget brings {target} down to {reach:g}: with a million times the largest measured cost, "
            f"{fit.law.name} still gives {far.value[0]:.4g}; ask for more than that"
        )
    if found < least or first < reach:
        raise AnalysisError(
            f"{target} = {reach:g} is reached below the cheapest measured cell, which costs {np.exp(least):.4g} by "
            f"{constraint.text!r}: the law says nothing about such small runs; ask for a value below "
            f"{first:.4g}"
        )
    near = search.best(_natural(fit), float(np.exp(found))).place[0]
    return _logged(fit.derive("budget", lambda natural: search.cheapest(natural, reach, found, near)))


def _warnings(constraint: Constraint, budget: float, best: Optima, columns: dict[str, Derived]) -> tuple[str, ...]:
    """Return the warnings about a point: extrapolation, limits of the search, open intervals."""
    found, largest = [], float(constraint.costs.max())
    if budget > _BEYOND * largest:
        found.append(f"extrapolates: the budget is {budget / largest:.3g} times the cost of the largest measured cell")
    for i, name in enumerate(constraint.free):
        low, high = constraint.measured[name]
        value, limit = float(np.exp(best.place[0, i])), best.at_limit[0, i]
        if value > _BEYOND * high:
            found.append(f"extrapolates: {name} is {value / high:.3g} times the largest measured one ({high:.4g})")
        if value < low / _BEYOND:
            found.append(f"extrapolates: {name} is {low / value:.3g} times below the smallest measured one ({low:.4g})")
        if limit and name in constraint.given:
            found.append(f"{name} is at the limit that was given for it; by the law, the best value is beyond it")
        elif limit:
            found.append(
                f"the law has no best {name} at this budget: the best is as {'little' if limit < 0 else 'much'} of it "
                "as the search allows; limit it (--within), or use a law with a cost on both sides"
            )
        elif why := columns[name].why_not:
            found.append(f"the data do not determine the best {name}: {why}")
    return tuple(found)


def _parabolas(fit: Fit, constraint: Constraint, slices: str | None) -> tuple[Parabolas, ...]:
    label = None if slices is None else numbers(fit.rows, unquoted(slices))
    if len(constraint.free) != 2:
        return ()
    held = constraint.at_held(fit)
    target, law = fit.problem.target[held], fit.problem.predict(fit.theta[None])[0][held]
    found = [
        parabolas(
            name,
            numbers(fit.rows, name)[held],
            constraint.costs[held[constraint.here]],
            target,
            law,
            None if label is None else label[held],
        )
        for name in fit.law.columns
        if name in constraint.free
    ]
    return tuple(one for one in found if one is not None)
