"""Compare predictions that were written down before the runs with what the runs measured, and measure how far seeds
scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import chi2_quantile, t_quantile
from gsq.analysis.tables.table import configuration_ids, measured, numbers, require_columns


@dataclass(frozen=True)
class SeedNoise:
    """The scatter of runs of one configuration that differ only in the seed."""

    log_sd: float
    """Standard deviation of ln target between seeds, pooled over configurations: relative, 0.1 is 10 %."""
    low: float
    high: float
    """Its chi-squared interval, which assumes normal noise that is equal everywhere."""
    freedom: int
    """Degrees of freedom: runs minus configurations, over the configurations with several seeds."""
    configurations: int
    """Number of configurations with several seeds."""
    spread: float
    """Standard deviation of ln target between all configurations, seeds averaged."""
    resolved: float
    """Share of pairs of configurations whose means differ by more than noise alone would let them, at the same
    confidence for each pair."""

    @property
    def text(self) -> str:
        return (
            f"seeds scatter by {self.log_sd:.1%} [{self.low:.1%}, {self.high:.1%}] ({self.freedom} degrees of freedom "
            f"in {self.configurations} configurations), configurations by {np.expm1(self.spread):.0%}; of all pairs of "
            f"configurations {self.resolved:.0%} differ by more than noise"
        )


def seed_noise(frame: pd.DataFrame, target: str = "rfid", confidence: float = 0.95) -> SeedNoise:
    """Compare the scatter of seeds in ``frame`` with the differences between configurations.

    Raises AnalysisError where no configuration has two seeds, or a target is not positive.
    """
    rows, _ = measured(frame, target)
    value = numbers(rows, target)
    if not (value > 0).all():
        raise AnalysisError(
            f"column {target!r} must be positive (it is log-transformed); the smallest value is {value.min():g}"
        )
    cell = configuration_ids(rows)
    count = np.bincount(cell)
    log = np.log(value)
    mean = np.bincount(cell, log) / count
    freedom = int((count - 1).sum())
    if freedom == 0:
        raise AnalysisError("no configuration has several seeds, so their scatter is unknown; add seeds to the sweep")
    squares = float(np.sum((log - mean[cell]) ** 2))
    sd = np.sqrt(squares / freedom)
    low, high = (np.sqrt(squares / chi2_quantile(p, freedom)) for p in ((1 + confidence) / 2, (1 - confidence) / 2))
    i, j = np.triu_indices(len(count), 1)
    limit = t_quantile((1 + confidence) / 2, freedom) * sd * np.sqrt(1 / count[i] + 1 / count[j])
    resolved = float(np.mean(np.abs(mean[i] - mean[j]) > limit)) if len(i) else np.nan
    spread = float(mean.std(ddof=1)) if len(mean) > 1 else np.nan
    return SeedNoise(float(sd), float(low), float(high), freedom, int((count > 1).sum()), spread, resolved)


def check_predictions(
    predicted: pd.DataFrame, frame: pd.DataFrame, on: Sequence[str], target: str = "rfid"
) -> pd.DataFrame:
    """Join ``predicted`` (columns ``on``, predicted, low, high) with what ``frame`` measured for the same cells.

    Adds ``measured`` (NaN where a cell has no value), ``inside`` (within [low, high]; False without a value) and
    ``log_error``, ln measured - ln predicted. Raises AnalysisError where a column is missing, or ``on`` does not name
    one run.
    """
    require_columns(predicted, *on, "predicted", "low", "high")
    require_columns(frame, *on)
    rows, _ = measured(frame, target)
    if rows.duplicated(list(on)).any() or predicted.duplicated(list(on)).any():
        raise AnalysisError(f"several rows have the same {', '.join(on)}; name more columns to tell the cells apart")
    found = predicted.merge(rows[[*on, target]].rename(columns={target: "measured"}), on=list(on), how="left")
    value = numbers(found, "measured")
    return found.assign(
        inside=(numbers(found, "low") <= value) & (value <= numbers(found, "high")),
        log_error=np.log(value) - np.log(numbers(found, "predicted")),
    )
