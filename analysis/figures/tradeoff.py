"""rFID and gFID against the learned rate: a tokenizer that reconstructs better may be harder to generate from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsq.analysis.checking.generation import Generation, generation
from gsq.analysis.figures.panels import y_label
from gsq.analysis.figures.scatter import draw_pareto, label_front, pareto_panel
from gsq.analysis.figures.style import COLOURS, Marks, caption, legend_outside, log_axis, octave_axis, save, style
from gsq.analysis.tables.table import measured

RATE, RATE_LABEL = "prior_bits_per_pixel", "prior bits per pixel (learned)"


def tradeoff_figure(frame: pd.DataFrame, path: str | Path | None = None) -> Figure:
    """Draw rFID and gFID against prior bits per pixel side by side, each with the front of cells that none beats.

    ``path``: as for :func:`analysis.scaling_figure`. Raises AnalysisError where no cell has a probe, and for several
    evaluation or probe protocols.
    """
    found = generation(frame)
    rows, excluded = measured(frame, "gfid", (RATE, "rfid"))
    panels = [pareto_panel(rows, RATE, target) for target in ("rfid", "gfid")]
    marks, width = Marks(rows), 10.4
    with style():
        figure = Figure(figsize=(width, 4.9), layout="constrained")
        grid = figure.subplots(1, 2, squeeze=False)[0]
        legend_outside(figure, marks.handles(), width)
        notes = [*(f"{line}." for line in found.lines)]
        caption(
            figure,
            ["Large points and steps: the front.", *notes, f"\n{excluded.text}." if excluded.text else ""],
            width,
        )
        for panel, axes, label in zip(panels, grid, (y_label(rows), "gFID of the probe's samples"), strict=True):
            draw_pareto(panel, axes, marks)
            axes.set_xlabel(RATE_LABEL)
            axes.set_ylabel(label)
        for panel, axes in zip(panels, grid, strict=True):
            label_front(panel, axes)
        return save(figure, path)


def draw_generation(found: Generation, axes: Axes) -> None:
    """Draw rFID and gFID of all probed cells against the learned rate, for a report card."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for colour, name, values in zip(COLOURS, ("rFID", "gFID"), (found.rfid, found.gfid), strict=False):
        axes.plot(found.prior_bits_per_pixel, values, "o", color=colour, alpha=0.8, markersize=3.5, label=name)
    octave_axis(axes.xaxis, axes.get_xlim(), RATE, most=6)
    log_axis(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(RATE_LABEL)
    axes.legend(loc="best", fontsize=7)
    rank = "" if np.isnan(found.correlation) else f"; rank correlation of the two {found.correlation:+.2f}"
    axes.set_title(f"probe {found.probe}{rank}", fontsize=8, loc="left")
