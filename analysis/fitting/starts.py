"""Choose where a search begins: ranges of random starts from the formula and the sizes of the columns.

A rate k in exp(-k x) is about one over the range of x, a time tau in exp(-x / tau) about that range, a peak at x0 lies
within it, and a saturation kappa in 1 + kappa / D is of the size of D. The walk below reads this from the formula:
each argument of an exponential, and each term beside a known one in a sum, is to be about as large as its neighbour.

Shapes: q data, n rows, m starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gsq.analysis.tables.table import Array

if TYPE_CHECKING:
    from gsq.analysis.laws.compiled import Term
    from gsq.analysis.laws.form import Form

Kind = Literal["exponent", "rate", "size", "place"]
EXPONENTS = (-1.0, 4.0)
SPREAD = 3.0  # starts of a size lie within a factor exp(3) = 20 of it
_NEGATIVE = 0.2  # share of rates and times that start below 0, where their bounds allow it
_OLD = 0.25  # share of starts around the sizes of the columns themselves, should the walk be wrong
_MOST = 100.0  # logarithm of the largest factor by which a power may vary over the rows at a start


@dataclass(frozen=True)
class Habit:
    """What a parameter is in its formula, and about how large: ``low`` to ``high`` for exponents and places, else
    around ``low``."""

    kind: Kind
    low: float
    high: float


def habits(form: Form, data: Array) -> dict[int, Habit]:
    """Return the habit of each parameter, by index, about which the formula and ``data`` (q, n) say something."""
    walk = _Walk(form, data)
    for term in form.terms:
        walk.visit(term, None, 0)
    return walk.found


def draw(habit: Habit | None, scales: Array, low: float, high: float, count: int, rng: np.random.Generator) -> Array:
    """``count`` starts of one parameter within its bounds: by its habit, or around one of ``scales``."""
    around = rng.choice(scales, count) * np.exp(rng.uniform(-SPREAD, SPREAD, count))
    if habit is None:
        drawn = around
    elif habit.kind in ("exponent", "place"):
        drawn = rng.uniform(habit.low, habit.high, count)
        if habit.kind == "exponent" and low == 0:
            drawn = np.abs(drawn)
    else:
        drawn = habit.low * np.exp(rng.uniform(-SPREAD, SPREAD, count))
        drawn = np.where(rng.random(count) < _OLD, around, drawn)
        if habit.kind == "rate" and low < 0:
            drawn = np.where(rng.random(count) < _NEGATIVE, -drawn, drawn)
    if high <= 0:
        drawn = -np.abs(drawn)
    outside = (drawn < low) | (drawn > high)
    if outside.any() and np.isfinite(high - low):
        drawn = np.where(outside, rng.uniform(low, high, count), drawn)
    return np.asarray(np.clip(drawn, low, high))


class _Walk:
    """Reads sizes of parameters from a formula; the first one found for each parameter counts."""

    def __init__(self, form: Form, data: Array) -> None:
        self.found: dict[int, Habit] = {}
        self.amplitudes = set(form.amplitudes)
        self.rows = data
        self.powers = {i for i, datum in enumerate(form.data) if datum.power}

    def note(self, parameter: int, kind: Kind, low: float, high: float = np.nan) -> None:
        if parameter not in self.amplitudes and np.isfinite(low) and (kind in ("exponent", "place") or low > 0):
            self.found.setdefault(parameter, Habit(kind, low, high))

    def size(self, node: Term, spread: bool) -> float | None:
        """About how large ``node`` is, or with ``spread`` how much it varies; None where parameters decide."""
        match node.kind:
            case "datum":
                row = self.rows[node.index]
                if spread:
                    return float(np.ptp(row)) or float(np.abs(row).max()) or 1.0
                return float(np.median(np.abs(row))) or 1.0
            case "number" | "constant":
                return abs(node.value) or 1.0
            case "parameter":
                return None
            case "Add":
                terms = [one for one in node.args if one.kind != "number"]
                known = [size for one in terms if (size := self.size(one, spread)) is not None]
                return max(known) if known else None
            case "Mul":
                parts = [self.size(one, spread) for one in node.args]
                return None if None in parts else float(np.prod([part for part in parts if part is not None]))
            case "Pow":
                if node.args[1].kind != "number":
                    return None
                base = self.size(node.args[0], spread)
                return None if base is None else float(base ** node.args[1].value)
            case "Min" | "Max" | "Abs":
                return next((size for one in node.args if (size := self.size(one, spread)) is not None), None)
            case _:
                return 1.0

    def visit(self, node: Term, goal: float | None, depth: int, positive: bool = False) -> None:
        """Note the parameters below ``node``, which is to be about ``goal`` large (None: as large as the target).

        ``depth``: how many exponentials hold it. ``positive``: it must be above 0 at every row.
        """
        inside = depth > 0
        match node.kind:
            case "parameter":
                if goal is not None:
                    self.note(node.index, "rate" if inside else "size", goal)
            case "exp":
                for term in node.args:
                    self._exponent(term, depth)
            case "Add":
                self._sum(node, goal, depth, positive)
            case "Mul":
                self._product(node, goal, depth)
            case "Pow":
                base, exponent = node.args
                if exponent.kind == "number":
                    self.visit(base, None if goal is None else goal ** (1 / exponent.value), depth)
                else:
                    self.visit(base, 1.0, depth, positive=True)
                    for parameter in exponent.parameters:
                        self.note(parameter, "exponent", *EXPONENTS)
            case _:
                known = self.size(node, inside) if node.kind in ("Min", "Max") else 1.0
                for one in node.args:
                    if one.parameters:
                        self.visit(one, known, depth, positive=node.kind == "log")

    def _sum(self, node: Term, goal: float | None, depth: int, positive: bool) -> None:
        plain = [one for one in node.args if one.data and not one.parameters]
        known = self.size(node, depth > 0)
        if known is None and any(one.kind == "number" for one in node.args):
            known = max(abs(one.value) for one in node.args if one.kind == "number")
        for one in node.args:
            sign, factor = one.coefficient
            opposite = len(plain) == 1 and sign * plain[0].coefficient[0] < 0  # x - x0, not x + s
            parameter = factor is not None and factor.kind == "parameter"
            if factor is not None and parameter and opposite and abs(sign) == 1 and not positive:
                row = self._value(plain[0]) * (-1.0 if sign > 0 else 1.0)
                self.note(factor.index, "place", float(row.min()), float(row.max()))
            elif one.parameters:
                self.visit(one, known if known is not None else goal, depth)

    def _product(self, node: Term, goal: float | None, depth: int) -> None:
        sizes = [(one, self.size(one, depth > 0)) for one in node.args]
        unknown = [one for one, size in sizes if size is None]
        known = float(np.prod([size for _, size in sizes if size is not None]))
        for one, size in sizes:
            if one.parameters:
                share = None if goal is None else (goal / known) ** (1 / max(1, len(unknown)))
                self.visit(one, share if size is None else size, depth)

    def _exponent(self, term: Term, depth: int) -> None:
        """One term of the argument of an exponential: a power of a column, or something about 1 large."""
        if len(term.parameters) == 1 and len(term.data) == 1 and term.data <= self.powers:
            row = self.rows[next(iter(term.data))]
            # A power within another exponential must stay small itself; elsewhere its amplitude takes up its size.
            reach = float(np.abs(row).max()) * 20 if depth else float(np.ptp(row))
            factor = min(1.0, _MOST / (EXPONENTS[1] * reach)) if reach > 0 else 1.0
            self.note(next(iter(term.parameters)), "exponent", EXPONENTS[0] * factor, EXPONENTS[1] * factor)
        elif term.kind == "parameter":
            self.note(term.index, "exponent", *EXPONENTS)
        else:
            self.visit(term, 1.0, depth + 1)

    def _value(self, node: Term) -> Array:
        """A part that depends on data alone, (n,); NaN where it is no product, sum or power of them."""
        if node.kind == "datum":
            return self.rows[node.index]
        if node.kind in ("number", "constant"):
            return np.full(self.rows.shape[1], node.value)
        parts = [self._value(one) for one in node.args]
        with np.errstate(all="ignore"):
            match node.kind:
                case "Mul":
                    return np.asarray(np.prod(parts, axis=0))
                case "Add":
                    return np.asarray(np.sum(parts, axis=0))
                case "Pow":
                    return np.asarray(parts[0] ** parts[1])
                case _:
                    return np.full(self.rows.shape[1], np.nan)
