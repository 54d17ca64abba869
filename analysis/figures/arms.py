"""Arms of a law: the curve of each through its points, and what each is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsq.analysis.checking.arms import Arms
from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.panels import LABELS
from gsq.analysis.figures.style import COLOURS, GREY, brief, caption, log_axis, raster_where_many, save, style
from gsq.analysis.tables.table import labels, numbers

_REACH = 30.0  # an open interval is drawn to so many times its factor
_LETTERS = 20  # of a name in a legend


def arms_figure(found: Arms, path: str | Path | None = None) -> Figure:
    """The rows and the law of each arm against the first resource, other columns at their medians, and the factors with
    their intervals on a logarithmic scale.

    ``path``: as for :func:`scaling_figure`. Raises AnalysisError where no column of the law can be a resource.
    """
    if not found.worths:
        raise AnalysisError(f"{found.fit.law.name} reads no positive column that an arm could be worth more of")
    levels = found.fit.law.levels[found.column]
    colour = {level: COLOURS[i % len(COLOURS)] for i, level in enumerate(levels)}
    with style():
        figure = Figure(figsize=(9.5, 3.6 + 0.15 * len(found.worths)), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_curves(found, left, colour)
        _draw_factors(found, right, colour)
        test = found.shared.text if found.shared else found.untested
        notes = [brief(found.fit.formula(), 400) + "\n", f"Shared exponents: {test}."]
        caption(figure, notes, 9.5)
        return save(figure, path)


def _draw_curves(found: Arms, axes: Axes, colour: dict[str, str]) -> None:
    fit, resource = found.fit, found.worths[0].resource
    x, arm = numbers(fit.rows, resource), labels(fit.rows, found.column)
    grid = np.geomspace(x.min(), x.max(), 80)
    middle: dict[str, object] = {name: float(np.median(numbers(fit.rows, name))) for name in fit.law.columns}
    middle |= {name: levels[0] for name, levels in fit.law.levels.items()}
    for level, shade in colour.items():
        own = arm == level
        axes.plot(x[own], fit.problem.target[own], "o", color=shade, alpha=0.7, markersize=4)
        where = pd.DataFrame({**middle, found.column: level, resource: grid})
        central, low, high = fit.predict(where)
        axes.plot(grid, central, color=shade, label=brief(level, _LETTERS))
        if np.isfinite(low).all() and np.isfinite(high).all():
            axes.fill_between(grid, low, high, color=shade, alpha=0.15, linewidth=0)
    raster_where_many(axes, len(x))
    axes.set_xscale("log")
    log_axis(axes.xaxis, axes.get_xlim())
    if fit.problem.target.min() > 0 and fit.residuals == "log":
        axes.set_yscale("log")
        log_axis(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(LABELS.get(resource, resource))
    axes.set_ylabel(LABELS.get(fit.target, fit.target))
    if len(colour) <= len(COLOURS):  # with more, colours come again, and the factors have the names
        axes.legend(title=brief(found.column, _LETTERS))
    others = [f"{name} = {middle[name]:.3g}" for name in fit.law.columns if name != resource]
    axes.set_title(f"lines at {', '.join(others)}" if others else "", fontsize=8, loc="left")


def _draw_factors(found: Arms, axes: Axes, colour: dict[str, str]) -> None:
    for i, one in enumerate(found.worths):
        low, high = (
            np.clip(end, one.factor / _REACH, one.factor * _REACH) if np.isfinite(one.factor) else end
            for end in one.interval
        )
        axes.plot([low, high], [i, i], color=colour[one.arm], linewidth=2)
        axes.plot(one.factor, i, "o", color=colour[one.arm])
    axes.axvline(1, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    log_axis(axes.xaxis, axes.get_xlim())
    axes.set_yticks(
        range(len(found.worths)), [brief(f"{one.arm}, {one.resource}", 2 * _LETTERS) for one in found.worths]
    )
    axes.set_ylim(len(found.worths) - 0.5, -0.5)
    axes.set_xlabel(f"worth so many times that of {brief(found.reference, _LETTERS)}")
    axes.set_title(f"factors with {found.fit.confidence:.0%} intervals", fontsize=8, loc="left")
