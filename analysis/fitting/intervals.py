"""Intervals of a fit: bootstrap by configuration, profile likelihood, and which parameters are not determined.

The seeds of a configuration are one unit in both: they move together in the bootstrap, and the profile measures the
scatter between configurations. Two seeds of a cell are not two cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from gsq.analysis.fitting.distributions import ranks, t_quantile
from gsq.analysis.fitting.identify import null_space, slopes, unit_columns
from gsq.analysis.fitting.options import Loss
from gsq.analysis.fitting.progress import advance, stage
from gsq.analysis.fitting.searching import refit, with_amplitudes
from gsq.analysis.fitting.solver import Problem, Solution, cholesky_solve, gradients, newton, solve
from gsq.analysis.laws.named import Law
from gsq.analysis.tables.table import Array, Index

LOCKED = 0.95  # rank correlation over the draws beyond which two parameters count as one
WIDE = 10.0  # an interval that spans more than this factor determines nothing
MAX_REDRAWS = 20  # for each resample asked for, so that a table that rarely carries the law still ends
LARGE = 20_000  # rows of a table beyond which resamples are one step from the fit
_PROBED, _GAIN = 64, 1e-6  # resamples that have all starts, and the relative gain by which the others get them too
_ROWS = 4_000_000  # rows times resamples times starts
_FAR_LINEAR = 4096.0  # steps of about one interval after which a profile that does not rise counts as open
_FAR_LOG = 28.0  # and in logarithms: a factor of 1e12


def _twice(values: Any) -> Any:
    return np.concatenate([values, values])


@dataclass(frozen=True)
class Draws:
    """Refits of resampled tables."""

    theta: Array
    """Internal parameters, shape (done, k)."""
    requested: int
    failed: int
    """Resamples whose refit did not converge, or that could not be drawn."""
    redrawn: int
    """Resamples that could not determine the law (a constant predictor, for instance) and were drawn again."""


def resample(configurations: Index, rng: np.random.Generator, count: int) -> Array:
    """How often each row is in each of ``count`` resamples, (count, rows): as many configurations as there are, with
    replacement, each with all its rows.

    ``configurations``: shape (rows,), the configuration number of each row, 0 to cells - 1.
    """
    cells = int(configurations.max()) + 1
    chosen = rng.integers(cells, size=(count, cells))
    times = np.zeros((count, cells))
    np.add.at(times, (np.arange(count)[:, None], chosen), 1)
    return times[:, configurations]


def bootstrap(
    problem: Problem,
    theta: Array,
    weights: Array,
    configurations: Index,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    count: int,
    starts: int,
    seed: int,
) -> Draws:
    """``count`` refits, each from the fit ``theta`` (k,) and from ``starts`` - 1 random starts, of which large tables
    get fewer: rows, resamples and starts multiply to 4 million at most (500 rows have all 8 of 1,000).

    Where none of the first resamples gains by its random starts, the others have the fit alone to start from. Tables
    of more than 20,000 rows take one Newton step from the fit instead of a refit: see :func:`one_step`.

    A resample whose rows of the Jacobian have a rank below that of all rows cannot tell the parameters apart whatever
    its targets are, and is drawn again.
    """
    rng = np.random.default_rng([seed, 1])
    if len(configurations) > LARGE:
        return Draws(one_step(problem, theta, weights, configurations, count, rng), count, 0, 0)
    slopes = problem.form.both(theta[None], problem.data, problem.centre)[1][:, 0].T  # (n, k)
    slopes = slopes / np.maximum(np.linalg.norm(slopes, axis=0), 1e-300)
    rank = np.linalg.matrix_rank(slopes)
    kept: list[Array] = []
    have = redrawn = 0
    while have < count and redrawn < MAX_REDRAWS * count:
        drawn = resample(configurations, rng, count - have)
        carries = np.linalg.matrix_rank(np.sqrt(drawn)[:, :, None] * slopes) >= rank
        redrawn += int((~carries).sum())
        kept.append(drawn[carries])
        have += int(carries.sum())
    times = np.concatenate(kept) if kept else np.empty((0, len(configurations)))
    if not len(times):
        return Draws(np.empty((0, len(theta))), count, count, redrawn)
    starts = max(1, min(starts, _ROWS // times.size))
    heavy = times * weights
    with stage(f"bootstrap of {len(heavy):,} resamples", len(heavy) + _PROBED * (len(heavy) > _PROBED)):
        parts = [refit(problem, theta, heavy[:_PROBED], ranges, scales, starts, [seed, 2])]
        if len(heavy) > _PROBED:
            alone = refit(problem, theta, heavy[:_PROBED], ranges, scales, 1, [seed, 2])
            gains = bool((parts[0].cost < alone.cost * (1 - _GAIN)).any())
            parts.append(refit(problem, theta, heavy[_PROBED:], ranges, scales, starts if gains else 1, [seed, 3]))
    kept_theta, good = (np.concatenate([getattr(part, name) for part in parts]) for name in ("theta", "converged"))
    return Draws(kept_theta[good], count, count - int(good.sum()), redrawn)


def one_step(
    problem: Problem, theta: Array, weights: Array, configurations: Index, count: int, rng: np.random.Generator
) -> Array:
    """Parameters (count, k) of resamples by configuration, after one Newton step from the fit ``theta`` (k,).

    Its error is of the order of one over the number of configurations. Gradients and curvatures are sums over rows, so
    that a resample is one product of its counts with those sums.
    """
    columns, k = gradients(problem, theta, weights), len(theta)
    sums = np.stack([np.bincount(configurations, column) for column in columns], axis=1)
    cells = len(sums)
    size, found = max(1, _ROWS // cells), []
    upper = np.triu_indices(k)
    for first in range(0, count, size):
        chosen = [
            np.bincount(rng.integers(cells, size=cells), minlength=cells)
            for _ in range(first, min(count, first + size))
        ]
        total = np.stack(chosen).astype(np.float64) @ sums
        hessian = np.zeros((len(total), k, k))
        hessian[:, upper[0], upper[1]] = hessian[:, upper[1], upper[0]] = total[:, k:]
        found.append(theta + newton(problem, theta, total[:, :k], hessian))
    return np.clip(np.concatenate(found), problem.low, problem.high)


def percentile_interval(
    values: Array, confidence: float, free: tuple[int, int] | None = None, loss: Loss = "least_squares"
) -> tuple[Array, Array]:
    """Lower and upper percentile over axis 0; NaN where there are fewer than two values.

    ``free``: (configurations, degrees of freedom left). The percentiles are then taken further out, as Student's t and
    the factor sqrt(configurations / left) ask for (the expanded percentile interval of Hesterberg 2015): resampling
    few cells understates their scatter. For other losses than least squares by the factor alone: resamples that draw an
    outlier twice or more have widened their percentiles already (with both, 12 rows cover 98 to 100 %).
    """
    if len(values) < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    tail = (1 - confidence) / 2
    if free is not None and free[1] > 0:
        edge = t_quantile(tail, free[1]) if loss == "least_squares" else ndtri(tail)
        tail = float(ndtr(edge * np.sqrt(free[0] / free[1])))
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def profiles(
    law: Law, problem: Problem, found: Solution, weights: Array, room: Array, names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """:func:`profile` of several parameters of one fit: all that no amplitude is in one batch."""
    inner = [name for name in names if law.parameters.index(name) not in problem.form.amplitudes]
    ends: dict[str, tuple[float, float]] = {}
    with stage("profile intervals", len(names)):
        if inner:
            index = np.array([law.parameters.index(name) for name in inner])
            theta, cost = np.repeat(found.theta, len(inner), axis=0), np.repeat(found.cost, len(inner))
            low, high = _profile(problem, theta, cost, weights, np.repeat(room, len(inner)), index)
            ends = {name: (float(low[i]), float(high[i])) for i, name in enumerate(inner)}
            advance(len(inner))
        for name in names:
            if name not in ends:
                pair = profile(law, problem, found, weights, room, name)
                ends[name] = (float(pair[0][0]), float(pair[1][0]))
                advance()
    return ends


def profile(law: Law, problem: Problem, found: Solution, weights: Array, room: Array, name: str) -> tuple[Array, Array]:
    """Ends of the profile-likelihood interval of parameter ``name``, (m,) each, for m fits at once.

    ``found``: the fits in the internal parameters of ``problem``. ``room``: (m,), by how much the cost may rise within
    the interval. An end at which the cost does not rise that far is infinite, or the parameter's bound where it has
    one.
    """
    index = law.parameters.index(name)
    natural = problem.form.natural(found.theta, problem.centre)
    # With its own amplitude not centred, fixing the parameter of the formula is fixing a coordinate.
    own = replace(problem, form=law.form([name]))
    theta = own.form.internal(natural, own.centre)
    return _profile(own, theta, found.cost, weights, room, np.full(len(theta), index))


def _profile(own: Problem, theta: Array, cost: Array, weights: Array, room: Array, index: Index) -> tuple[Array, Array]:
    """:func:`profile` of the internal parameter ``index`` (m,) of each fit; amplitudes one at a time."""
    m, k = theta.shape
    kept = int(index[0]) if index[0] in own.form.amplitudes else None
    every = np.arange(m)
    fixed = np.zeros((2 * m, k), dtype=bool)
    fixed[np.arange(2 * m), _twice(index)] = True
    best = theta[every, index]
    least, most = own.low[index], own.high[index]
    logarithmic = (least == 0) & ~np.isfinite(most) & (best > 0)
    width = _wald(own, theta, weights, room, index)
    usual = np.where(logarithmic, 0.5 * best, 0.5 * (np.abs(best) + 0.1))
    width = np.where(np.isfinite(width) & (width > 0) & (width < 1e6 * (np.abs(best) + 1e-3)), width, usual)
    pace = np.where(logarithmic, np.clip(width / np.where(logarithmic, best, 1), 1e-8, 5.0), width)
    least, most, index = _twice(least), _twice(most), _twice(index)

    sides = np.repeat([-1.0, 1.0], m)
    best2, pace2, log2, room2, floor = (
        _twice(best),
        _twice(pace),
        np.tile(logarithmic, 2),
        _twice(room),
        _twice(cost),
    )
    wide = replace(own, target=_twice(own.target)) if own.target.ndim == 2 else own
    heavy = _twice(weights) if weights.ndim == 2 else weights

    def value(t: Array, rows: Index) -> Array:
        s, b, p = sides[rows], best2[rows], pace2[rows]
        with np.errstate(over="ignore"):
            raw = np.where(log2[rows], b * np.exp(s * p * np.minimum(t, 2 * _FAR_LOG / p)), b + s * p * t)
        return np.clip(raw, least[rows], most[rows])

    def rise(t: Array, rows: Index, start: Array) -> tuple[Array, Array]:
        start = start.copy()
        start[np.arange(len(rows)), index[rows]] = value(t, rows)
        piece = replace(wide, target=wide.target[rows]) if wide.target.ndim == 2 else wide
        own_weights = heavy[rows] if heavy.ndim == 2 else heavy
        done = solve(piece, start, own_weights, fixed[rows])
        above = done.cost - floor[rows] > room2[rows]
        if above.any():
            # A rate that doubles may ask for an amplitude that is smaller by powers of ten: too far to go step by step.
            other = solve(piece, with_amplitudes(piece, start, own_weights, kept), own_weights, fixed[rows])
            better = other.cost < done.cost
            done = Solution(
                np.where(better[:, None], other.theta, done.theta), np.minimum(done.cost, other.cost), done.converged
            )
        return np.maximum(done.cost - floor[rows], 0), done.theta

    inner, outer = np.zeros(2 * m), np.full(2 * m, np.nan)
    inner_rise, outer_rise = np.zeros(2 * m), np.full(2 * m, np.inf)
    here = _twice(theta)
    end = np.full(2 * m, np.nan)
    t = np.ones(2 * m)
    rows = np.flatnonzero(np.isfinite(floor) & (room2 > 0))
    while len(rows):  # outwards, doubling, until the cost has risen far enough
        risen, reached = rise(t[rows], rows, here[rows])
        above = (risen > room2[rows]) & np.isfinite(risen)
        outer[rows[above]], outer_rise[rows[above]] = t[rows[above]], risen[above]
        below = rows[~above]
        known = np.isfinite(risen[~above])
        inner[below[known]], inner_rise[below[known]] = t[below[known]], risen[~above][known]
        here[below[known]] = reached[~above][known]
        at = value(t[below], below)
        bound = np.where(sides[below] < 0, least[below], most[below])
        # Where the law cannot be computed any further, nothing has ended the interval either.
        far = ~known | np.where(log2[below], t[below] * pace2[below] > _FAR_LOG, t[below] > _FAR_LINEAR)
        limit = np.where(log2[below] & (sides[below] < 0), 0.0, sides[below] * np.inf)
        end[below] = np.where(at == bound, bound, np.where(far, limit, np.nan))
        rows = below[np.isnan(end[below])]
        t[rows] *= 2
    rows = np.flatnonzero(np.isfinite(outer))
    for _ in range(12):  # inwards: the root of the rise is nearly linear in the parameter
        if not len(rows):
            break
        a, b = np.sqrt(inner_rise[rows]), np.sqrt(outer_rise[rows])
        goal = np.sqrt(room2[rows])
        with np.errstate(all="ignore"):
            share = np.where(np.isfinite(b), (goal - a) / (b - a), 0.5)
        share = np.clip(np.where(np.isfinite(share), share, 0.5), 0.1, 0.9)
        t[rows] = inner[rows] + share * (outer[rows] - inner[rows])
        risen, reached = rise(t[rows], rows, here[rows])
        above = risen > room2[rows]
        outer[rows[above]], outer_rise[rows[above]] = t[rows[above]], risen[above]
        below = rows[~above]
        inner[below], inner_rise[below], here[below] = t[below], risen[~above], reached[~above]
        near = np.abs(np.sqrt(risen) - goal) <= 1e-5 * goal
        end[rows] = value(t[rows], rows)
        rows = rows[~near]
    return end[:m], end[m:]


@np.errstate(all="ignore")
def delta_band(problem: Problem, theta: Array, weights: Array, room: float, data: Array) -> tuple[Array, Array]:
    """Band of the law's value at ``data`` (q, p) by the delta method, (p,) each.

    Predictions are nearly linear in what the data determine, even where parameters are not; so their interval is that
    of a quadratic cost that rises by ``room``, in the logarithm for log residuals. Parameters at a bound count as free.
    It is open where the value depends on what no row tells.
    """
    here = problem.form.both(theta[None], data, problem.centre)[0][0]
    rows, length = unit_columns(problem, np.sqrt(weights)[:, None] * slopes(problem, theta[None])[0], theta)
    wanted = slopes(problem, theta[None], data)[0] / length  # (p, k)
    inverse = np.linalg.pinv(rows.T @ rows, rcond=1e-14, hermitian=True)
    half = np.sqrt(np.maximum(room * np.einsum("pi,ij,pj->p", wanted, inverse, wanted), 0))
    blind = np.linalg.norm(wanted @ null_space(rows).T, axis=1) > 1e-6 * np.linalg.norm(wanted, axis=1)
    half = np.where(blind, np.inf, half)
    if problem.residuals == "log":
        return here * np.exp(-half), here * np.exp(half)
    return here - half, here + half


def _wald(problem: Problem, theta: Array, weights: Array, room: Array, index: Index) -> Array:
    """Return how far parameter ``index`` (m,) moves as a quadratic cost rises by ``room``, (m,)."""
    value, slope = problem.form.both(theta, problem.data, problem.centre)
    with np.errstate(all="ignore"):
        if problem.residuals == "log":
            slope = slope / value
        hessian = np.einsum("imn,jmn,mn->mij", slope, slope, np.broadcast_to(weights, value.shape))
        size = np.sqrt(np.maximum(np.einsum("mii->mi", hessian), 1e-300))
        unit = np.zeros(theta.shape)
        every = np.arange(len(theta))
        unit[every, index] = 1
        scaled = np.nan_to_num(hessian / size[:, :, None] / size[:, None, :])
        inverse = cholesky_solve(scaled + 1e-14 * np.eye(theta.shape[1]), unit)[every, index]
        return np.asarray(np.sqrt(np.maximum(room * inverse, 0)) / size[every, index])


def undetermined(
    values: Array, intervals: Mapping[str, tuple[float, float]], certain: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the parameters that the data do not determine, and why.

    ``values``: natural parameters of the draws, shape (done, k), in the order of ``intervals``. Not
    determined is a parameter whose interval is open, spans zero or more than a factor of 10, and one that moves with
    such a parameter from draw to draw (rank correlation beyond 0.95): only a combination of the two is known.
    ``certain``: parameters that are not determined for another reason, which is given.
    """
    names = list(intervals)
    found = {name: why for name, pair in intervals.items() if (why := _too_wide(*pair))} | dict(certain or {})
    if not found or len(names) < 2 or len(values) < 3:
        return found
    with np.errstate(invalid="ignore"):  # a parameter that never moves has no correlation
        tied_by = np.asarray(np.corrcoef(ranks(values, axis=0).T))
    for _ in names:  # repeated, because a parameter found in one pass can pull in another in the next
        for i, name in enumerate(names):
            tied = [other for j, other in enumerate(names) if other in found and abs(tied_by[i, j]) > LOCKED]
            if name not in found and tied:
                found[name] = f"it moves with {tied[0]}"
    return {name: found[name] for name in names if name in found}


def _too_wide(low: float, high: float) -> str:
    if np.isnan(low) or np.isnan(high):
        return ""
    if np.isinf(low) or np.isinf(high):
        where = "on both sides" if np.isinf(low) and np.isinf(high) else "below" if np.isinf(low) else "above"
        return f"its interval is open {where}"
    if low <= 0 <= high:
        return "its interval spans zero" if low < 0 < high else "its interval reaches zero"
    small, large = sorted((abs(low), abs(high)))
    return f"its interval spans a factor of {large / small:.2g}" if large > WIDE * small else ""
