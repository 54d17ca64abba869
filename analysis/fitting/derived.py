"""Compute intervals of quantities that follow from a fit's parameters: an exponent, a ratio, the best size.

Parameters that the data leave open may still have a well-determined combination: along the valley in which A and a can
hardly be told apart, b / (a + b) may stay nearly the same. The ends of a profile-likelihood interval are the least and
the largest value of the quantity over all parameters whose cost is within the profile's room (Venzon and Moolgavkar
1988); scipy's SLSQP finds both, in coordinates in which that region is about the unit ball.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.identify import slopes, unit_columns
from gsq.analysis.fitting.intervals import WIDE
from gsq.analysis.fitting.solver import Problem, rho
from gsq.analysis.laws.formula import read_expression
from gsq.analysis.laws.named import Law
from gsq.analysis.laws.syntax import numeric
from gsq.analysis.tables.table import Array

Quantity = Callable[[Array], Array]
"""A function from natural parameters (m, k) to values (m,)."""
FAR = 300.0  # in units of the region's size: an end beyond counts as open
_STEP = 1e-4  # of the differences that give a quantity's slope


@dataclass(frozen=True)
class Derived:
    """A quantity that follows from the parameters of a fit, with its intervals."""

    name: str
    value: float
    interval: tuple[float, float]
    """(low, high) of the kind that the fit shows; infinite where open, NaN where there is none."""
    profile: tuple[float, float]
    bootstrap: tuple[float, float]

    @property
    def why_not(self) -> str:
        """Say why the data do not determine it; "" if they do. Spanning zero is no reason: a difference often does."""
        low, high = self.interval
        if np.isinf(low) or np.isinf(high):
            return "its interval is open"
        if low * high > 0 and max(abs(low), abs(high)) > WIDE * min(abs(low), abs(high)):
            return f"its interval spans a factor of {max(abs(low), abs(high)) / min(abs(low), abs(high)):.2g}"
        return ""

    def text(self) -> str:
        """ "b / (a + b) = 0.3551  profile [0.3233, 0.3876]  bootstrap [0.3134, 0.388]"."""
        return f"{self.name} = {self.value:.4g}  {self.ends()}" + (f"  ({self.why_not})" if self.why_not else "")

    def ends(self) -> str:
        """Write both kinds of interval in words; "" without any."""

        def shown(pair: tuple[float, float]) -> str:
            return ", ".join("open" if np.isinf(end) else f"{end:.4g}" for end in pair)

        kinds = {"profile": self.profile, "bootstrap": self.bootstrap}
        return "  ".join(f"{kind} [{shown(pair)}]" for kind, pair in kinds.items() if not np.isnan(pair).any())

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; NaN and open ends become None."""

        def ends(pair: tuple[float, float]) -> dict[str, object]:
            low, high = (float(end) if np.isfinite(end) else None for end in pair)
            return {"low": low, "high": high}

        return {
            "value": float(self.value) if np.isfinite(self.value) else None,
            **ends(self.interval),
            "profile": ends(self.profile),
            "bootstrap": ends(self.bootstrap),
            "determined": not self.why_not,
            "why_not": self.why_not or None,
        }


def parameter_expression(text: str, law: Law) -> Quantity:
    """Read an expression over the parameters of ``law``, such as "b / (a + b)", as a quantity.

    Raises AnalysisError for what cannot be read and for a name that is no parameter.
    """
    compute = numeric(read_expression(text, law.parameters, "the derived quantity"))

    @np.errstate(all="ignore")
    def quantity(natural: Array) -> Array:
        found = compute(dict(zip(law.parameters, natural.T, strict=True)))
        return np.broadcast_to(np.asarray(found, dtype=np.float64), natural.shape[:1])

    return quantity


@np.errstate(all="ignore")
def region_ends(
    problem: Problem, theta: Array, weights: Array, room: float, quantity: Quantity, draws: Array
) -> tuple[float, float]:
    """Least and largest value of ``quantity`` where the cost is at most ``room`` above that at ``theta`` (k,), the
    optimum; infinite where it does not end. ``draws``: internal parameters (m, k), of which those within the region are
    further starts. Bounds of parameters are kept.
    """
    centre = problem.centre
    move = _unit_ball(problem, theta, weights, room)
    base = _costs(problem, theta[None], weights)[0][0]

    def value(z: Array) -> Array:
        """Evaluate at z (m, k)."""
        return np.asarray(quantity(problem.form.natural(theta + z @ move.T, centre)))

    def slope(z: Array) -> Array:
        steps = _STEP * np.eye(len(z))
        both = value(np.concatenate([z + steps, z - steps]))
        found = (both[: len(z)] - both[len(z) :]) / (2 * _STEP)
        return np.where(np.isfinite(found), found, 0.0)

    def left(z: Array) -> tuple[float, Array]:
        """Return the share of the room that is left, and its slope."""
        cost, gradient = _costs(problem, (theta + move @ z)[None], weights)
        used = (cost[0] - base) / room
        return (1 - used, -gradient[0] @ move / room) if np.isfinite(used) else (-1e6, -2 * z)

    here, start = float(value(np.zeros((1, len(theta))))[0]), slope(np.zeros(len(theta)))
    steep = float(np.linalg.norm(start))
    if not np.isfinite(here):
        raise AnalysisError("the derived quantity is not a finite number at the fitted parameters")
    if steep == 0:
        return here, here
    inside = draws if not len(draws) else np.asarray(np.linalg.lstsq(move, (draws - theta).T, rcond=None)[0].T)
    spread = value(inside) if len(draws) else np.empty(0)
    kept = _costs(problem, draws, weights)[0] <= base + room if len(draws) else np.empty(0, dtype=bool)
    inside, spread = inside[kept & np.isfinite(spread)], spread[kept & np.isfinite(spread)]
    ends = []
    for sign in (-1.0, 1.0):
        found = [_furthest(problem, theta, move, sign, here, steep, value, slope, left, sign * start / steep)]
        least = sign * (spread - here)
        if len(spread) and not found[0] >= least.max() - 1e-6 * steep:  # the search is not the furthest that is known
            other = inside[np.argmax(least)]
            found.append(_furthest(problem, theta, move, sign, here, steep, value, slope, left, other))
        # Where no search stays in the region, nothing is known of its end.
        ends.append(here + sign * (np.inf if np.isnan(found).all() else np.nanmax(found)))
    return float(ends[0]), float(ends[1])


def _furthest(
    problem: Problem,
    theta: Array,
    move: Array,
    sign: float,
    here: float,
    steep: float,
    value: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    left: Callable[[Array], tuple[float, Array]],
    start: Array,
) -> float:
    """How far the quantity goes from ``here`` towards ``sign`` within the region, from one start; NaN where the search
    leaves it."""
    from scipy.optimize import minimize

    known: dict[bytes, float] = {}

    def moved(z: Array) -> float:
        key = z.tobytes()
        if key not in known:
            known[key] = sign * (float(value(z[None])[0]) - here) / steep
        return known[key]

    def aim(z: Array) -> float:  # an amplitude may grow by powers of ten: arcsinh is linear at first, and then slow
        found = moved(z)
        return -float(np.arcsinh(found)) if np.isfinite(found) else 1e6

    constraints = [{"type": "ineq", "fun": lambda z: left(z)[0], "jac": lambda z: left(z)[1]}]
    for bound, side in ((problem.low, 1.0), (problem.high, -1.0)):
        which = np.isfinite(bound)
        if which.any():
            away, by = side * (theta - bound)[which], side * move[which]
            # At unit length, so that a bound counts as the room does.
            length = np.maximum(np.linalg.norm(by, axis=1), 1e-300)
            constraints.append(
                {
                    "type": "ineq",
                    "fun": lambda z, by=by, away=away, length=length: (by @ z + away) / length,  # type: ignore[misc]
                    "jac": lambda z, by=by, length=length: by / length[:, None],  # type: ignore[misc]
                }
            )
    done = minimize(
        aim,
        start,
        jac=lambda z: -sign * slope(z) / steep / np.sqrt(1 + np.nan_to_num(moved(z)) ** 2),
        method="SLSQP",
        bounds=[(-FAR, FAR)] * len(start),
        constraints=constraints,
        options={"maxiter": 100, "ftol": 1e-9},
    )
    if not left(done.x)[0] > -1e-3:
        return np.nan
    return np.inf if np.abs(done.x).max() >= 0.99 * FAR else moved(done.x) * steep


def _unit_ball(problem: Problem, theta: Array, weights: Array, room: float) -> Array:
    """(k, k): theta + move @ z has about ``room`` more cost where z has length 1.

    Directions that the rows hardly see reach as far as the parameters are large, not as far as the cost would let them.
    """
    unit, length = unit_columns(problem, np.sqrt(weights)[:, None] * slopes(problem, theta[None])[0], theta)
    values, directions = np.linalg.eigh(unit.T @ unit)
    move = directions / length[:, None] * np.sqrt(room / np.maximum(values, 1e-30))
    most = np.abs(move / np.maximum(np.abs(theta), 0.1)[:, None]).max(axis=0)
    return np.asarray(move / np.maximum(most, 1.0))


def _costs(problem: Problem, theta: Array, weights: Array) -> tuple[Array, Array]:
    """Cost (m,) and gradient (m, k) of internal theta (m, k)."""
    value, slope = problem.form.both(theta, problem.data, problem.centre)
    if problem.residuals == "log":
        residual, slope = np.log(value) - np.log(problem.target), slope / value
    else:
        residual = value - problem.target
    loss, factor = rho(residual, problem.loss, problem.delta, problem.quantile)
    pulled = weights * residual * (1 if factor is None else factor)
    return loss @ weights, 2 * np.einsum("kmn,mn->mk", slope, pulled)
