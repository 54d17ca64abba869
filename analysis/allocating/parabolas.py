"""The allocation by parabolas through isoFLOP profiles, and the bias of this method on the fitted law itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gsq.analysis.jsonable import jsonable, picked
from gsq.analysis.tables.table import Array

_GAP = 0.1  # rows whose ln cost differs by less are runs of one budget
_FEWEST = 4  # sizes that a slice needs


WHY = (
    "A slice is symmetric about its minimum in logarithms only if all terms have the same exponent; otherwise the "
    "vertex depends on how wide the slice is and where its middle lies"
)


@dataclass(frozen=True)
class Slice:
    """Runs of one budget."""

    cost: float
    rows: tuple[int, ...]
    """Positions of the rows in the table."""


@dataclass(frozen=True)
class Parabolas:
    """Approach 2 of Chinchilla (arXiv 2203.15556): the vertex of a parabola in ln ``column`` for each isoFLOP slice,
    and a power law of the budget through the vertices."""

    column: str
    slices: tuple[Slice, ...]
    vertices: tuple[tuple[float, float], ...]
    """(cost, size) of the slices whose parabola has its vertex within the measured sizes."""
    coefficients: tuple[tuple[float, ...], ...]
    """(c0, c1, c2) of each of these parabolas: target = c0 x^2 + c1 x + c2 with x = ln column."""
    exponent: float
    """Exponent of the power law through the vertices against the cost."""
    of_law: float
    """The same exponent for the law's own, noise-free values at the same points; NaN if these have no vertices."""

    def text(self, exponent: float) -> str:
        """Compare the parabolas' exponent with the law's own ``exponent``, in words."""
        said = (
            f"{len(self.vertices)} of {len(self.slices)} isoFLOP slices: {self.column} ~ budget^{self.exponent:.3f}, "
            f"by the law {exponent:.3f}"
        )
        if not np.isfinite(self.of_law):
            return said
        return said + (
            f"; through the law's own values at the same points {self.of_law:.3f}, a bias of "
            f"{self.of_law - exponent:+.3f} without any noise"
        )

    def to_dict(self) -> dict[str, object]:
        law = {"exponent_of_the_law_by_parabolas": jsonable(self.of_law)}
        return {**picked(self, "column", "vertices", "exponent"), "slices": len(self.slices), **law}


def isoflop_slices(size: Array, cost: Array, label: Array | None = None) -> tuple[Slice, ...]:
    """Group rows (n,) by ``label``, or by roughly equal cost without labels; groups need at least four sizes.

    Costs are roughly equal where each is within a tenth of the next, and all are within two tenths.
    """
    key = np.log(cost) if label is None else label
    order = np.argsort(key, kind="stable")
    apart = np.diff(key[order]) > (_GAP if label is None else 0)
    found = []
    for part in np.split(order, np.flatnonzero(apart) + 1):
        alike = label is not None or np.ptp(key[part]) <= 2 * _GAP
        if alike and len(np.unique(size[part])) >= _FEWEST:
            middle = float(np.exp(np.mean(np.log(cost[part]))))
            found.append(Slice(middle, tuple(int(row) for row in np.sort(part))))
    return tuple(found)


def parabolas(
    column: str, size: Array, cost: Array, target: Array, law: Array, label: Array | None = None
) -> Parabolas | None:
    """Fit a parabola to each isoFLOP slice of rows with a ``size``, ``cost``, ``target``, value of the ``law`` and
    ``label`` of the slice, (n,) each. None if fewer than two slices have a vertex within their measured sizes."""
    slices = isoflop_slices(size, cost, label)
    measured = _vertices(slices, size, target)
    if len(measured) < 2:
        return None
    exact = _vertices(slices, size, law)
    return Parabolas(
        column,
        slices,
        tuple((at, vertex) for at, vertex, _ in measured),
        tuple(found for _, _, found in measured),
        _exponent(measured),
        _exponent(exact) if len(exact) > 1 else np.nan,
    )


def _vertices(slices: tuple[Slice, ...], size: Array, target: Array) -> list[tuple[float, float, tuple[float, ...]]]:
    found = []
    for one in slices:
        x, y = np.log(size[list(one.rows)]), target[list(one.rows)]
        middle = float(x.mean())
        bend, slope, height = np.polyfit(x - middle, y, 2)
        vertex = middle - slope / (2 * bend) if bend > 0 else np.inf
        if x.min() <= vertex <= x.max():
            terms = bend, slope - 2 * bend * middle, height - slope * middle + bend * middle**2
            found.append((one.cost, float(np.exp(vertex)), tuple(float(term) for term in terms)))
    return found


def _exponent(vertices: list[tuple[float, float, tuple[float, ...]]]) -> float:
    cost, size = (np.log([one[i] for one in vertices]) for i in range(2))
    return float(np.polyfit(cost, size, 1)[0])
