"""Two figures of all cells at once: the collapse of rFID onto one derived axis, and the Pareto front of rFID and cost.

Colours name the values of one axis, markers those of a second (:class:`Marks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gsq.analysis.checking.collapse import ABSORBED, Collapse, collapse
from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.panels import LABELS, Floats, y_label
from gsq.analysis.figures.settings import plain, settings
from gsq.analysis.figures.style import (
    DARK,
    GREY,
    Marks,
    caption,
    legend_outside,
    log_axis,
    octave_axis,
    place_labels,
    raster_where_many,
    save,
    set_ticks,
    style,
)
from gsq.analysis.tables.remembering import remembered
from gsq.analysis.tables.table import (
    Array,
    configuration_ids,
    measured,
    numbers,
    require_columns,
    require_shown,
    varying,
)
from gsq.config.axes import TOKENIZER
from gsq.sweeps.schema import columns as schema

COMPUTE = ("train_flops", "device_seconds", "parameters", "images_seen")
_MOST_LABELS = 14
_RATES = ("bits_per_pixel", "prior_bits_per_pixel")
# Costs that vary by less than this over the cells (max / min - 1) have no front: its steps would be noise.
LEAST_SPREAD = 0.1
# Ticks of an axis of ratios, by its upper end.
_RATIOS = (
    (1.5, (0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.4)),
    (2.5, (0.5, 0.67, 0.8, 1, 1.25, 1.5, 2)),
    (6, (0.2, 0.33, 0.5, 1, 2, 3, 5)),
    (np.inf, (0.01, 0.1, 0.33, 1, 3, 10, 100)),
)


@dataclass(frozen=True)
class CollapsePanel:
    """rFID against one derived axis, and the power law through it."""

    found: Collapse
    x: Floats
    y: Floats
    """Mean over the seeds of each cell."""
    line_x: Floats
    line_y: Floats
    ratio: Floats
    """y over the line."""
    rows: pd.DataFrame
    """The first row of each cell."""


@dataclass(frozen=True)
class ParetoPanel:
    """rFID against a cost, and the cells that no other one beats in both."""

    cost: str
    x: Floats
    y: Floats
    """Means over the seeds of each cell."""
    front: tuple[bool, ...]
    labels: tuple[str, ...]
    """Each cell's values of the axes that vary."""
    rows: pd.DataFrame
    """The first row of each cell."""

    @property
    def front_points(self) -> tuple[tuple[float, float], ...]:
        """Cost and rFID of the cells on the front, by cost."""
        return tuple(sorted((x, y) for x, y, best in zip(self.x, self.y, self.front, strict=True) if best))


@remembered
def collapse_panels(
    frame: pd.DataFrame, derived: Sequence[str] | None = None, target: str = "rfid"
) -> tuple[CollapsePanel, ...]:
    """Run :func:`analysis.collapse` and add what a figure needs. ``derived``: columns of the table or derived axes;
    default bits_per_pixel. Raises AnalysisError like it."""
    derived = tuple(derived or ("bits_per_pixel",))
    rows, _ = measured(frame, target, [name for name in derived if name in schema.PROBED])
    for name in derived:
        require_columns(rows, name)
        if rows[name].nunique() < 2:
            value = f"{rows[name].iloc[0]:g}"
            raise AnalysisError(f"{name} takes one value in the measured rows ({value}): no collapse on it")
    found = collapse(frame, derived, target=target)
    cells = configuration_ids(rows, varying(rows, ABSORBED))
    first = np.unique(cells, return_index=True)[1]
    mean = np.exp(np.bincount(cells, np.log(numbers(rows, target))) / np.bincount(cells))
    shown = rows.iloc[first].reset_index(drop=True)
    panels = []
    for one in found:
        x = numbers(shown, one.derived)
        slope, offset = np.polyfit(np.log(x), np.log(mean), 1)
        grid = np.geomspace(x.min() / 1.1, x.max() * 1.1, 60)
        line = np.exp(offset + slope * np.log(grid))
        ratio = mean / np.exp(offset + slope * np.log(x))
        panels.append(CollapsePanel(one, tuple(x), tuple(mean), tuple(grid), tuple(line), tuple(ratio), shown))
    return tuple(panels)


def collapse_figure(
    frame: pd.DataFrame, derived: Sequence[str] | None = None, path: str | Path | None = None
) -> Figure:
    """rFID against each derived axis with one power law through all cells, and below it the factor by which each cell
    misses the line: where the axis absorbs the others, no colour or marker lies on one side.

    ``derived``: columns or derived axes, default bits_per_pixel; ``path``: as for :func:`analysis.scaling_figure`.
    Raises AnalysisError like :func:`analysis.collapse`.
    """
    require_shown(frame, "rfid")
    panels = collapse_panels(frame, derived)
    rows, excluded = measured(frame)
    marks = Marks(rows)
    width = 0.8 + 4.6 * len(panels)
    with style():
        figure = Figure(figsize=(width, 5.4), layout="constrained")
        grid = figure.subplots(
            2, len(panels), squeeze=False, sharex="col", sharey="row", gridspec_kw={"height_ratios": [3, 1]}
        )
        for number, panel in enumerate(panels):
            draw_collapse(panel, grid[0, number], grid[1, number], marks)
        grid[0, 0].set_ylabel("rFID")
        grid[1, 0].set_ylabel("rFID / line")
        legend_outside(figure, marks.handles(), width)
        notes = [f"{y_label(rows)}. Points: cells.", seeds_note(rows), "Line: one power law through all of them."]
        caption(figure, [*notes, f"\n{excluded.text}." if excluded.text else ""], width)
        return save(figure, path)


def draw_collapse(panel: CollapsePanel, above: Axes, below: Axes, marks: Marks) -> None:
    """Draw ``panel``: the points and the line on ``above``, their ratio on ``below``."""
    for axes in (above, below):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        raster_where_many(axes, len(panel.x))
    above.plot(panel.line_x, panel.line_y, color="black", linewidth=1.2, zorder=1.5)
    below.axhline(1, color="black", linewidth=1, zorder=1.5)
    for (_, row), x, y, ratio in zip(panel.rows.iterrows(), panel.x, panel.y, panel.ratio, strict=True):
        colour, marker = marks.of(row)
        above.plot(x, y, marker, color=colour, alpha=0.9, zorder=3)
        below.plot(x, ratio, marker, color=colour, alpha=0.9, markersize=3.5, zorder=3)
    widest = max(1.3, *(max(ratio, 1 / ratio) for ratio in panel.ratio)) * 1.1
    below.set_ylim(1 / widest, widest)
    ratios = next(ticks for most, ticks in _RATIOS if widest <= most)
    set_ticks(below.yaxis, ratios, lambda value: f"{value:.3g}")
    log_axis(above.yaxis, above.get_ylim())
    name = panel.found.derived
    octave_axis(below.xaxis, below.get_xlim(), name, most=8)
    below.set_xlabel(LABELS.get(name, name.replace("_", " ")))
    verdict = "absorbs" if panel.found.absorbs else "does not wholly absorb"
    above.set_title(
        f"{LABELS.get(name, name.replace('_', ' '))} {verdict} the axes\n"
        f"log-RMSE {panel.found.log_rmse:.3g}; with an exponent for each axis {panel.found.log_rmse_free:.3g}",
        loc="left",
        fontsize=8.5,
    )


def seeds_note(rows: pd.DataFrame) -> str:
    """Say that points are means over seeds, where some cell has several."""
    return "Means over seeds." if len(np.unique(configuration_ids(rows))) < len(rows) else ""


def pareto_panel(frame: pd.DataFrame, cost: str, target: str = "rfid") -> ParetoPanel:
    """``target`` against ``cost`` (a numeric column that is less the better, such as bits_per_pixel or train_flops),
    seeds averaged. Raises AnalysisError where the column is missing or empty, or varies by less than 10 %."""
    rows, _ = measured(frame, target, [cost] if cost in schema.PROBED else [])
    require_columns(rows, cost)
    known = np.isfinite(numbers(rows, cost))
    if not known.any():
        raise AnalysisError(f"column {cost!r} is empty in the measured rows: no Pareto front against it")
    rows = rows[known].reset_index(drop=True)
    cells = configuration_ids(rows)
    first = np.unique(cells, return_index=True)[1]
    x, y = (np.bincount(cells, numbers(rows, name)) / np.bincount(cells) for name in (cost, target))
    if len(np.unique(x)) < 2:
        raise AnalysisError(f"{cost} takes one value in the measured rows ({x[0]:g}): no Pareto front against it")
    if not _spreads(x):
        share = float(np.ptp(x) / np.abs(x).min())
        raise AnalysisError(
            f"{cost} varies only by {share:.1%} over the measured rows ({x.min():.4g} to {x.max():.4g}): no Pareto "
            f"front against it; choose a cost that varies by {LEAST_SPREAD:.0%} or more"
        )
    shown = rows.iloc[first].reset_index(drop=True)
    front = [not bool(np.any((x <= x[i]) & (y <= y[i]) & ((x < x[i]) | (y < y[i])))) for i in range(len(x))]
    names = [name for name in varying(shown) if shown[name].nunique() > 1]
    names = [n for n in TOKENIZER if n in names] or names
    labels = [settings({n: plain(row[n]) for n in names}) for _, row in shown.iterrows()]
    return ParetoPanel(cost, tuple(x), tuple(y), tuple(front), tuple(labels), shown)


def _spreads(values: Array) -> bool:
    """Whether a cost varies enough for a front. Costs of 0 or less have no ratio: any two values are enough there."""
    known = values[np.isfinite(values)]
    if len(np.unique(known)) < 2:
        return False
    return bool(known.min() <= 0 or known.max() >= (1 + LEAST_SPREAD) * known.min())


@remembered
def pareto_panels(frame: pd.DataFrame, costs: Sequence[str] | None = None) -> tuple[ParetoPanel, ...]:
    """:func:`pareto_panel` for each of ``costs``: default bits_per_pixel, and the first of train_flops, device_seconds,
    parameters and images_seen that the table has and that varies by 10 % or more. Raises AnalysisError like it."""
    rows = measured(frame)[0]
    if costs is None:
        moving = [n for n in ("bits_per_pixel", *COMPUTE) if n in rows and _spreads(numbers(rows, n))]
        costs = [*(n for n in moving if n not in COMPUTE), *[n for n in moving if n in COMPUTE][:1]]
    if not costs:
        raise AnalysisError(
            f"no cost varies by {LEAST_SPREAD:.0%} or more over the measured rows (bits_per_pixel, "
            f"{', '.join(COMPUTE)}): no Pareto front"
        )
    return tuple(pareto_panel(frame, cost) for cost in costs)


def pareto_figure(frame: pd.DataFrame, costs: Sequence[str] | None = None, path: str | Path | None = None) -> Figure:
    """Draw the Pareto fronts of :func:`pareto_panels` side by side.

    ``path``: as for :func:`analysis.scaling_figure`. Raises AnalysisError like :func:`pareto_panels`.
    """
    require_shown(frame, "rfid")
    rows, excluded = measured(frame)
    panels = pareto_panels(frame, costs)
    missing = ""
    if costs is None and not any(panel.cost in COMPUTE for panel in panels):
        missing = f"No compute to show: none of {', '.join(COMPUTE)} is there and varies by {LEAST_SPREAD:.0%} or more."
    marks = Marks(rows)
    width = 0.8 + 4.8 * len(panels)
    with style():
        figure = Figure(figsize=(width, 4.9), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        grid[0].set_ylabel(y_label(rows))
        legend_outside(figure, marks.handles(), width)
        notes = ["Large points and steps: the front, the cells that none beats in both.", seeds_note(rows), missing]
        caption(figure, [*notes, f"\n{excluded.text}." if excluded.text else ""], width)
        for panel, axes in zip(panels, grid, strict=True):
            draw_pareto(panel, axes, marks)
        for number, (panel, axes) in enumerate(zip(panels, grid, strict=True)):
            label_front(panel, axes, settled=number > 0)
        return save(figure, path)


def draw_pareto(panel: ParetoPanel, axes: Axes, marks: Marks) -> None:
    """Draw ``panel`` on ``axes``: the front large and joined by steps, all other cells small and pale."""
    axes.set_xscale("log", base=2 if panel.cost in _RATES else 10)
    axes.set_yscale("log")
    raster_where_many(axes, len(panel.x))
    for (_, row), x, y, best in zip(panel.rows.iterrows(), panel.x, panel.y, panel.front, strict=True):
        colour, marker = marks.of(row)
        axes.plot(x, y, marker, color=colour, alpha=1 if best else 0.4, markersize=6 if best else 4, zorder=3 + best)
    xs, ys = zip(*panel.front_points, strict=True)
    axes.step(xs, ys, where="post", color=GREY, linewidth=1, zorder=2)
    if panel.cost in _RATES:
        octave_axis(axes.xaxis, axes.get_xlim(), panel.cost, most=8)
    elif np.log10(axes.get_xlim()[1] / axes.get_xlim()[0]) < 2.5:
        log_axis(axes.xaxis, axes.get_xlim())
    log_axis(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(LABELS.get(panel.cost, panel.cost.replace("_", " ")))
    axes.spines["left"].set_color(DARK)


def label_front(panel: ParetoPanel, axes: Axes, settled: bool = False) -> None:
    """Name the cells of the front where there is room for it; call it when nothing of the figure moves any more.
    ``settled``: as for :func:`style.place_labels`."""
    named = [(x, y, text) for x, y, best, text in zip(panel.x, panel.y, panel.front, panel.labels, strict=True) if best]
    named = sorted(named)[:: max(1, -(-len(named) // _MOST_LABELS))]
    every = list(zip(panel.x, panel.y, strict=True))
    place_labels(axes, [(x, y) for x, y, _ in named], [text for *_, text in named], every, settled=settled)
