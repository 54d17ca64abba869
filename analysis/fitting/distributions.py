"""Quantiles, tails and ranks, from scipy.special: importing scipy.stats takes a second, longer than most fits.

Values are those of scipy.stats, bit for bit, where its distributions are defined (tests compare them); NaN elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]


def _where_defined(value: Any, *freedoms: Any) -> Any:
    """NaN without degrees of freedom."""
    for freedom in freedoms:
        value = np.where(np.greater(freedom, 0), value, np.nan)
    return value[()]


def t_quantile(p: Any, freedom: Any) -> Any:
    """Quantile of Student's t at 0 < p < 1; infinite ``freedom`` gives the normal distribution's."""
    return _where_defined(special.stdtrit(freedom, p), freedom)


def chi2_quantile(p: Any, freedom: Any) -> Any:
    return _where_defined(2 * special.gammaincinv(np.divide(freedom, 2), p), freedom)


def chi2_above(x: Any, freedom: Any) -> Any:
    """Probability of a larger value than ``x``."""
    return _where_defined(special.chdtrc(freedom, np.maximum(x, 0)), freedom)


def f_quantile(p: Any, above: Any, below: Any) -> Any:
    """Quantile at 0 < p < 1 of F with ``above`` and ``below`` degrees of freedom."""
    return _where_defined(special.fdtri(above, below, p), above, below)


def f_above(x: Any, above: Any, below: Any) -> Any:
    """Probability of a larger value than ``x``."""
    return _where_defined(special.fdtrc(above, below, np.maximum(x, 0)), above, below)


def ranks(values: Any, axis: int = -1) -> Array:
    """Ranks from 1 along an axis, equal values sharing their mean; all NaN where one of them is."""

    def line(values: Array) -> Array:
        if np.isnan(values).any():
            return np.full(len(values), np.nan)
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place])

    return np.apply_along_axis(line, axis, np.asarray(values, dtype=float))


def spearman(x: Any, y: Any) -> tuple[float, float]:
    """Rank correlation of x and y (n,), and its two-sided p by Student's t; NaN where one of them does not vary."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = np.corrcoef([ranks(x), ranks(y)])[1, 0]
        freedom = len(x) - 2
        t = rho * np.sqrt((freedom / ((rho + 1) * (1 - rho))).clip(0))
    return float(rho), float(2 * special.stdtr(freedom, -abs(t)))
