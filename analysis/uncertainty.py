"""Bootstrap by configuration: the seeds of a cell are one unit and move together.

Resampling rows would treat two seeds of a cell as two independent cells and give intervals that are too
narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.table import Array

Index = npt.NDArray[np.int64]
LOCKED = 0.95  # rank correlation over the draws beyond which two parameters count as one
MAX_REDRAWS = 20  # for each resample asked for, so that a table that rarely carries the law still ends


@dataclass(frozen=True)
class Draws:
    """Refits of resampled tables."""

    theta: Array
    """Internal parameters, shape (done, k)."""
    requested: int
    failed: int
    """Resamples whose refit did not converge, or that could not be drawn."""
    redrawn: int
    """Resamples that could not carry the law (for instance a constant predictor) and were drawn again."""


def resample_rows(configurations: Index, rng: np.random.Generator) -> Index:
    """Row numbers of one resample: as many configurations as there are, with replacement, each with all its
    rows.

    ``configurations``: shape (rows,), the configuration number of each row, 0 to count - 1.
    """
    count = int(configurations.max()) + 1
    chosen = rng.integers(count, size=count)
    return np.concatenate([np.flatnonzero(configurations == number) for number in chosen])


def bootstrap(
    refit: Callable[[Index], Array | None],
    jacobian: Array,
    configurations: Index,
    count: int,
    seed: int,
) -> Draws:
    """``count`` refits. ``refit`` maps row numbers to theta (k,), or None where it does not converge.

    ``jacobian``: shape (rows, k), d ln rFID / d theta at the fit to all rows. A resample whose rows of it
    have a rank below k cannot tell the parameters apart whatever its rfid values are, and is drawn again.
    """
    rng = np.random.default_rng([seed, 1])
    parameters = jacobian.shape[1]
    thetas: list[Array] = []
    failed = redrawn = 0
    while len(thetas) + failed < count:
        rows = resample_rows(configurations, rng)
        if np.linalg.matrix_rank(jacobian[rows]) < parameters:
            redrawn += 1
            if redrawn >= MAX_REDRAWS * count:
                failed = count - len(thetas)
            continue
        theta = refit(rows)
        if theta is None:
            failed += 1
        else:
            thetas.append(theta)
    return Draws(np.array(thetas).reshape(-1, parameters), count, failed, redrawn)


def percentile_interval(values: Array, confidence: float) -> tuple[Array, Array]:
    """Lower and upper percentile over axis 0; NaN where there are fewer than two values."""
    if len(values) < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


def undetermined(values: Array, intervals: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """The parameters that the data do not determine, and why.

    ``values``: natural parameters of the draws, shape (done, k), in the order of ``intervals``. Not
    determined is a parameter whose interval spans zero or more than a factor of 10, and one that moves with
    such a parameter from draw to draw (rank correlation beyond 0.95): only a combination of the two is known.
    """
    names = list(intervals)
    found = {name: why for name, pair in intervals.items() if (why := _too_wide(*pair))}
    if not found or len(names) < 2:
        return found
    from scipy.stats import rankdata

    with np.errstate(invalid="ignore"):  # a parameter that never moves has no correlation
        ranks = np.corrcoef(rankdata(values, axis=0).T)
    for _ in names:  # repeated, because a parameter found in one pass can pull in another in the next
        for i, name in enumerate(names):
            tied = [other for j, other in enumerate(names) if other in found and abs(ranks[i, j]) > LOCKED]
            if name not in found and tied:
                found[name] = f"it moves with {tied[0]}"
    return {name: found[name] for name in names if name in found}


def _too_wide(low: float, high: float) -> str:
    if np.isnan(low) or np.isnan(high):
        return ""
    if low <= 0 <= high:
        return "its interval spans zero"
    small, large = sorted((abs(low), abs(high)))
    return f"its interval spans a factor of {large / small:.2g}" if large > 10 * small else ""
