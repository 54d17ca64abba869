"""The figure of a plan: parameters against training images, along lines of equal compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsq.analysis.allocating.parabolas import isoflop_slices
from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.panels import LABELS
from gsq.analysis.figures.style import GREY, caption, log_axis, plain_number, raster_where_many, save, style
from gsq.analysis.tables.table import Array, numbers, require_columns
from gsq.words import counted


@dataclass(frozen=True)
class ComputeLine:
    """Cells of about one cost, by parameters."""

    flops: float
    parameters: Array
    images: Array
    """Planned, (n,)."""
    exact: Array
    """With which the cost would be ``flops``, (n,)."""


@dataclass(frozen=True)
class ComputePlan:
    """The cells of a plan, and their lines of equal compute, the cheapest first."""

    parameters: Array
    images: Array
    lines: tuple[ComputeLine, ...]
    budget: str | None
    """Column of the budgets."""
    furthest: float
    """Largest relative difference between a cell's FLOPs and those of its line; 0 without lines."""


def compute_plan(frame: pd.DataFrame, budget: str | None = None) -> ComputePlan:
    """Describe the cells of ``frame``: columns parameters, images_seen and train_flops, a row each.

    budget: a column of budgets [FLOPs]; without one, the lines are the isoFLOP slices that the costs themselves make
    (four sizes or more, within a tenth of each other). Raises AnalysisError for a missing column or an empty table.
    """
    require_columns(frame, "parameters", "images_seen", "train_flops", *([budget] if budget else []))
    if frame.empty:
        raise AnalysisError("the plan has no cells to draw")
    size, images, flops = (numbers(frame, name) for name in ("parameters", "images_seen", "train_flops"))
    if budget is not None:
        asked = numbers(frame, budget)
        groups = [(one, np.flatnonzero(asked == one)) for one in np.unique(asked[np.isfinite(asked)])]
    else:
        slices = [(one.cost, np.array(one.rows)) for one in isoflop_slices(size, flops)]
        # Cells that cost the same because they see the same images are no trade between size and images.
        groups = sorted((c, r) for c, r in slices if np.ptp(np.log(images[r])) > 2 * np.ptp(np.log(flops[r])))
    lines, furthest = [], 0.0
    for cost, rows in groups:
        rows = rows[np.argsort(size[rows], kind="stable")]
        lines.append(ComputeLine(float(cost), size[rows], images[rows], images[rows] * cost / flops[rows]))
        furthest = max(furthest, float(np.abs(flops[rows] / cost - 1).max()))
    return ComputePlan(size, images, tuple(lines), budget, furthest)


def draw_compute_plan(plan: ComputePlan, axes: Axes) -> None:
    """Draw the cells on logarithmic axes, a colour for each line of equal compute, which ends in its FLOPs."""
    axes.plot(plan.parameters, plan.images, "o", color=GREY, zorder=2)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, max(2, len(plan.lines))))
    for one, shade in zip(plan.lines, shades, strict=False):
        axes.plot(one.parameters, one.exact, color=shade, linewidth=1.2, zorder=3)
        axes.plot(one.parameters, one.images, "o", color=shade, zorder=4)
        axes.annotate(
            f"{plain_number(float(f'{one.flops:.3g}'))} FLOPs",
            (one.parameters[-1], one.exact[-1]),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=shade,
            annotation_clip=False,
        )
    raster_where_many(axes, len(plan.images))
    for axis, name in ((axes.xaxis, "parameters"), (axes.yaxis, "images_seen")):
        getattr(axes, f"set_{axis.axis_name}scale")("log")
        log_axis(axis, getattr(axes, f"get_{axis.axis_name}lim")())
        getattr(axes, f"set_{axis.axis_name}label")(LABELS.get(name, name))


def plan_figure(
    frame: pd.DataFrame, budget: str | None = None, path: str | Path | None = None, name: str = "plan"
) -> Figure:
    """The figure of :func:`compute_plan`, saved if ``path`` is given. name: the sweep, for the caption.

    Raises AnalysisError as :func:`compute_plan` does.
    """
    plan, width = compute_plan(frame, budget), 5.6
    with style():
        figure = Figure(figsize=(width, 3.8), layout="constrained")
        draw_compute_plan(plan, figure.subplots())
        said = (
            "Lines of equal training FLOPs"
            if plan.lines
            else "No budget, and no four sizes that cost the same with different numbers of images"
        )
        off = f"; cells are at most {100 * plan.furthest:.2g} % off them." if plan.lines else "."
        by = f" ({plan.budget})" if plan.budget else ""
        cells = counted(len(plan.images), "cell")
        caption(figure, [f"{name}: {cells}.", f"{said}{by}{off}"], width)
    return save(figure, path)
