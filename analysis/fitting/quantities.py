"""Intervals of a number that follows from a fit's parameters: by profile likelihood, and over the resamples.

Shapes: m parameter vectors, k parameters, n rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gsq.analysis.fitting.identify import slopes
from gsq.analysis.fitting.intervals import percentile_interval
from gsq.analysis.fitting.result import Fit
from gsq.analysis.fitting.solver import Bools
from gsq.analysis.tables.table import Array

Quantity = Callable[[Array], Array]
"""Internal parameters (m, k) to values (m,)."""
_STEPS = 100
_NUDGE = 1e-5  # relative step of the differences that derivatives of a quantity are taken from


@np.errstate(all="ignore")
def gradient(quantity: Quantity, theta: Array) -> Array:
    """Derivatives (k,) of ``quantity`` at ``theta`` (k,), by central differences."""
    step = _NUDGE * np.maximum(np.abs(theta), 1e-3)
    value = quantity(np.concatenate([theta + np.diag(step), theta - np.diag(step)]))
    return np.asarray((value[: len(theta)] - value[len(theta) :]) / (2 * step))


@np.errstate(invalid="ignore")  # between two infinite values
def bootstrap_interval(fit: Fit, quantity: Quantity) -> tuple[float, float]:
    """Expanded percentiles of ``quantity`` over the resamples of ``fit``; NaN where it has none."""
    values = quantity(fit.draws) if len(fit.draws) else np.empty(0)
    low, high = percentile_interval(values[~np.isnan(values)], fit.confidence, fit.freedom)
    return float(low), float(high)


def profile_interval(fit: Fit, quantity: Quantity) -> tuple[float, float]:
    """The least and the largest ``quantity`` of all laws whose sum of squares lies within ``fit.room`` of the best.

    Each end is a constrained optimum, found by Gauss-Newton steps to the edge of the quadratic model of the sum. An end
    that the steps do not settle at is open (infinite). NaN for other losses than least squares.
    """
    if fit.options.loss != "least_squares":
        return np.nan, np.nan
    here = float(quantity(fit.theta[None])[0])
    if not fit.room > 0 or not np.isfinite(here):
        return here, here
    return _end(fit, quantity, -1.0), _end(fit, quantity, 1.0)


@np.errstate(all="ignore")
def _end(fit: Fit, quantity: Quantity, sign: float) -> float:
    problem, weights = fit.problem, fit.weights
    goal = np.log(problem.target) if problem.residuals == "log" else problem.target
    most = fit.cost + fit.room

    def residual(theta: Array) -> Array:
        value = problem.predict(theta[None])[0]
        return np.asarray((np.log(value) if problem.residuals == "log" else value) - goal)

    theta, last = fit.theta.copy(), np.inf
    for _ in range(_STEPS):
        error, jacobian, slope = residual(theta), slopes(problem, theta[None])[0], gradient(quantity, theta)
        cost = float(weights @ error**2)
        value = float(quantity(theta[None])[0])
        if not (np.isfinite(cost) and np.isfinite(value) and np.isfinite(jacobian).all()):
            return sign * np.inf
        if abs(cost - most) <= 1e-4 * fit.room and abs(value - last) <= 1e-5 * max(abs(value), 1e-3):
            return value
        last = value
        step = _step(jacobian, error, weights, sign * slope, most, np.ones(len(theta), dtype=bool))
        held = ((theta <= problem.low) & (step < 0)) | ((theta >= problem.high) & (step > 0))
        if held.any():
            step = _step(jacobian, error, weights, sign * slope, most, ~held)
        share = 1.0
        # Not far beyond the edge: the quadratic model has only been seen inside.
        while share > 1e-4:
            trial = np.clip(theta + share * step, problem.low, problem.high)
            if float(weights @ residual(trial) ** 2) <= fit.cost + 4 * fit.room:
                break
            share /= 2
        theta = trial
    return sign * np.inf


def _step(jacobian: Array, error: Array, weights: Array, slope: Array, most: float, free: Bools) -> Array:
    """To the edge of the quadratic model of the cost, where the linear model of the quantity is largest, (k,)."""
    step = np.zeros(len(slope))
    length = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    root = (np.sqrt(weights)[:, None] * jacobian / length)[:, free]
    inverse = np.linalg.pinv(root.T @ root, rcond=1e-14, hermitian=True)
    pull = root.T @ (np.sqrt(weights) * error)
    wanted = (slope / length)[free]
    least = float(weights @ error**2 - pull @ inverse @ pull)
    wide = float(wanted @ inverse @ wanted)
    reach = np.sqrt(max(most - least, 0) / wide) if wide > 0 else 0.0
    step[free] = (inverse @ (reach * wanted - pull)) / length[free]
    return step
