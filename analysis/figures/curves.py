"""Figures of metrics and losses over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.panels import LABELS, StepPanel, step_panel
from gsq.analysis.figures.style import COLOURS, DARK, GREY, MARKERS, Marks, legend_outside, log_axis, save, style
from gsq.analysis.tables.table import require_columns, varying


def step_figure(
    frame: pd.DataFrame, metrics: str | Sequence[str], by: str | Sequence[str], path: str | Path | None = None
) -> Figure:
    """Draw each of ``metrics`` (usage, perplexity, rfid, psnr_db, ...) against the optimiser step, side by side: a line
    for each combination of the columns ``by``, the mean over seeds, each run thin behind it.

    ``path``: as for :func:`scaling_figure`. Raises AnalysisError like :func:`analysis.step_panel`.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    panels = [step_panel(frame, metric, by) for metric in metrics]
    rows = -(-len(panels[0].series) // 4)
    width = max(4.8, 3.9 * len(panels))
    with style():
        figure = Figure(figsize=(width, 3.2 + 0.2 * rows), layout="constrained")
        for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
            handles = draw_steps(panel, axes)
        legend_outside(figure, handles, width, "lower")
        notes = (
            ["Thin lines: runs; wide lines: means over seeds."]
            if any(len(one.runs) > 1 for one in panels[0].series)
            else []
        )
        notes += [f"{panel.y_label}." for panel in panels if panel.metric == "rfid"]
        figure.suptitle(" ".join(notes), fontsize=7.5, color=DARK)
        return save(figure, path)


def course_figure(frame: pd.DataFrame, metrics: Sequence[str] | None = None, path: str | Path | None = None) -> Figure:
    """Draw :func:`step_figure` of ``metrics`` (default: rfid and usage), a line for each setting of the axes that vary.

    Raises AnalysisError where every run has one evaluation, and for more than 12 settings.
    """
    require_columns(frame, "signature", "step")
    if not frame.groupby("signature")["step"].nunique().max() > 1:
        raise AnalysisError(
            "every run was evaluated at a single step, so there is no curve to draw; set evaluation.every"
        )
    axes = varying(frame)
    count = len(frame[axes].drop_duplicates()) if axes else 1
    if count > 12:
        raise AnalysisError(
            f"{count} settings are more lines than one can tell apart (12); draw some of them in Python: "
            "analysis.step_figure(frame[frame['groups'] == 1], ['rfid'], ['codebook_size'])"
        )
    named = metrics or [name for name in ("rfid", "usage") if name in frame and frame[name].notna().any()] or ["rfid"]
    return step_figure(frame, named, axes or ["sweep"], path)


def curve_figure(
    curves: pd.DataFrame, cells: pd.DataFrame, quantities: str | Sequence[str] = "loss", path: str | Path | None = None
) -> Figure:
    """Draw each of ``quantities`` (loss, mse, ...) against the step, a line for each run, side by side.

    ``curves``: signature, step and the quantities, as ``sweeps.gather_curves`` writes them; ``cells``: the results
    table, whose first axis with at most six values gives the colours. At most 200 points a line. ``path``: as for
    :func:`scaling_figure`. Raises AnalysisError where a column is missing.
    """
    quantities = [quantities] if isinstance(quantities, str) else list(quantities)
    require_columns(curves, "signature", "step", *quantities)
    cells = cells.drop_duplicates("signature")
    marks = Marks(cells[cells["signature"].isin(curves["signature"])])
    colours = {row["signature"]: marks.of(row)[0] for _, row in cells.iterrows()}
    handles = [Line2D([], [], color=one.get_color(), label=one.get_label()) for one in marks.handles()[: marks.colours]]
    width = max(4.8, 0.4 + 4.0 * len(quantities))
    with style():
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        for quantity, axes in zip(quantities, figure.subplots(1, len(quantities), squeeze=False)[0], strict=True):
            for signature, run in curves.groupby("signature", sort=False):
                known = run[run[quantity].notna()].sort_values("step")
                known = known.iloc[:: -(-len(known) // 200) or 1]
                colour = colours.get(signature, GREY)
                axes.plot(known["step"], known[quantity], color=colour, linewidth=0.9, alpha=0.75)
            if (curves[quantity].dropna() > 0).all():
                axes.set_yscale("log")
                log_axis(axes.yaxis, axes.get_ylim())
            axes.set_xlabel(LABELS["step"])
            axes.set_ylabel(LABELS.get(quantity, quantity.replace("_", " ")))
        legend_outside(figure, handles, width)
        return save(figure, path)


def draw_steps(panel: StepPanel, axes: Axes) -> list[Line2D]:
    """Draw ``panel`` on ``axes``; rfid and perplexity on a logarithmic scale. Returns the legend's handles."""
    handles: list[Line2D] = []
    for number, one in enumerate(panel.series):
        colour, dash = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
        for steps, values in one.runs if len(one.runs) > 1 else ():
            axes.plot(steps, values, dash, color=colour, linewidth=0.7, alpha=0.4, zorder=2)
        (line,) = axes.plot(one.steps, one.mean, dash, color=colour, linewidth=1.5, zorder=3, label=one.label)
        # With more series than colours, no marker comes back with its colour.
        line.set_marker(MARKERS[(number + number // len(COLOURS)) % len(MARKERS)])
        handles.append(line)
    if panel.metric in ("rfid", "perplexity"):
        axes.set_yscale("log")
        log_axis(axes.yaxis, axes.get_ylim())
    else:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if panel.metric == "usage" else None)
    axes.set_xlabel("optimiser step")
    # What rfid was measured in is too long for a narrow panel.
    axes.set_ylabel("rFID" if panel.metric == "rfid" else panel.y_label)
    return handles
