"""Minimise a law along a curve of equal cost, for many parameter vectors at once.

All columns are searched in their logarithms: of d free columns the last is solved from the cost, the others are
searched on a grid that narrows around its best point, and at the end by Newton's method on differences, where the law
is smooth enough for it. Shapes: m parameter vectors, d free columns, g points of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from gsq.analysis.laws.named import Law
from gsq.analysis.laws.syntax import index_of, numeric
from gsq.analysis.tables.table import Array

_GRID = {1: 33, 2: 11, 3: 7}  # points of each searched column
_FINE = 2e-3  # spacing, in logarithms, at which the grid hands over to Newton's method
_NEAR = 1e-2  # from a limit, in logarithms: the point lies at it
_FAR = 60.0  # in logarithms of the cost: what takes more is never reached
_ROUNDING = 1e-9
_BEYOND = 1e250  # larger than a law's values
Bools = npt.NDArray[np.bool_]
Evaluate = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Optima:
    """The best point for each parameter vector."""

    place: Array
    """Logarithms of the free columns, (m, d); NaN where no point has the cost."""
    value: Array
    """Value of the law at that point, (m,)."""
    at_limit: Array
    """(m, d): -1 where the point lies at the low limit of a column, 1 at its high one, else 0."""


@dataclass(frozen=True)
class Search:
    """The problem: minimise a law over its ``free`` columns along ``cost`` = budget, with the others ``fixed``."""

    law: Law
    cost: Evaluate
    free: tuple[str, ...]
    fixed: Mapping[str, float]
    low: Array
    high: Array
    """Limits of the free columns, in logarithms, (d,)."""
    levels: Mapping[str, str] = field(default_factory=dict)
    """The level at which each column is held whose levels have parameters of their own."""

    def cost_at(self, place: Array) -> Array:
        """Return ln cost at logarithms (..., d) of the free columns; NaN where the cost is not above 0."""
        columns = {name: np.exp(place[..., i]) for i, name in enumerate(self.free)}
        cost = np.asarray(self.cost({**self.fixed, **columns}), dtype=np.float64)
        return np.broadcast_to(np.log(np.where(cost > 0, cost, np.nan)), place.shape[:-1])

    def value_at(self, natural: Array, place: Array) -> Array:
        """Return the law (m, g) for natural parameters (m, k) at logarithms (m, g, d) of the free columns."""
        columns = {name: np.exp(place[..., i]) for i, name in enumerate(self.free)}
        theta = {name: natural[:, i, None] for i, name in enumerate(self.law.parameters)}
        theta |= {
            name: theta[f"{index[0]}[{self.levels[index[1]]}]"]
            for name in self.law.read.parameters
            if (index := index_of(name))
        }
        found = numeric(self.law.read.tree)({**self.fixed, **columns, **theta})
        return np.broadcast_to(np.asarray(found, dtype=np.float64), place.shape[:-1])

    @np.errstate(all="ignore")
    def best(self, natural: Array, budget: float | Array, near: Array | None = None) -> Optima:
        """Find the least value of the law at the cost ``budget``, a scalar or (m,), for natural parameters (m, k).

        ``near``: logarithms (d,) of a point from which Newton's method is tried first.
        """
        m, searched = len(natural), len(self.free) - 1
        goal = np.broadcast_to(np.log(budget), (m,))[:, None]
        place, value = np.full((m, searched + 1), np.nan), np.full(m, np.inf)
        left = np.ones(m, dtype=bool)
        if near is not None and searched:
            place, value = self._least(natural, np.tile(near[:searched], (m, 1, 1)), goal, near[-1:])
            place, value, settled = self._polished(natural, place, value, goal, 8, 0.5)
            left = ~settled | (self._limits(place) != 0).any(axis=1) | ~(value < _BEYOND)
        if left.any():
            place[left], value[left] = self._narrowed(natural[left], goal[left])
        place = np.where((value < _BEYOND)[:, None], place, np.nan)
        return Optima(place, np.where(np.isnan(place).any(axis=1), np.nan, value), self._limits(place))

    def exponents(self, natural: Array, budget: float, near: tuple[Array, Array] | None = None) -> Array:
        """Return d ln column / d ln budget of the best point, (m, d), from half to twice the budget; NaN where
        the point lies at a limit. ``near`` has a point near the best one of each of the two budgets."""
        ends = [
            self.best(natural, budget * factor, None if near is None else near[i]) for i, factor in enumerate((0.5, 2))
        ]
        free = np.all([(one.at_limit == 0).all(axis=1) for one in ends], axis=0)
        return np.where(free[:, None], (ends[1].place - ends[0].place) / np.log(4.0), np.nan)

    @np.errstate(all="ignore")
    def along(self, natural: Array, budget: float, column: str, values: Array) -> Array:
        """Return the law (n,) for natural parameters (1, k) at the cost ``budget`` and ``values`` (n,) of one of two
        free columns; NaN where no value of the other column gives this cost."""
        first = self.free.index(column) == 0
        way = self if first else replace(self, free=self.free[::-1], low=self.low[::-1], high=self.high[::-1])
        place = way._completed(np.log(values)[None, :, None], np.log([[budget]]))
        return way.value_at(natural, place)[0]

    def _limits(self, place: Array) -> Array:
        return np.where(place < self.low + _NEAR, -1.0, np.where(place > self.high - _NEAR, 1.0, 0.0))

    def _narrowed(self, natural: Array, goal: Array) -> tuple[Array, Array]:
        """Find the best place (m, d) and value (m,) on a grid that narrows, without a first guess."""
        m, searched = len(natural), len(self.free) - 1
        low, high = (np.tile(end[:searched], (m, 1)) for end in (self.low, self.high))
        count = _GRID.get(searched, 1)
        unit = np.array(list(product(np.linspace(0, 1, count), repeat=searched))).reshape(count**searched, searched)
        while True:
            spacing = (high - low) / max(1, count - 1)
            place, value = self._least(natural, low[:, None] + (high - low)[:, None] * unit, goal)
            if not searched or float(spacing.max()) <= _FINE:
                break
            # An edge of the curve may lie between the points, so that the next grid reaches beyond its neighbours.
            middle = np.where(np.isnan(place[:, :searched]), (low + high) / 2, place[:, :searched])
            low = np.maximum(self.low[:searched], middle - 1.5 * spacing)
            high = np.minimum(self.high[:searched], middle + 1.5 * spacing)
        if searched:
            place, value, _ = self._polished(natural, place, value, goal, 2, 2 * _FINE)
        return place, value

    def _polished(
        self, natural: Array, place: Array, value: Array, goal: Array, steps: int, reach: float
    ) -> tuple[Array, Array, Bools]:
        """Take up to ``steps`` Newton steps, each at most ``reach`` long; also return which problems have converged."""
        rest = np.zeros(len(place), dtype=bool)
        for _ in range(steps):
            new, least, fit = self._newton(natural, place, value, goal, reach)
            rest = fit & (np.abs(new - place).max(axis=1) < _FINE / 20)
            place, value = new, least
            if rest.all():
                break
        return place, value, rest

    @np.errstate(all="ignore")
    def cheapest(self, natural: Array, reach: float, start: float, near: Array | None = None) -> Array:
        """Return ln of the least cost at which the law reaches the value ``reach``, (m,); OUTSIDE where it never does.

        The search is Newton's method in the logarithm of the cost. ``start`` is a logarithm near the solution, and
        ``near`` a point near the best one at that cost.
        """
        at = np.full(len(natural), start)
        lost = np.zeros(len(natural), dtype=bool)
        for _ in range(40):
            here, less, more = (self.best(natural, np.exp(at + step), near).value for step in (0.0, -0.05, 0.05))
            slope = (more - less) / 0.1
            step = np.clip((reach - here) / slope, -5.0, 5.0)
            lost |= ~(slope < 0) | (at + step > start + _FAR) | (at + step < start - _FAR)
            at = np.where(lost, at, at + step)
            if not np.abs(step[~lost]).max(initial=0) > 1e-9:
                break
        return np.where(lost | ~(np.abs(here - reach) <= 1e-6 * abs(reach)), OUTSIDE, at)

    def _least(self, natural: Array, lead: Array, goal: Array, last: Array | None = None) -> tuple[Array, Array]:
        """Return the best point, as place (m, d) and value (m,), of those with first columns ``lead`` (m, g, d - 1)."""
        place = self._completed(lead, goal, last)
        value = self.value_at(natural, place)
        last = place[..., -1]
        beyond = np.maximum(np.maximum(self.low[-1] - last, last - self.high[-1]), 0)
        # Beyond the limits of the last column the nearest to them comes first: so the grid finds a narrow way in.
        value = np.where(beyond > _ROUNDING, _BEYOND * (1 + beyond), value)
        value = np.where(np.isfinite(place).all(axis=-1) & ~np.isnan(value), value, np.inf)
        rows, at = np.arange(len(natural)), np.argmin(value, axis=1)
        none = np.isinf(value[rows, at])[:, None]
        return np.where(none, np.nan, place[rows, at]), value[rows, at]

    def _completed(self, lead: Array, goal: Array, near: Array | None = None) -> Array:
        """Append to ``lead`` (m, g, d - 1) the last column that meets the cost; NaN where none does.

        ``near``: where the search for it begins, (m,) or (1,).
        """
        low, high = self.low[-1], self.high[-1]
        middle = np.full(1, (low + high) / 2) if near is None else np.where(np.isfinite(near), near, (low + high) / 2)
        last = np.tile(middle[:, None], (lead.shape[0] // len(middle), lead.shape[1]))

        def missing(at: Array) -> Array:
            return self.cost_at(np.concatenate([lead, at[..., None]], axis=-1)) - goal

        off = missing(last)
        for _ in range(60):
            slope = (missing(last + 1e-4) - missing(last - 1e-4)) / 2e-4
            step = -off / slope
            last = np.clip(np.where(np.isfinite(step), last + step, last), low - 60, high + 60)
            off = missing(last)
            if not np.nanmax(np.abs(np.where(np.isfinite(step), off, 0)), initial=0) > 1e-12:
                break
        return np.concatenate([lead, np.where(np.abs(off) < _ROUNDING, last, np.nan)[..., None]], axis=-1)

    def _newton(
        self, natural: Array, place: Array, value: Array, goal: Array, reach: float
    ) -> tuple[Array, Array, Bools]:
        """Take one Newton step from ``place`` (m, d), with slopes and curvatures by finite differences, unless it
        leaves the limits or raises the law; also return which steps were taken."""
        searched = place.shape[1] - 1
        offsets = list(product((-1, 0, 1), repeat=searched))
        lead = place[:, None, :searched] + _FINE * np.array(offsets, dtype=np.float64)
        around = self.value_at(natural, self._completed(lead, goal, place[:, -1]))
        axes = range(searched)

        def at(*moves: tuple[int, int]) -> Array:
            """Return the law at the point moved by these steps along these axes."""
            by = dict(moves)
            return np.asarray(around[:, offsets.index(tuple(by.get(i, 0) for i in axes))])

        slope = np.stack([(at((i, 1)) - at((i, -1))) / 2 for i in axes], axis=-1)
        bend = np.empty((len(place), searched, searched))
        for i, j in product(axes, axes):
            if i == j:
                bend[:, i, i] = at((i, 1)) - 2 * at() + at((i, -1))
            else:
                corners = [a * b * at((i, a), (j, b)) for a, b in product((-1, 1), repeat=2)]
                bend[:, i, j] = sum(corners) / 4
        # A column at a limit that the law would cross stays there.
        inner = place[:, :searched]
        held = ((inner <= self.low[:searched]) & (slope > 0)) | ((inner >= self.high[:searched]) & (slope < 0))
        slope = np.where(held, 0.0, slope)
        bend = np.where(held[:, :, None] | held[:, None, :], np.eye(searched), bend)
        fit = np.asarray(np.isfinite(bend).all(axis=(1, 2)) & np.isfinite(slope).all(axis=1))
        fit[fit] = np.linalg.eigvalsh(bend[fit])[:, 0] > 0
        step = np.zeros((len(place), searched))
        step[fit] = -np.linalg.solve(bend[fit], slope[fit][..., None])[..., 0]
        trial = place[:, :searched] + np.clip(_FINE * step, -reach, reach)
        trial = np.clip(trial, self.low[:searched], self.high[:searched])
        new, least = self._least(natural, trial[:, None], goal, place[:, -1])
        # Near the minimum the value is flat to rounding, and the step is what tells the place.
        better = fit & (least <= value + 1e-12 * np.abs(value))
        return np.where(better[:, None], new, place), np.where(better, least, value), better


OUTSIDE = 690.0  # a logarithm near those of the largest and the least number of a computer


def ends_of(values: Array, limits: Array) -> Array:
    """Return logarithms ``values`` (m,), with those at a limit (-1, 1) moved far outside: there the search ended."""
    return np.where(limits == 0, values, np.where(limits < 0, -OUTSIDE, OUTSIDE))
