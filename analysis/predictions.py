"""Predictions that were written down before the runs against what these measured, and how far seeds scatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.table import configuration_ids, measured, numbers, require_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SeedNoise:
    """How far runs of one configuration scatter that differ in the seed alone."""

    log_sd: float
    """Standard deviation of ln target between seeds, pooled over configurations: relative, 0.1 is 10 %."""
    low: float
    high: float
    """Its interval (chi-squared: the noise is taken as normal and as equal everywhere)."""
    freedom: int
    """Runs less configurations, over those with several seeds."""
    configurations: int
    """Those with several seeds."""
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
    """The scatter of seeds in ``frame``, against the differences between configurations.

    Raises AnalysisError where no configuration has two seeds, or a target is not positive.
    """
    from scipy.stats import chi2, t

    rows, _ = measured(frame, target)
    value = numbers(rows, target)
    if not (value > 0).all():
        raise AnalysisError(
            f"column {target!r} must be above 0, for its logarithm is taken; the least is {value.min():g}"
        )
    cell = configuration_ids(rows)
    count = np.bincount(cell)
    log = np.log(value)
    mean = np.bincount(cell, log) / count
    freedom = int((count - 1).sum())
    if freedom == 0:
        raise AnalysisError("no configuration has runs of several seeds, so their scatter is not known; add some")
    squares = float(np.sum((log - mean[cell]) ** 2))
    sd = np.sqrt(squares / freedom)
    low, high = (np.sqrt(squares / chi2.ppf(p, freedom)) for p in ((1 + confidence) / 2, (1 - confidence) / 2))
    i, j = np.triu_indices(len(count), 1)
    limit = t.ppf((1 + confidence) / 2, freedom) * sd * np.sqrt(1 / count[i] + 1 / count[j])
    resolved = float(np.mean(np.abs(mean[i] - mean[j]) > limit)) if len(i) else np.nan
    spread = float(mean.std(ddof=1)) if len(mean) > 1 else np.nan
    return SeedNoise(float(sd), float(low), float(high), freedom, int((count > 1).sum()), spread, resolved)


def seed_figure(frame: pd.DataFrame, target: str = "rfid", path: str | Path | None = None) -> Figure:
    """Every run of ``frame``, configurations in the order of their means: those with several seeds in colour, with what
    95 % of single runs would hold by :func:`seed_noise`. ``path``: as for :func:`analysis.scaling_figure`."""
    from matplotlib.figure import Figure
    from scipy.stats import t

    from analysis.drawing import COLOURS, GREY, log_axis, save, style
    from analysis.panels import LABELS

    noise = seed_noise(frame, target)
    rows, _ = measured(frame, target)
    cell, value = configuration_ids(rows), numbers(rows, target)
    mean = np.exp(np.bincount(cell, np.log(value)) / np.bincount(cell))
    rank = np.argsort(np.argsort(mean))
    several = np.bincount(cell) > 1
    half = np.exp(t.ppf(0.975, noise.freedom) * noise.log_sd)
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.set(yscale="log", xlabel="configurations, by their mean", ylabel=LABELS.get(target, target))
        axes.vlines(
            rank[several], mean[several] / half, mean[several] * half, color=COLOURS[1], alpha=0.35, linewidth=4
        )
        for chosen, colour, label in ((~several[cell], GREY, "one seed"), (several[cell], COLOURS[1], "several seeds")):
            axes.plot(rank[cell][chosen], value[chosen], "o", color=colour, label=label)
        log_axis(axes.yaxis, axes.get_ylim())
        axes.legend()
        if path is not None:
            save(figure, path)
    return figure


def check_predictions(
    predicted: pd.DataFrame, frame: pd.DataFrame, on: Sequence[str], target: str = "rfid"
) -> pd.DataFrame:
    """``predicted`` (columns ``on``, predicted, low, high) with what ``frame`` measured for the same cells.

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


def prediction_figure(
    checked: pd.DataFrame, by: str | None = None, target: str = "rFID", path: str | Path | None = None
) -> Figure:
    """What :func:`check_predictions` returned: measured against predicted with its interval, and the line where they
    are equal. Colours tell the values of column ``by`` apart. ``path``: as for :func:`analysis.scaling_figure`. Raises
    AnalysisError where no cell was measured."""
    from matplotlib.figure import Figure

    from analysis.drawing import COLOURS, MARKERS, log_axis, save, style

    shown = checked[checked["measured"].notna()]
    if shown.empty:
        raise AnalysisError("none of the predicted cells was measured: nothing to compare; gather when they are done")
    groups = [("", shown)] if by is None else [(str(value), part) for value, part in shown.groupby(by, sort=False)]
    with style():
        figure = Figure(figsize=(5.2, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel=f"measured {target}", ylabel=f"predicted {target}, with interval")
        for number, (label, part) in enumerate(groups):
            central = numbers(part, "predicted")
            axes.errorbar(
                numbers(part, "measured"),
                central,
                (central - numbers(part, "low"), numbers(part, "high") - central),
                fmt=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                elinewidth=0.8,
                capsize=2,
                label=label,
            )
        ends = np.concatenate([numbers(shown, name) for name in ("measured", "predicted", "low", "high")])
        limits = (ends.min() / 1.05, ends.max() * 1.05)
        axes.plot(limits, limits, color="black", linewidth=0.8, zorder=1)
        for axis in (axes.xaxis, axes.yaxis):
            log_axis(axis, limits)
        if by is not None:
            axes.legend()
        if path is not None:
            save(figure, path)
    return figure
