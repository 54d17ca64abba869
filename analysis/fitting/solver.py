"""Least squares for many parameter vectors at once: Levenberg-Marquardt in float64 with exact derivatives.

Starts, resamples, left-out rows, profiles and simulated tables are all one batch of m problems, which differ in their
weights, targets, starts or fixed parameters. The loss is a sum, tolerances are 1e-10, bounds are kept by projection.
(Minimising a mean loss with a general optimiser stops early and still says that it succeeded.)

Shapes: m problems, n rows, k parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gsq.analysis.fitting.options import SIDED, Loss, Residuals
from gsq.analysis.laws.form import Form
from gsq.analysis.tables.table import Array

TOLERANCE = 1e-10
STEPS = 200
_STEPS_REWEIGHTED = 1000  # reweighted steps converge linearly where most residuals lie beyond delta
_ROWS_OF_BLAS = 1000  # from so many rows on a product of matrices for each problem is faster
_NO_EFFECT = 1e-26  # of the largest effect of a parameter, squared
_BEYOND = 0.05  # share of the reweighted curvature that huber's rows beyond delta keep
BATCH = 400_000  # problems times rows: what fits into a cache goes faster

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Prior:
    """What is known of the internal parameters before any row: the cost grows by precision * (parameter - middle)^2,
    and where ``log`` by that of its logarithm."""

    middle: Array
    """(k,), of the logarithm where ``log``."""
    precision: Array
    """(k,), in units of the cost."""
    log: Bools
    """(k,)."""

    def penalty(self, theta: Array) -> tuple[Array, Array, Array]:
        """Cost (m,) of theta (m, k), half its gradient (m, k), and half its curvature (m, k)."""
        with np.errstate(all="ignore"):
            apart = np.where(self.log, np.log(theta), theta) - self.middle
            slope = np.where(self.log, 1 / theta, 1.0)
        return (self.precision * apart**2).sum(axis=1), self.precision * apart * slope, self.precision * slope**2


@dataclass(frozen=True)
class Problem:
    """A fitting problem: what all parameter vectors of a batch share."""

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
    """Residual beyond which Huber, Cauchy and quantile losses are no longer quadratic."""
    quantile: float = 0.5
    """For sided losses, the share of the weight of targets above the law."""
    prior: Prior | None = None

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
    problem: Problem,
    start: Array,
    weights: Array,
    fixed: Bools | None = None,
    steps: int | None = None,
    tolerance: float = TOLERANCE,
    tick: Callable[[int], None] = lambda count: None,
) -> Solution:
    """Minimise each problem from its start.

    ``start``: internal theta (m, k). ``weights``: (n,) or (m, n), zero for rows left out. ``fixed``: (k,) or (m, k),
    parameters that stay where they start. ``steps``: at most so many, by default 200, or 1,000 for cauchy.
    ``tolerance``: a problem is solved once a step gains less than this share of its cost. ``tick`` is told how many
    more are done.
    """
    steps = steps or (_STEPS_REWEIGHTED if problem.loss == "cauchy" else STEPS)
    m, k = start.shape
    n = problem.data.shape[1]
    size = max(1, BATCH // max(1, n))
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
                tolerance,
            )
        )
        tick(count)
    theta, cost, converged = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return Solution(theta, cost, converged.astype(bool))


def _solve(
    problem: Problem, start: Array, weights: Array, target: Array, fixed: Bools, steps: int, tolerance: float
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
        with np.errstate(all="ignore"):
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
        # A step that is damped until it promises nothing is not the end of a valley.
        flat = (2 * np.abs(promised) <= tolerance * c) & (gained <= tolerance * c) & (damp <= 1)
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


def cost_of(problem: Problem, theta: Array, weights: Array) -> Array:
    """Return the cost (m,) at theta (m, k); inf where it is undefined."""
    with np.errstate(all="ignore"):
        value = problem.predict(theta)
        apart = np.log(value / problem.target) if problem.residuals == "log" else value - problem.target
        cost = np.where(weights > 0, weights * rho(apart, problem.loss, problem.delta)[0], 0).sum(axis=1)
    return np.where(np.isfinite(cost), cost, np.inf)


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
        loss, factor = rho(residual, problem.loss, problem.delta, problem.quantile)
        bend = curvature(residual, problem, factor)
        cost = np.einsum("mn,mn->m", weights, loss)
        cost[bad.any(1)] = np.inf
        pulled = (weights if factor is None else weights * factor) * residual
        weighted = slope * (weights if bend is None else weights * bend)
        gradient, hessian = np.empty((len(theta), k)), np.empty((len(theta), k, k))
        if slope.shape[2] >= _ROWS_OF_BLAS:
            gradient = np.matmul(slope.transpose(1, 0, 2), pulled[:, :, None])[:, :, 0]
            hessian = np.matmul(weighted.transpose(1, 0, 2), slope.transpose(1, 2, 0))
        else:  # one pass over the batch for each entry
            for i in range(k):
                gradient[:, i] = np.einsum("mn,mn->m", slope[i], pulled)
                for j in range(i + 1):
                    hessian[:, i, j] = hessian[:, j, i] = np.einsum("mn,mn->m", weighted[i], slope[j])
        if problem.prior:
            known, pull, bent = problem.prior.penalty(theta)
            cost, gradient = cost + known, gradient + pull
            np.einsum("mii->mi", hessian)[:] += bent
        broken = ~(np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2)))
    cost[broken | ~np.isfinite(cost)] = np.inf
    return cost, gradient, hessian


def gradients(problem: Problem, theta: Array, weights: Array) -> Array:
    """What each row adds to half the gradient at theta (k,), and to the upper triangle of the Gauss-Newton matrix:
    (k + k (k + 1) / 2, n)."""
    value, slope = problem.form.both(theta[None], problem.data, problem.centre)
    value, slope = value[0], slope[:, 0]
    if problem.residuals == "log":
        residual, slope = np.log(value / problem.target), slope / value
    else:
        residual = value - problem.target
    factor = rho(residual, problem.loss, problem.delta, problem.quantile)[1]
    bend = curvature(residual, problem, factor)
    first = slope * (residual * weights if factor is None else residual * factor * weights)
    heavy = slope * (weights if bend is None else weights * bend)
    return np.stack([*first, *(heavy[i] * slope[j] for i, j in zip(*np.triu_indices(len(theta)), strict=True))])


def newton(problem: Problem, theta: Array, gradient: Array, hessian: Array) -> Array:
    """Return the step (m, k) from theta (k,) to the minimum of a quadratic cost; parameters at a bound stay."""
    held = np.broadcast_to((theta <= problem.low) | (theta >= problem.high), gradient.shape)
    scale = np.einsum("mii->mi", hessian)
    return _step(hessian, gradient, scale, np.full(len(gradient), 1e-12), held)


def rho(residual: Array, loss: Loss, delta: float, quantile: float = 0.5) -> tuple[Array, Array | None]:
    """The loss of each residual (law - target), its square near zero, and its reweighting factor (None: 1 everywhere).

    Of the sided losses, "asymmetric" is squares and "quantile" huber (its pinball is rounded within ``delta``), both
    times 2 ``quantile`` where the target lies above the law and 2 (1 - ``quantile``) where it lies below.
    """
    if loss in SIDED:
        value, factor = rho(residual, "huber" if loss == "quantile" else "least_squares", delta)
        side = 2 * np.where(residual < 0, quantile, 1 - quantile)
        return side * value, side if factor is None else side * factor
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


def curvature(residual: Array, problem: Problem, factor: Array | None) -> Array | None:
    """Return the factor of the squared slopes in the curvature of the loss (None: 1): its second derivative for huber,
    and a little beyond delta, where it has none; else the reweighting ``factor``.

    With reweighting alone, huber with a small delta takes hundreds of steps that each go a part of the way.
    """
    if problem.loss != "huber" or factor is None:
        return factor
    return np.where(factor == 1, 1.0, _BEYOND * factor)


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
        pivot = a[:, j, j] - _dots(lower[:, j, :j], lower[:, j, :j])
        lower[:, j, j] = np.sqrt(np.maximum(pivot, 1e-16))
        for i in range(j + 1, k):
            inner = _dots(lower[:, i, :j], lower[:, j, :j])
            lower[:, i, j] = (a[:, i, j] - inner) / lower[:, j, j]
        x[:, j] = (b[:, j] - _dots(lower[:, j, :j], x[:, :j])) / lower[:, j, j]
    for j in reversed(range(k)):
        x[:, j] = (x[:, j] - _dots(lower[:, j + 1 :, j], x[:, j + 1 :])) / lower[:, j, j]
    return x


def _dots(a: Array, b: Array) -> Array | float:
    """Dot products of the rows of a and b (m, r). Most are of no or one entry, where einsum would only cost time."""
    if a.shape[1] > 1:
        return np.asarray(np.einsum("mi,mi->m", a, b))
    return np.asarray(a[:, 0] * b[:, 0]) if a.shape[1] else 0.0
