"""Propose which values of a tuned column, such as the learning rate, to try next.

First the sizes whose grid does not bracket their optimum; then, run by run, the size whose optimum is known worst.
There the value is the one that narrows the optimum most (c-optimal for the vertex: Chaloner and Larntz,
1989), among those within one step of the grid around the optimum, where a quadratic can be believed, and apart from
those that were run: the same config again is the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gsq.analysis.checking.optimum import Optimum, SizeOptimum
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.result import or_none
from gsq.analysis.tables.table import Array


@dataclass(frozen=True)
class NextValue:
    """A value to try at one size."""

    size: dict[str, float | str]
    name: str
    """The size in words; "" if there is only one."""
    value: float
    reason: str
    error: float
    """Standard error of ln optimum now; NaN without an optimum or without a measured scatter."""
    expected_error: float
    """The same error after the run, assuming that the quadratic and the scatter hold."""

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        errors = {"error": or_none(self.error), "expected_error": or_none(self.expected_error)}
        return {"size": self.size, "value": self.value, "reason": self.reason, **errors}


@dataclass(frozen=True)
class NextValues:
    """The proposed runs, the most needed first."""

    column: str
    target: str
    runs: tuple[NextValue, ...]
    warnings: tuple[str, ...] = ()
    """Warnings of the optima."""

    def text(self) -> str:
        """A line for each run, with its reason."""
        lines = [f"next {self.column}, for its best value by {self.target}"]
        for one in self.runs:
            then = f"; then {_factor(one.expected_error)}" if np.isfinite(one.expected_error) else ""
            lines.append(f"  {one.name + ': ' if one.name else ''}{one.value:.3g}  ({one.reason}{then})")
        return "\n".join([*lines, *(f"  warning: {one}" for one in self.warnings)])

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        runs = [one.to_dict() for one in self.runs]
        return {"column": self.column, "target": self.target, "runs": runs, "warnings": list(self.warnings)}

    def cases(self) -> list[Mapping[str, float | str | int]]:
        """Return the columns of each run, as a sweep or a table needs them."""
        return [{**{k: _plain(v) for k, v in one.size.items()}, self.column: one.value} for one in self.runs]


def next_values(found: Optimum, runs: int | None = None) -> NextValues:
    """Propose values of the tuned column of an :func:`gsq.analysis.optimum`.

    runs: how many; None for one at each size without an optimum, and one at the size whose optimum is known worst.
    Raises AnalysisError for less than one run.
    """
    if runs is not None and runs < 1:
        raise AnalysisError(f"runs must be at least 1, got {runs}")
    open_ends = [_towards(one) for one in found.sizes if one.reason]
    known = [_Known.of(one, found.scatter) for one in found.sizes if not one.reason]
    chosen = open_ends[:runs]
    for _ in range((1 if runs is None else runs - len(chosen)) if known else 0):
        place = max(range(len(known)), key=lambda i: known[i].error)
        run, known[place] = known[place].narrowed()
        chosen.append(run)
    return NextValues(found.column, found.target, tuple(chosen), found.warnings)


def _plain(value: float | str) -> float | str | int:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _factor(error: float) -> str:
    """Write a standard error of ln optimum in words."""
    return f"a factor of {np.exp(error):.3g}"


def _step(values: Array) -> float:
    """Return ln of the mean ratio of neighbours in the grid; ln 3 if the grid has one value."""
    grid = np.unique(values)
    return float(np.log(grid[-1] / grid[0]) / (len(grid) - 1)) if len(grid) > 1 else float(np.log(3))


def _towards(one: SizeOptimum) -> NextValue:
    """Return the next value at a size without an optimum: beyond the better end of its grid."""
    value = one.further
    if not np.isfinite(value):  # too few values for a quadratic
        grid = np.unique(one.values)
        heights = [one.targets[one.values == value].mean() for value in grid]
        better_above = len(grid) == 1 or bool(heights[-1] < heights[0]) != one.largest
        value = grid[-1] * np.exp(_step(one.values)) if better_above else grid[0] / np.exp(_step(one.values))
    return NextValue(one.size, one.name, _rounded(float(value)), one.reason, np.nan, np.nan)


@dataclass(frozen=True)
class _Known:
    """A size with an optimum, and the runs chosen there so far."""

    size: SizeOptimum
    values: Array
    scatter: float

    @classmethod
    def of(cls, size: SizeOptimum, scatter: float) -> _Known:
        return cls(size, size.values, scatter)

    @property
    def error(self) -> float:
        """Return the standard error of ln optimum, in units of the scatter if that is unknown."""
        return self._error(self.values) * (self.scatter if np.isfinite(self.scatter) else 1.0)

    def _error(self, values: Array) -> float:
        z = np.log(values / self.size.value)  # the vertex is at 0, so its error is that of the slope there
        design = np.stack([z**2, z, np.ones_like(z)], axis=1)
        return float(np.sqrt(np.linalg.inv(design.T @ design)[1, 1]) / abs(2 * self.size.curve[0]))

    def narrowed(self) -> tuple[NextValue, _Known]:
        """Return the value that narrows the optimum most, and the size's state after its run."""
        grid, step = np.unique(self.values), _step(self.size.values)
        low, high = max(grid[0], self.size.value / np.exp(step)), min(grid[-1], self.size.value * np.exp(step))
        every = [_rounded(value) for value in np.geomspace(low, high, 41)]
        apart = [one for one in every if np.abs(np.log(one / self.values)).min() > step / 10]
        value = min(apart or every, key=lambda one: self._error(np.append(self.values, one)))
        after = _Known(self.size, np.append(self.values, value), self.scatter)
        if np.isfinite(self.scatter):
            ends = f" [{self.size.ends}]" if len(self.values) == len(self.size.values) and self.size.ends else ""
            reason = f"the optimum {self.size.value:.3g}{ends} is known worst, to {_factor(self.error)}"
            errors = self.error, after.error
        else:
            reason, errors = "three values a size leave no scatter to measure, so no interval", (np.nan, np.nan)
        return NextValue(self.size.size, self.size.name, value, reason, *errors), after
