"""The figure of optima: the quadratic of each size, and the law of the optima over sizes."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsq.analysis.checking.optimum import Optimum, SizeOptimum
from gsq.analysis.figures.panels import LABELS
from gsq.analysis.figures.style import caption, legend_outside, log_axis, save, style
from gsq.analysis.tables.table import numbers
from gsq.words import counted


def optimum_figure(found: Optimum, path: str | Path | None = None) -> Figure:
    """Target against the tuned column, with each size's quadratic and optimum; and the optima with their intervals
    against the first column of the law, with the law through them. Saved if ``path`` is given."""
    law = found.law
    width = 9.5 if law is not None else 5.2
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.88, max(2, len(found.sizes))))
    with style():
        figure = Figure(figsize=(width, 3.9 + 0.2 * (len(found.sizes) // 4)), layout="constrained")
        every = figure.subplots(1, 2 if law is not None else 1, squeeze=False)[0]
        for one, shade in zip(found.sizes, shades, strict=False):
            _draw_size(found, one, every[0], shade)
        if law is not None:
            _draw_law(found, every[1], shades)
        handles = [line for line in every[0].get_lines() if not str(line.get_label()).startswith("_")]
        if found.by:
            legend_outside(figure, handles, width)
        left_out = sum(bool(one.reason) for one in found.sizes)
        parts = [f"{law.formula()}." if law is not None else f"{found.no_law}." if found.no_law else ""]
        few = "does" if left_out == 1 else "do"
        parts += [
            f"{left_out} of {counted(len(found.sizes), 'grid')} {few} not bracket an optimum." if left_out else ""
        ]
        caption(figure, parts, width)
    return save(figure, path)


def _draw_size(found: Optimum, one: SizeOptimum, axes: Axes, shade: object) -> None:
    axes.plot(one.values, one.targets, "o", color=shade, alpha=0.75, label=one.name or None)  # type: ignore[arg-type]
    across = np.geomspace(one.values.min(), one.values.max(), 80)
    height = np.polyval(one.curve, np.log(across))
    axes.plot(across, np.exp(height) if found.residuals == "log" else height, color=shade, linewidth=1)  # type: ignore[arg-type]
    if not one.reason:
        axes.plot(one.value, one.best, "D", color=shade, markeredgecolor="black", markersize=5.5, zorder=4)  # type: ignore[arg-type]
    axes.set_xscale("log")
    log_axis(axes.xaxis, axes.get_xlim())
    if found.residuals == "log":
        axes.set_yscale("log")
        log_axis(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(LABELS.get(found.column, found.column).replace("_", " "))
    axes.set_ylabel(LABELS.get(found.target, found.target))


def _draw_law(found: Optimum, axes: Axes, shades: object) -> None:
    assert found.law is not None
    first, *others = found.law.law.columns
    low, high = np.inf, 0.0
    for one, shade in zip(found.sizes, shades, strict=False):  # type: ignore[call-overload]
        if one.reason:
            continue
        x = float(one.size[first])
        axes.plot(x, one.value, "D", color=shade, markeredgecolor="black", markersize=5.5, zorder=4)
        least, most = one.interval
        if least > 0 and np.isfinite(most):
            axes.plot([x, x], [least, most], color=shade, linewidth=1.2)
        low, high = min(low, x), max(high, x)
    across = np.geomspace(low, high, 60)
    rows = found.law.rows.drop_duplicates(others) if others else found.law.rows.iloc[:1]
    for _, row in rows.iterrows():
        where = {first: across, **{name: np.full(60, float(row[name])) for name in others}}
        axes.plot(across, found.law.predict(where)[0], color="black", linewidth=0.9, zorder=2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = np.unique(numbers(found.law.rows, first))
    log_axis(axes.xaxis, (float(ticks[0]), float(ticks[-1])))
    log_axis(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(LABELS.get(first, first))
    axes.set_ylabel(f"best {LABELS.get(found.column, found.column).replace('_', ' ')}")
