"""The figure of an allocation: isoFLOP slices, and the best value of each column against the budget."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gsq.analysis.allocating.allocation import Allocation
from gsq.analysis.allocating.parabolas import Parabolas
from gsq.analysis.figures.panels import LABELS
from gsq.analysis.figures.style import COLOURS, DARK, GREY, caption, log_axis, raster_where_many, save, style
from gsq.analysis.tables.table import Array, numbers
from gsq.words import span

_OTHER = COLOURS[1]


def allocation_figure(allocation: Allocation, path: str | Path | None = None) -> Figure:
    """The measured runs by isoFLOP slice with the law and the parabola through each, where the table has slices; and
    each free column's best value against the budget with its band, shaded where the law extrapolates.

    ``path``: as for :func:`analysis.scaling_figure`.
    """
    columns = list(allocation.points[0].columns)
    slices = allocation.parabolas[0] if allocation.parabolas else None
    panels = len(columns) + (slices is not None)
    width = 0.6 + 3.9 * panels
    with style():
        figure = Figure(figsize=(width, 4.5), layout="constrained")
        axes = list(figure.subplots(1, panels, squeeze=False)[0])
        if slices is not None:
            _draw_slices(allocation, slices, axes.pop(0))
        parabolas = {one.column: one for one in allocation.parabolas}
        for name, one in zip(columns, axes, strict=True):
            _draw_best(allocation, name, parabolas.get(name), one)
        figure.legend(handles=_handles(allocation), loc="outside upper center", ncols=6 if panels > 2 else 3)
        held = allocation.constraint.held_text()
        fit = allocation.fit
        kind = "bootstrap" if len(fit.draws) else fit.interval_kind
        parts = [
            f"{fit.law.name}: {fit.formula()}. Budget: {allocation.constraint.text}"
            + (f" at {held}." if held else "."),
            f"Band: {fit.confidence:.0%}, {kind}." if allocation.curve else "",
        ]
        caption(figure, parts, width)
        return save(figure, path)


def _draw_slices(allocation: Allocation, slices: Parabolas, axes: Axes) -> None:
    """Target against the column, a colour for each budget: measured, law, parabola, and the best of both."""
    fit, name = allocation.fit, slices.column
    here = allocation.constraint.at_held(fit)
    size, target = numbers(fit.rows, name)[here], fit.problem.target[here]
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, max(2, len(slices.slices))))
    found = dict(zip((cost for cost, _ in slices.vertices), slices.coefficients, strict=True))
    for one, shade in zip(slices.slices, shades, strict=False):
        rows = list(one.rows)
        axes.plot(size[rows], target[rows], "o", color=shade, alpha=0.75, markersize=3.5)
        across = np.geomspace(size[rows].min(), size[rows].max(), 80)
        law = allocation.slice_of(one.cost, name, across)
        axes.plot(across, law, color=shade, linewidth=1.3)
        at = int(np.nanargmin(law)) if np.isfinite(law).any() else 0
        if 0 < at < len(law) - 1:
            axes.plot(across[at], law[at], "D", color=shade, markeredgecolor="black", markersize=5, zorder=4)
        if one.cost in found:
            terms = found[one.cost]
            axes.plot(across, np.polyval(terms, np.log(across)), color=_OTHER, linewidth=0.9, linestyle="--")
            vertex = np.exp(-terms[1] / (2 * terms[0]))
            axes.plot(vertex, np.polyval(terms, np.log(vertex)), "x", color=_OTHER, markersize=6, zorder=4)
    raster_where_many(axes, len(target))
    # The steep ends of few slices would leave no room for the minima of all.
    used = [row for one in slices.slices for row in one.rows]
    axes.set_ylim(target[used].min() - 0.03 * np.ptp(target[used]), float(np.quantile(target[used], 0.97)) * 1.01)
    axes.set_xscale("log")
    log_axis(axes.xaxis, axes.get_xlim())
    axes.set_xlabel(LABELS.get(name, name))
    axes.set_ylabel(LABELS.get(allocation.target, allocation.target))
    low, high = slices.slices[0].cost, slices.slices[-1].cost
    axes.set_title(f"isoFLOP slices, {span(f'{min(low, high):.2g}', f'{max(low, high):.2g}')}", loc="left", fontsize=9)


def _draw_best(allocation: Allocation, name: str, parabolas: Parabolas | None, axes: Axes) -> None:
    """A column's best value against the budget."""
    fit, constraint = allocation.fit, allocation.constraint
    asked = [point.budget for point in (*allocation.points, *allocation.curve)]
    low, high = allocation.measured_costs
    least, most = low, max(high, *asked)
    budgets, best = allocation.line(least, most)
    axes.plot(
        constraint.costs, numbers(fit.rows, name)[constraint.here], "o", color=GREY, alpha=0.45, markersize=3, zorder=1
    )
    raster_where_many(axes, len(constraint.costs))
    axes.plot(budgets, best[name], color=COLOURS[0], zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    frame = axes.get_ylim()
    if allocation.curve:
        ends = np.array([point.columns[name].interval for point in allocation.curve])
        low_end, high_end = (_within(side, frame) for side in ends.T)
        along = [point.budget for point in allocation.curve]
        axes.fill_between(along, low_end, high_end, color=COLOURS[0], alpha=0.2, linewidth=0)
    for point in allocation.points:
        one = point.columns[name]
        if not np.isnan(one.value):
            if not np.isnan(one.interval).any():
                axes.plot([point.budget] * 2, _within(np.array(one.interval), frame), color="black", linewidth=1)
            axes.plot(point.budget, one.value, "D", color=COLOURS[0], markeredgecolor="black", markersize=5, zorder=5)
    if parabolas is not None:
        cost, vertex = np.array(parabolas.vertices).T
        axes.plot(cost, vertex, "x", color=_OTHER, markersize=6, zorder=4)
        bend, height = np.polyfit(np.log(cost), np.log(vertex), 1)
        axes.plot(
            budgets, np.exp(bend * np.log(budgets) + height), color=_OTHER, linewidth=0.9, linestyle="--", zorder=2
        )
    if most > high:
        axes.axvspan(high, most * 1.3, facecolor="#f4f4f4", edgecolor="#cccccc", hatch="////", linewidth=0, zorder=0)
    axes.set_xlim(least / 1.3, most * 1.3)
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        log_axis(axis, limits)
    axes.set_xlabel("budget")
    axes.set_ylabel(LABELS.get(name, name))
    power = allocation.points[0].exponents.get(name)
    if power is not None:
        known = "" if np.isnan(power.interval).any() else f" [{power.interval[0]:.3f}, {power.interval[1]:.3f}]"
        axes.set_title(f"best {name} ~ budget$^{{{power.value:.3f}}}${known}", loc="left", fontsize=9)


def _within(values: Array, frame: tuple[float, float]) -> Array:
    """Open ends as far as a panel shows."""
    return np.where(np.isfinite(values), values, np.where(values > 0, frame[1], frame[0]))


def _handles(allocation: Allocation) -> list[Line2D | Patch]:
    asked = max(point.budget for point in (*allocation.points, *allocation.curve))
    found: list[Line2D | Patch] = [
        Line2D([], [], color=GREY, marker="o", linestyle="none", markersize=4, label="measured"),
        Line2D([], [], color=COLOURS[0], label="law"),
        Line2D([], [], color=DARK, marker="D", linestyle="none", markersize=5, label="best by the law"),
    ]
    if allocation.parabolas:
        found.append(Line2D([], [], color=_OTHER, linestyle="--", linewidth=0.9, marker="x", label="parabolas"))
    if asked > allocation.measured_costs[1]:
        found.append(Patch(facecolor="#f4f4f4", edgecolor="#cccccc", hatch="////", linewidth=0, label="extrapolated"))
    return found
