"""Find which parameters the rows can tell apart, and choose among equally good fits where they cannot.

At an optimum the rows leave a law undetermined along the directions in which none of its values changes: the null space
of the Jacobian. Predictions at settings like those measured are unique all the same; of the parameters the smallest are
taken, in units of what they contribute (minimum norm).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gsq.analysis.fitting.solver import Bools, Problem, solve
from gsq.analysis.laws.named import Law
from gsq.analysis.tables.table import Array

RANK = 1e-10  # singular values of the Jacobian, its columns at unit length, below which a direction has no effect
_ROUNDING = 1e-13  # of the largest effect of a parameter: smaller ones are rounding errors
_SAME = 1e-9  # relative difference of sums of squares that counts as none


@dataclass(frozen=True)
class Freedom:
    """Directions that the rows leave open."""

    count: int
    """Number of these directions, by which the law has effectively fewer parameters."""
    groups: tuple[tuple[int, ...], ...]
    """Indices of parameters that only have a meaning together; a group of one has no effect on the rows."""


def slopes(problem: Problem, theta: Array, data: Array | None = None) -> Array:
    """Derivatives of the residuals, (m, n, k), at the rows of the problem or at ``data`` (q, n)."""
    value, slope = problem.form.both(theta, problem.data if data is None else data, problem.centre)
    if problem.residuals == "log":
        slope = slope / value
    return np.moveaxis(slope, 0, -1)


def unit_columns(problem: Problem, jacobian: Array, theta: Array) -> tuple[Array, Array]:
    """(n, k) with columns of length 1, and their lengths (k,).

    A column of zeros stays, with length 1, and so becomes one of nothing but rounding: that of a parameter which the
    formula bends by, and whose effect beside those of the others is as small as an error of rounding.
    """
    most = np.abs(jacobian).max(axis=0)
    most = np.where((most > 0) & np.isfinite(most), most, 1.0)  # a square of what is small may be 0
    length = most * np.linalg.norm(jacobian / most, axis=0)
    idle = length == 0
    bends = ~np.isin(np.arange(len(theta)), problem.form.amplitudes)
    idle |= bends & (length * np.maximum(np.abs(theta), 1) <= _ROUNDING * np.max(length * np.abs(theta)))
    length = np.where(idle | ~np.isfinite(length), 1.0, length)
    return np.where(idle, 0, jacobian / length), length


def null_space(unit: Array) -> Array:
    """Orthonormal directions (r, k) along which ``unit`` (n, k), of unit columns, changes nothing."""
    if not np.isfinite(unit).all():
        return np.eye(unit.shape[1])
    if len(unit) > unit.shape[1]:  # the same directions, without a matrix of rows by rows
        unit = np.asarray(np.linalg.qr(unit, mode="r"))
    _, values, directions = np.linalg.svd(unit, full_matrices=True)
    values = np.append(values, np.zeros(len(directions) - len(values)))
    return np.asarray(directions[values <= RANK * max(1.0, float(values[0]))])


def _sparse(directions: Array) -> Array:
    """Return directions that span the same space with as few parameters as elimination can reach."""
    found = directions.copy()
    left = np.arange(len(found))
    while len(left):
        row, column = np.unravel_index(np.argmax(np.abs(found[left])), found[left].shape)
        pivot = left[row]
        found[pivot] = found[pivot] / found[pivot, column]
        others = np.arange(len(found)) != pivot
        found[others] -= found[others, column][:, None] * found[pivot]
        left = left[left != pivot]
    return np.where(np.abs(found) < 1e-7, 0, found)


def freedom(problem: Problem, theta: Array) -> Freedom:
    """Find the directions that the rows leave open at ``theta`` (k,).

    Parameters at a bound do not count, nor those of a term whose amplitude is there: they are marked for that already.
    """
    unit = unit_columns(problem, slopes(problem, theta[None])[0], theta)[0]
    free = (theta > problem.low) & (theta < problem.high)
    if not free.all():
        free &= np.abs(unit).max(axis=0) > 0
    found = null_space(unit[:, free])
    if not len(found):
        return Freedom(0, ())
    indices = np.flatnonzero(free)
    # In the formula's own parameters, an amplitude that is measured at the centre moves with the exponents of its term.
    amplitudes = np.isin(np.arange(len(theta)), problem.form.amplitudes)
    unit_amplitudes = np.where(amplitudes, 1.0, theta)
    here = problem.form.natural(unit_amplitudes, problem.centre)
    touched = np.zeros((len(found), len(theta)), dtype=bool)
    for row, direction in zip(touched, _sparse(found), strict=True):
        row[indices] = np.abs(direction) > 1e-3 * np.abs(direction).max()
        nudged = problem.form.natural(unit_amplitudes + np.where(row & ~amplitudes, 1e-3, 0), problem.centre)
        row |= amplitudes & (np.abs(nudged - here) > 1e-9 * np.abs(here))
    return Freedom(len(found), _groups(touched))


def _groups(touched: Bools) -> tuple[tuple[int, ...], ...]:
    """Parameters (k) that share a direction (r, k), directly or by way of others."""
    left = [set(np.flatnonzero(row).tolist()) for row in touched]
    groups: list[set[int]] = []
    for one in left:
        apart = [group for group in groups if not group & one]
        groups = [*apart, one.union(*(group for group in groups if group & one))]
    return tuple(tuple(sorted(group)) for group in sorted(groups, key=min))


def least_norm(problem: Problem, theta: Array, cost: float, weights: Array) -> Array:
    """Return the smallest parameters (k,) that fit as well as ``theta`` and that a few steps reach."""
    best, limit = theta, cost * (1 + _SAME) + 1e-26 * float(weights @ _goal(problem) ** 2)

    def fits(trial: Array) -> Array | None:
        found = solve(problem, trial[None], weights)
        return found.theta[0] if found.cost[0] <= limit else None

    for _ in range(5):
        unit, length = unit_columns(problem, slopes(problem, best[None])[0], best)
        free = (best > problem.low) & (best < problem.high)
        null = null_space(unit[:, free])
        idle = np.flatnonzero(free)[np.abs(unit[:, free]).max(axis=0) == 0]
        start = best
        for i in idle:  # what nothing depends on is left away, if it can be
            trial = np.where(np.arange(len(best)) == i, np.clip(0, problem.low, problem.high), best)
            best = trial if fits(trial) is not None else best
        scaled = best[free] * length[free]
        step = np.zeros_like(best)
        step[free] = (null.T @ (null @ scaled)) / length[free]
        step[idle] = 0
        found = fits(np.clip(best - step, problem.low, problem.high)) if step.any() else None
        if found is not None:
            best = found
        if np.linalg.norm((best - start) * length) <= 1e-9 * max(1e-300, float(np.linalg.norm(best * length))):
            break
    return best


def _goal(problem: Problem) -> Array:
    return np.ones_like(problem.target) if problem.residuals == "log" else problem.target


def condition(law: Law, problem: Problem, theta: Array) -> tuple[float, float]:
    """Condition number of the normal matrix in the formula's parameters, and in the internal ones at unit scale;
    infinite where it is beyond what a float holds."""
    plain = replace(problem, form=law.form(law.parameters))
    natural = problem.form.natural(theta, problem.centre)
    raw, internal = slopes(plain, natural[None])[0], unit_columns(problem, slopes(problem, theta[None])[0], theta)[0]
    with np.errstate(all="ignore"):
        both = [float(np.square(np.linalg.cond(one))) if np.isfinite(one).all() else np.inf for one in (raw, internal)]
    return both[0], both[1]


def at_bound(value: float, low: float, high: float) -> bool:
    """Whether a value lies at a bound, or so close that the search merely stopped before it."""
    return any(_close(value, end) for end in (low, high))


def opened(pair: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """Open the ends of an interval that a bound, not the data, has set."""
    return (-np.inf if _close(pair[0], low) else pair[0]), (np.inf if _close(pair[1], high) else pair[1])


def _close(value: float, end: float) -> bool:
    return bool(np.isfinite(end) and abs(value - end) <= 1e-9 * max(1e-3, abs(end)))
