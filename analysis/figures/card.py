"""The report card of a law as a figure."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gsq.analysis.checking.card import ReportCard
from gsq.analysis.figures.panels import LABELS
from gsq.analysis.figures.style import COLOURS, GREY, brief, log_axis, octave_axis, raster_where_many, save, style
from gsq.analysis.figures.tradeoff import draw_generation
from gsq.analysis.fitting.result import Fit
from gsq.analysis.tables.outputs import OUT
from gsq.analysis.tables.table import labels
from gsq.words import counted


def card_figure(card: ReportCard, path: str | Path | None = None) -> Figure:
    """Draw the report card: predictions against the target, intervals of the parameters, residuals against each axis.

    ``path``: as for :func:`scaling_figure`.
    """
    fit, trends = card.fit, card.trends[:6]
    across = 3
    down = 1 + -(-(len(trends) + (card.generation is not None)) // across)
    findings = [line for one in card.findings for line in textwrap.wrap(f"• {one}", 150, subsequent_indent="   ")]
    with style():
        # A parameter takes a fifth of an inch.
        tall = max(2.7, 0.2 * len(fit.parameters))
        size = (11, tall + 2.7 * (down - 1) + 0.5 + 0.15 * len(findings))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(down, 2 * across, height_ratios=[tall, *[2.7] * (down - 1)])
        _draw_predicted(fit, figure.add_subplot(grid[0, :across]))
        _draw_intervals(fit, figure.add_subplot(grid[0, across:]))
        for number, trend in enumerate(trends):
            axes = figure.add_subplot(grid[1 + number // across, 2 * (number % across) : 2 * (number % across) + 2])
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.plot(trend.x, trend.error, "o", color=COLOURS[0], alpha=0.8, markersize=3.5)
            raster_where_many(axes, len(trend.x))
            values = np.unique(trend.x)
            if values[0] > 0 and values[-1] / values[0] >= 1.9:
                axes.set_xscale("log", base=2)
                shown = [float(value) for value in values] if len(values) < 8 else []
                octave_axis(axes.xaxis, (values[0], values[-1]), trend.column, shown, most=5)
            axes.set_xlabel(LABELS.get(trend.column, trend.column))
            axes.set_title(f"rank correlation {trend.correlation:+.2f}, p {trend.p:.2g}", fontsize=8, loc="left")
            if number % across == 0:
                axes.set_ylabel("relative residual" if fit.residuals == "log" else "residual")
        if card.generation is not None:
            place = 2 * (len(trends) % across)
            draw_generation(card.generation, figure.add_subplot(grid[1 + len(trends) // across, place : place + 2]))
        figure.suptitle(brief(fit.formula(), 150), fontsize=10, x=0.01, ha="left")
        figure.supxlabel(
            "\n".join(findings or ["Nothing speaks against it."]), fontsize=7.5, x=0.01, ha="left", color="#333333"
        )
        return save(figure, path)


def _draw_predicted(fit: Fit, axes: Axes) -> None:
    target, value = fit.problem.target, fit.problem.predict(fit.theta[None])[0]
    for number, name in enumerate(fit.law.outputs or (fit.target,)):
        here = labels(fit.rows, OUT) == name if fit.law.outputs else np.ones(len(target), dtype=bool)
        axes.plot(value[here], target[here], "o", color=COLOURS[number % len(COLOURS)], alpha=0.8, label=name)
    if fit.law.outputs:
        axes.legend(loc="upper left")
    raster_where_many(axes, len(target))
    ends = [min(target.min(), value.min()), max(target.max(), value.max())]
    axes.plot(ends, ends, color=GREY, linewidth=0.8, zorder=1)
    if ends[0] > 0 and fit.residuals == "log":
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            log_axis(axis, limits)
    axes.set_xlabel(f"predicted {fit.target}")
    axes.set_ylabel(fit.target)
    axes.set_title(f"{counted(fit.n_rows, 'row')}; {fit.errors_text(3)}", fontsize=8, loc="left")


def _draw_intervals(fit: Fit, axes: Axes) -> None:
    """Draw each parameter's intervals in units of its value, with an arrow where one is open or leaves the panel."""
    widest = 4.0
    names = list(fit.parameters)
    for i, name in enumerate(names):
        value = fit.parameters[name]
        scale = abs(value) or 1.0
        kinds = (("profile", fit.profile_intervals[name]), ("bootstrap", fit.bootstrap_intervals[name]))
        for number, (_, pair) in enumerate(kinds):
            if np.isnan(pair).any():
                continue
            low, high = ((end - value) / scale for end in pair)
            y = i + 0.16 * (number - 0.5)
            axes.plot([max(low, -widest), min(high, widest)], [y, y], color=COLOURS[number], linewidth=2)
            for end, sign in ((low, -1), (high, 1)):
                if abs(end) > widest:
                    axes.plot(sign * widest, y, ">" if sign > 0 else "<", color=COLOURS[number])
        axes.plot(0, i, "|", color="black", markersize=9)
    labels = [
        f"{brief(name, 30)} = {fit.parameters[name]:.4g}" + (" (!)" if name in fit.undetermined else "")
        for name in names
    ]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("(end of the interval - value) / |value|")
    handles = [
        Line2D([], [], color=COLOURS[i], linewidth=2, label=kind) for i, kind in enumerate(("profile", "bootstrap"))
    ]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1)
    marked = "; (!) not determined" if fit.undetermined else ""
    axes.set_title(f"{fit.confidence:.0%} intervals{marked}", fontsize=8, loc="left")
