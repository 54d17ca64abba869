"""Choose where a search begins: ranges of random starts from the formula and the sizes of the columns.

A rate k in exp(-k x) is about one over the range of x, a time tau in exp(-x / tau) about that range, a peak at x0 lies
within it, and a saturation kappa in 1 + kappa / D is of the size of D. The walk below reads this from the formula:
each argument of an exponential, and each term beside a known one in a sum, is to be about as large as its neighbour.

Shapes: q data, n rows, m starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gsq.analysis.tables.table import Array

if TYPE_CHECKING:
    import sympy as sp

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
    for expression in form.one_level():
        walk.visit(expression, None, 0)
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
    """Reads sizes of parameters from an expression; the first one found for each parameter counts."""

    def __init__(self, form: Form, data: Array) -> None:
        self.found: dict[int, Habit] = {}
        self.index = {symbol: i for i, symbol in enumerate(form.theta) if i not in form.amplitudes}
        self.theta = set(form.theta)
        self.rows = dict(zip(form.symbols, data, strict=True))
        self.powers = {symbol for symbol, datum in zip(form.symbols, form.data, strict=True) if datum.power}

    def note(self, symbol: sp.Symbol, kind: Kind, low: float, high: float = np.nan) -> None:
        if symbol in self.index and np.isfinite(low) and (kind in ("exponent", "place") or low > 0):
            self.found.setdefault(self.index[symbol], Habit(kind, low, high))

    def size(self, node: Any, spread: bool) -> float | None:
        """About how large ``node`` is, or with ``spread`` how much it varies; None where parameters decide."""
        if node in self.rows:
            row = self.rows[node]
            if spread:
                return float(np.ptp(row)) or float(np.abs(row).max()) or 1.0
            return float(np.median(np.abs(row))) or 1.0
        if node.is_Number or not node.free_symbols:
            return abs(float(node)) or 1.0
        if node in self.theta:
            return None
        if node.is_Add:
            known = [size for one in node.args if not one.is_Number and (size := self.size(one, spread)) is not None]
            return max(known) if known else None
        if node.is_Mul:
            parts = [self.size(one, spread) for one in node.args]
            return None if None in parts else float(np.prod([part for part in parts if part is not None]))
        if node.is_Pow and node.exp.is_Number:
            base = self.size(node.base, spread)
            return None if base is None else float(base ** float(node.exp))
        if node.is_Function and node.func.__name__ in ("Min", "Max", "Abs"):
            return next((size for one in node.args if (size := self.size(one, spread)) is not None), None)
        return 1.0 if node.is_Function else None

    def visit(self, node: Any, goal: float | None, depth: int, positive: bool = False) -> None:
        """Note the parameters below ``node``, which is to be about ``goal`` large (None: as large as the target).

        ``depth``: how many exponentials hold it. ``positive``: it must be above 0 at every row.
        """
        inside = depth > 0
        if node in self.theta:
            if goal is not None:
                self.note(node, "rate" if inside else "size", goal)
        elif node.func.__name__ == "exp":
            for term in node.args[0].as_ordered_terms() if node.args[0].is_Add else (node.args[0],):
                self._exponent(term, depth)
        elif node.is_Add:
            self._sum(node, goal, depth, positive)
        elif node.is_Mul:
            self._product(node, goal, depth)
        elif node.is_Pow:
            if node.exp.is_Number:
                self.visit(node.base, None if goal is None else goal ** (1 / float(node.exp)), depth)
            else:
                self.visit(node.base, 1.0, depth, positive=True)
                for symbol in node.exp.free_symbols & self.theta:
                    self.note(symbol, "exponent", *EXPONENTS)
        else:
            known = self.size(node, inside) if node.func.__name__ in ("Min", "Max") else 1.0
            positive = node.func.__name__ == "log"
            for one in node.args:
                if one.free_symbols & self.theta:
                    self.visit(one, known, depth, positive)

    def _sum(self, node: Any, goal: float | None, depth: int, positive: bool) -> None:
        inside = depth > 0
        plain = [one for one in node.args if one.free_symbols and not one.free_symbols & self.theta]
        known = self.size(node, inside)
        if known is None and any(one.is_Number for one in node.args):
            known = max(abs(float(one)) for one in node.args if one.is_Number)
        for one in node.args:
            sign, symbol = one.as_coeff_Mul()
            opposite = len(plain) == 1 and sign * plain[0].as_coeff_Mul()[0] < 0  # x - x0, not x + s
            if symbol in self.theta and opposite and abs(sign) == 1 and not positive:
                row = self._value(plain[0]) * (-1.0 if sign > 0 else 1.0)
                self.note(symbol, "place", float(row.min()), float(row.max()))
            elif one.free_symbols & self.theta:
                self.visit(one, known if known is not None else goal, depth)

    def _product(self, node: Any, goal: float | None, depth: int) -> None:
        inside = depth > 0
        sizes = {one: self.size(one, inside) for one in node.args}
        unknown = [one for one, size in sizes.items() if size is None]
        known = float(np.prod([size for size in sizes.values() if size is not None]))
        for one, size in sizes.items():
            if one.free_symbols & self.theta:
                share = None if goal is None else (goal / known) ** (1 / max(1, len(unknown)))
                self.visit(one, share if size is None else size, depth)

    def _exponent(self, term: Any, depth: int) -> None:
        """One term of the argument of an exponential: a power of a column, or something about 1 large."""
        free = term.free_symbols & self.theta
        logarithms = term.free_symbols & self.powers
        if len(free) == 1 and len(logarithms) == 1 and term.free_symbols == free | logarithms:
            row = self.rows[next(iter(logarithms))]
            # A power within another exponential must stay small itself; elsewhere its amplitude takes up its size.
            reach = float(np.abs(row).max()) * 20 if depth else float(np.ptp(row))
            factor = min(1.0, _MOST / (EXPONENTS[1] * reach)) if reach > 0 else 1.0
            self.note(next(iter(free)), "exponent", EXPONENTS[0] * factor, EXPONENTS[1] * factor)
        elif term in self.theta:
            self.note(term, "exponent", *EXPONENTS)
        else:
            self.visit(term, 1.0, depth + 1)

    def _value(self, node: Any) -> Array:
        """Evaluate a part that depends only on columns, (n,)."""
        import sympy as sp

        names = [symbol for symbol in self.rows if node.has(symbol)]
        with np.errstate(all="ignore"):
            value = sp.lambdify(names, node, modules=["numpy"])(*(self.rows[name] for name in names))
        return np.asarray(value, dtype=np.float64)
