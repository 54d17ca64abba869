"""Figures that compare predictions with later runs, and that show the scatter of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import t_quantile
from gsq.analysis.tables.table import configuration_ids, measured, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from gsq.analysis.checking.predictions import seed_noise


def seed_figure(frame: pd.DataFrame, target: str = "rfid", path: str | Path | None = None) -> Figure:
    """Draw every run of ``frame``, configurations in the order of their means. Those with several seeds are coloured
    and have a bar that, by :func:`seed_noise`, holds 95 % of single runs. ``path``: as for
    :func:`analysis.scaling_figure`."""
    from matplotlib.figure import Figure

    from gsq.analysis.figures.panels import LABELS
    from gsq.analysis.figures.style import COLOURS, GREY, log_axis, save, style

    noise = seed_noise(frame, target)
    rows, _ = measured(frame, target)
    cell, value = configuration_ids(rows), numbers(rows, target)
    mean = np.exp(np.bincount(cell, np.log(value)) / np.bincount(cell))
    rank = np.argsort(np.argsort(mean))
    several = np.bincount(cell) > 1
    half = np.exp(t_quantile(0.975, noise.freedom) * noise.log_sd)
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
        return save(figure, path)


def prediction_figure(
    checked: pd.DataFrame, by: str | None = None, target: str = "rFID", path: str | Path | None = None
) -> Figure:
    """Draw what :func:`check_predictions` returned: predictions with their intervals against measured values, and the
    line where they are equal. Each value of column ``by`` has its colour. ``path``: as for
    :func:`analysis.scaling_figure`. Raises AnalysisError where no cell was measured."""
    from matplotlib.figure import Figure

    from gsq.analysis.figures.style import COLOURS, MARKERS, log_axis, save, style

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
        return save(figure, path)
