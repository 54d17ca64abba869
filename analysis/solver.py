"""Least squares in residual form: Levenberg-Marquardt, analytic Jacobian, tolerances 1e-10, many starts.

Minimising a mean loss with a general optimiser stops early and still says that it succeeded.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from analysis.errors import AnalysisError
from analysis.laws import Law
from analysis.table import Array

Residuals = Literal["log", "linear"]
STARTS = 100
_LARGEST_LOG = 50.0  # a wild start may overflow in linear residuals; rFID never exceeds e^50


def solve(law: Law, x: Array, rfid: Array, residuals: Residuals, start: Array) -> tuple[Array, float] | None:
    """theta (k,) and its sum of squares from one start; None where it does not converge."""
    from scipy.optimize import least_squares

    log_rfid, scale = np.log(rfid), float(np.sqrt(np.mean(rfid**2)))

    def residual(theta: Array) -> Array:
        log_prediction = law.log_prediction(x, theta)
        if residuals == "log":
            return log_prediction - log_rfid
        return (np.exp(np.minimum(log_prediction, _LARGEST_LOG)) - rfid) / scale

    def jacobian(theta: Array) -> Array:
        slope = law.log_jacobian(x, theta)
        if residuals == "log":
            return slope
        return slope * (np.exp(np.minimum(law.log_prediction(x, theta), _LARGEST_LOG)) / scale)[:, None]

    try:
        # A wild start may run into infinities on its way; such an end is turned away below.
        with np.errstate(all="ignore"):
            found = least_squares(residual, start, jacobian, method="lm", ftol=1e-10, xtol=1e-10, gtol=1e-10)
    except (ValueError, np.linalg.LinAlgError):
        return None
    if not found.success or not np.isfinite(found.x).all() or not np.isfinite(found.cost):
        return None
    return found.x, 2 * float(found.cost)


def multi_start(law: Law, x: Array, rfid: Array, residuals: Residuals, seed: int) -> tuple[Array, float]:
    """Best theta over STARTS random starts, and the share of starts that reach it."""
    rng = np.random.default_rng([seed, 0])
    low, high = np.array(law.start_box).T
    shift = np.where(law.amplitudes, np.log(np.median(rfid)), 0.0)
    solved = [solve(law, x, rfid, residuals, rng.uniform(low, high) + shift) for _ in range(STARTS)]
    found = [solution for solution in solved if solution is not None]
    if not found:
        raise AnalysisError(
            f"{law.name}: none of {STARTS} starts converged; look at the data first (gsq plot TABLE), or try "
            "another law"
        )
    theta, least = min(found, key=lambda solution: solution[1])
    # The absolute term is for data that lie exactly on a law, where every sum of squares is rounding.
    reached = [value <= least * (1 + 1e-6) + 1e-16 * len(rfid) for _, value in found]
    return theta, sum(reached) / STARTS
