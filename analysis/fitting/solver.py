"""Least squares for many parameter vectors at once: Levenberg-Marquardt in float64 with exact derivatives.

Starts, resamples, left-out rows, profiles and simulated tables are all one batch of m problems, which differ in their
weights, targets, starts or fixed parameters. The loss is a sum, tolerances are 1e-10, bounds are kept by projection.
(Minimising a mean loss with a general optimiser stops early and still says that it succeeded.)

Shapes: m problems, n rows, k parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from gsq.analysis.fitting.options import Loss, Residuals
from gsq.analysis.fitting.starts import draw, habits
from gsq.analysis.laws.form import Form
from gsq.analysis.tables.table import Array, Index

TOLERANCE = 1e-10
_STEPS = 200
_STEPS_ROBUST = 1000  # reweighted steps converge linearly where most residuals lie beyond delta
CARRIED = 8  # of the best starts that are still on their way after those steps, how many go on
_STEPS_CARRIED = 4000
_NO_EFFECT = 1e-26  # of the largest effect of a parameter, squared
_MEMORY = 8_000_000  # problems times rows that refits keep at once
_BATCH = 400_000  # problems times rows: what fits into a cache goes faster

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Problem:
    """What a batch shares."""

    form: Form
    data: Array
    """(q, n)."""
    target: Array
    """(n,) or (m, n)."""
    residuals: Residuals
    low: Array
    high: Array
    """Bounds of the internal parameters, (k,)."""
    loss: Loss = "least_squares"
    delta: float = 1.0
    """Where Huber and Cauchy losses turn from squares, in units of the residual."""

    @property
    def centre(self) -> Array:
        """Where amplitudes are measured, (q,): see :meth:`Form.centre`."""
        return self.form.centre(self.data)

    def predict(self, theta: Array, data: Array | None = None) -> Array:
        """Values (m, n) of internal theta (m, k)."""
        return self.form.both(theta, self.data if data is None else data, self.centre)[0]


@dataclass(frozen=True)
class Solution:
    theta: Array
    """(m, k): the best point seen."""
    cost: Array
    """(m,): the sum over rows of weight times loss, for least squares the sum of squares; inf where there is none."""
    converged: Bools
    """(m,)."""


def solve(
    problem: Problem, start: Array, weights: Array, fixed: Bools | None = None, steps: int | None = None
) -> Solution:
    """Minimise each problem from its start.

    ``start``: internal theta (m, k). ``weights``: (n,) or (m, n), zero for rows left out. ``fixed``: (k,) or (m, k),
    parameters that stay where they start. ``steps``: at most so many, by default 200, or 1,000 for robust losses.
    """
    steps = steps or (_STEPS if problem.loss == "least_squares" else _STEPS_ROBUST)
    m, k = start.shape
    n = problem.data.shape[1]
    size = max(1, _BATCH // max(1, n))
    parts = []
    for first in range(0, m, size):
        piece = slice(first, min(m, first + size))
        count = piece.stop - first
        parts.append(
            _solve(
                problem,
                start[piece],
                np.broadcast_to(weights if weights.ndim == 1 else weights[piece], (count, n)),
                np.broadcast_to(problem.target if problem.target.ndim == 1 else problem.target[piece], (count, n)),
                np.broadcast_to(
                    np.zeros(k, dtype=bool) if fixed is None else fixed if fixed.ndim == 1 else fixed[piece], (count, k)
                ),
                steps,
            )
        )
    theta, cost, converged = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Solution(theta, cost, converged.astype(bool))


def search(problem: Problem, start: Array, weights: Array) -> Solution:
    """Minimise one problem from each of its ``start`` (m, k), and carry on the best few that have not arrived.

    A start that is still falling after the usual steps is no failure: in nested laws it is often the best of all.
    """
    found = solve(problem, start, weights)
    order = np.argsort(found.cost)[:CARRIED]
    late = order[~found.converged[order] & np.isfinite(found.cost[order])]
    return _carry_on(problem, found, weights, late)


def _carry_on(problem: Problem, found: Solution, weights: Array, which: Index) -> Solution:
    """``found`` with the problems ``which`` taken further, from where they are."""
    if not len(which):
        return found
    target = problem.target if problem.target.ndim == 1 else problem.target[which]
    heavy = weights if weights.ndim == 1 else weights[which]
    more = solve(replace(problem, target=target), found.theta[which], heavy, steps=_STEPS_CARRIED)
    theta, cost, converged = found.theta.copy(), found.cost.copy(), found.converged.copy()
    theta[which], cost[which], converged[which] = more.theta, more.cost, more.converged
    return Solution(theta, cost, converged)


def _solve(
    problem: Problem, start: Array, weights: Array, target: Array, fixed: Bools, steps: int
) -> tuple[Array, Array, Bools]:
    low, high = problem.low, problem.high
    theta = np.where(fixed, start, np.clip(start, low, high))
    with np.errstate(all="ignore"):
        goal = np.log(target) if problem.residuals == "log" else target
    # Exact data leave residuals of rounding alone, where no relative criterion is ever met.
    nothing = 1e-28 * np.einsum("mn,mn->m", weights, goal**2 if problem.residuals == "linear" else np.ones_like(goal))
    cost, gradient, hessian = _normal(problem, theta, weights, goal)
    m = len(theta)
    damping, scale = np.full(m, 1e-3), np.zeros_like(theta)
    growth = np.full(m, 2.0)
    done = ~np.isfinite(cost)
    converged = np.zeros(m, dtype=bool)
    active = np.flatnonzero(~done)
    # The arrays below hold the active problems alone.
    t, c, g, h = theta[active], cost[active], gradient[active], hessian[active]
    w, y, f = weights[active], goal[active], fixed[active]
    damp, grow, sc = damping[active], growth[active], scale[active]
    diagonal = np.arange(theta.shape[1])
    bends = ~np.isin(diagonal, problem.form.amplitudes)
    for _ in range(steps):
        if not len(active):
            break
        sc = np.maximum(sc, h[:, diagonal, diagonal])
        # A parameter at its bound that would leave it stays; so does one that nothing but rounding depends on.
        size = t**2
        most = _NO_EFFECT * (sc * size).max(axis=1)
        idle = (sc <= 0) | (bends & (sc * np.maximum(size, 1) <= most[:, None]))
        held = f | ((t <= low) & (g > 0)) | ((t >= high) & (g < 0)) | idle
        step = _step(h, g, sc, damp, held)
        trial = np.clip(t + step, low, high)
        trial = np.where(held, t, trial)
        moved = trial - t
        promised = -(np.einsum("mk,mk->m", g, moved) + 0.5 * np.einsum("mk,mkl,ml->m", moved, h, moved))
        new_c, new_g, new_h = _normal(problem, trial, w, y)
        gained = c - new_c
        better = gained > 0
        with np.errstate(all="ignore"):
            ratio = gained / np.maximum(2 * promised, 1e-300)
            slope = np.abs(np.where(held, 0, g)) / np.sqrt(np.maximum(sc, 1e-300) * np.maximum(c, 1e-300)[:, None])
            still = np.sqrt((sc * moved**2).sum(1)) <= 1e-12 * np.sqrt((sc * t**2).sum(1))
        flat = (2 * np.abs(promised) <= TOLERANCE * c) & (gained <= TOLERANCE * c)
        end = flat | still | (slope.max(1) <= 1e-13) | (c <= nothing[active]) | held.all(1)
        stuck = damp > 1e16
        t[better], c[better] = trial[better], new_c[better]
        g[better], h[better] = new_g[better], new_h[better]
        damp = np.where(better, damp * np.maximum(1 / 3, 1 - (2 * np.clip(ratio, 0, 1) - 1) ** 3), damp * grow)
        damp = np.maximum(damp, 1e-15)
        grow = np.where(better, 2.0, grow * 2)
        over = end | stuck
        if over.any():
            which = active[over]
            theta[which], cost[which], converged[which] = t[over], c[over], end[over]
            keep = ~over
            active, t, c, g, h = active[keep], t[keep], c[keep], g[keep], h[keep]
            w, y, f, damp, grow, sc = w[keep], y[keep], f[keep], damp[keep], grow[keep], sc[keep]
    theta[active], cost[active] = t, c
    return theta, cost, converged


def _normal(problem: Problem, theta: Array, weights: Array, goal: Array) -> tuple[Array, Array, Array]:
    """Cost (m,), half its gradient (m, k), and the Gauss-Newton matrix (m, k, k)."""
    value, slope = problem.form.both(theta, problem.data, problem.centre)
    k = len(slope)
    with np.errstate(all="ignore"):
        if problem.residuals == "log":
            residual = np.log(value) - goal
            slope /= value
        else:
            residual = value - goal
        # Rows without weight must not spoil the sums with an infinity of theirs.
        used = weights > 0
        bad = ~np.isfinite(residual) & used
        residual = np.where(used, residual, 0)
        loss, factor = rho(residual, problem.loss, problem.delta)
        cost = np.einsum("mn,mn->m", weights, loss)
        cost[bad.any(1)] = np.inf
        factor = weights if factor is None else weights * factor
        pulled = factor * residual
        weighted = slope * factor
        gradient, hessian = np.empty((len(theta), k)), np.empty((len(theta), k, k))
        for i in range(k):
            gradient[:, i] = np.einsum("mn,mn->m", slope[i], pulled)
            for j in range(i + 1):
                hessian[:, i, j] = hessian[:, j, i] = np.einsum("mn,mn->m", weighted[i], slope[j])
        broken = ~(np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2)))
    cost[broken | ~np.isfinite(cost)] = np.inf
    return cost, gradient, hessian


def rho(residual: Array, loss: Loss, delta: float) -> tuple[Array, Array | None]:
    """The loss of each residual, its square near zero, and its reweighting factor (None: 1 everywhere)."""
    if loss == "least_squares":
        return residual**2, None
    size = np.abs(residual)
    if loss == "huber":
        near = size <= delta
        return np.where(near, residual**2, 2 * delta * size - delta**2), np.where(
            near, 1, delta / np.maximum(size, 1e-300)
        )
    square = (residual / delta) ** 2
    return delta**2 * np.log1p(square), 1 / (1 + square)


def _step(hessian: Array, gradient: Array, scale: Array, damping: Array, held: Bools) -> Array:
    """-(H + damping diag(scale))^-1 gradient (m, k), held parameters at rest, by Cholesky over the whole batch."""
    k = gradient.shape[1]
    unit = 1 / np.sqrt(np.where(scale > 0, scale, 1))
    free = ~held
    unit = np.where(free, unit, 0)
    a = hessian * unit[:, :, None] * unit[:, None, :]
    for i in range(k):
        a[:, i, i] = np.where(free[:, i], a[:, i, i] + damping, 1)
    return -unit * cholesky_solve(a, unit * gradient)


def cholesky_solve(a: Array, b: Array) -> Array:
    """x of a x = b for symmetric positive definite a (m, k, k), b (m, k); one pass over the batch for each entry."""
    k = b.shape[1]
    lower = np.zeros_like(a)
    x = np.empty_like(b)
    for j in range(k):
        pivot = a[:, j, j] - np.einsum("mi,mi->m", lower[:, j, :j], lower[:, j, :j])
        lower[:, j, j] = np.sqrt(np.maximum(pivot, 1e-16))
        for i in range(j + 1, k):
            inner = np.einsum("mi,mi->m", lower[:, i, :j], lower[:, j, :j])
            lower[:, i, j] = (a[:, i, j] - inner) / lower[:, j, j]
        x[:, j] = (b[:, j] - np.einsum("mi,mi->m", lower[:, j, :j], x[:, :j])) / lower[:, j, j]
    for j in reversed(range(k)):
        x[:, j] = (x[:, j] - np.einsum("mi,mi->m", lower[:, j + 1 :, j], x[:, j + 1 :])) / lower[:, j, j]
    return x


def draw_starts(
    problem: Problem,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    weights: Array,
    count: int,
    seed: list[int],
) -> Array:
    """Random internal starts (m * count, k) for m rows of ``weights`` (m, n), ``count`` after ``count``.

    Parameters that enter linearly are solved for, unless they have a range: then every second start takes them from it.
    The others are drawn from ``ranges``, or where there is none (None) by :mod:`gsq.analysis.fitting.starts`, which
    ``scales``, typical values of the columns, help.
    """
    form, rng = problem.form, np.random.default_rng(seed)
    m = len(weights) * count
    theta = np.zeros((m, form.count))
    bent = [i for i in range(form.count) if i not in form.amplitudes]
    known = habits(form, problem.data) if any(ranges[i] is None for i in bent) else {}
    for i, pair in enumerate(ranges):
        if pair is None and i in bent:
            theta[:, i] = draw(known.get(i), scales, problem.low[i], problem.high[i], m, rng)
        elif pair is not None:
            low, high = pair
            if low > 0 and high >= 100 * low:
                theta[:, i] = np.exp(rng.uniform(np.log(low), np.log(high), m))
            else:
                theta[:, i] = rng.uniform(low, high, m)
    given = [i for i in form.amplitudes if ranges[i] is not None]
    inner = form.internal(theta, problem.centre) if given else theta
    theta = np.clip(theta, problem.low, problem.high)
    target = np.repeat(np.broadcast_to(problem.target, weights.shape), count, axis=0)
    found = with_amplitudes(replace(problem, target=target), theta, np.repeat(weights, count, axis=0))
    if given:
        found[::2, given] = np.clip(inner, problem.low, problem.high)[::2, given]
    return found


def with_amplitudes(problem: Problem, theta: Array, weights: Array, kept: int | None = None) -> Array:
    """``theta`` (m, k) with the amplitudes, but for parameter ``kept``, that suit its other parameters: linear least
    squares (of relative errors for log residuals) for weights (n,) or (m, n), or a part of the target where that
    leaves the bounds."""
    form = problem.form
    names = [i for i in form.amplitudes if i != kept]
    if not names:
        return theta
    theta = theta.copy()
    with np.errstate(all="ignore"):
        basis, rest = form.basis(theta, problem.data, problem.centre)
        if kept in form.amplitudes:
            at = form.amplitudes.index(kept)
            rest = rest + basis[at] * theta[:, kept, None]
            basis = np.delete(basis, at, axis=0)
        target = np.broadcast_to(problem.target, rest.shape)
        heavy = np.broadcast_to(weights, rest.shape)
        if problem.residuals == "log":
            heavy = heavy / target**2
        # Each row of the basis at unit scale first: it may be larger than a square of it can be.
        most_of = np.maximum(np.nan_to_num(np.abs(basis), posinf=0).max(axis=2), 1e-300)
        unit = basis / most_of[:, :, None]
        gram = np.einsum("imn,jmn,mn->mij", unit, unit, heavy)
        right = np.einsum("imn,mn,mn->mi", unit, target - rest, heavy)
        size = np.sqrt(np.maximum(np.einsum("mii->mi", gram), 1e-300))
        gram = gram / size[:, :, None] / size[:, None, :]
        for i in range(len(names)):
            gram[:, i, i] += 1e-9
        solved = cholesky_solve(gram, right / size) / size / most_of.T
        # A part of the target for each term: where the solution would be at a bound, or no logarithm exist.
        share = np.mean(target, axis=1)[:, None] / len(names) / np.maximum(np.abs(basis).mean(axis=2).T, 1e-300)
    least, most = problem.low[names], problem.high[names]
    inside = np.isfinite(solved) & (solved > least) & (solved < most)
    # Never at a bound: a term whose amplitude is zero says nothing of its other parameters.
    spare = np.clip(np.where(np.isfinite(share), share, 1.0), least, most)
    theta[:, names] = np.where(inside, solved, np.clip(0.1 * spare, least, most))
    if problem.residuals == "log":
        value = form.both(theta, problem.data, problem.centre)[0]
        wrong = ~(value > 0).all(axis=1)
        theta[np.ix_(np.flatnonzero(wrong), np.array(names))] = spare[wrong]
    return np.where(np.arange(form.count) == kept, theta, np.clip(theta, problem.low, problem.high))


def refit(
    problem: Problem,
    theta: Array,
    weights: Array,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    starts: int,
    seed: list[int],
) -> Solution:
    """Fit each row of ``weights`` (m, n) anew, from ``theta`` (k,) or (m, k) and from ``starts`` - 1 random starts;
    the best."""
    m, n = weights.shape
    size = max(1, _MEMORY // (n * starts))
    if m > size:  # large tables go in parts
        parts = [
            refit(
                replace(problem, target=problem.target[i : i + size]) if problem.target.ndim == 2 else problem,
                theta if theta.ndim == 1 else theta[i : i + size],
                weights[i : i + size],
                ranges,
                scales,
                starts,
                [*seed, i],
            )
            for i in range(0, m, size)
        ]
        return Solution(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Solution)))
    first = np.broadcast_to(theta, (m, problem.form.count))[:, None, :]
    drawn = (
        draw_starts(problem, ranges, scales, weights, starts - 1, seed)
        if starts > 1
        else np.empty((0, theta.shape[-1]))
    )
    start = np.concatenate([first, drawn.reshape(m, starts - 1, problem.form.count)], axis=1).reshape(m * starts, -1)
    wide = problem
    if problem.target.ndim == 2:
        wide = replace(problem, target=np.repeat(problem.target, starts, axis=0))
    found = solve(wide, start, np.repeat(weights, starts, axis=0))
    pick = np.arange(m) * starts + np.argmin(found.cost.reshape(m, starts), axis=1)
    best = Solution(found.theta[pick], found.cost[pick], found.converged[pick])
    return _carry_on(problem, best, weights, np.flatnonzero(~best.converged & np.isfinite(best.cost)))
