"""Iso-rFID contours: a law over two axes, with measured points on top and the extrapolated region hatched."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from matplotlib.tri import Triangulation

from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.panels import LABELS, Floats
from gsq.analysis.figures.settings import plain, settings
from gsq.analysis.figures.style import (
    DARK,
    caption,
    fits_in,
    octave_axis,
    place_labels,
    plain_number,
    round_ticks,
    save,
    set_ticks,
    short_number,
    style,
)
from gsq.analysis.fitting.result import Fit
from gsq.analysis.tables.remembering import remembered
from gsq.analysis.tables.table import Array, moved, numbers, require_columns, varying
from gsq.config.axes import BY_NAME, DERIVED, PANELS, roots

_MOST_PANELS = 4


@dataclass(frozen=True)
class ContourPanel:
    """A law's value over two axes, all others fixed."""

    x_column: str
    y_column: str
    fixed: dict[str, float | str]
    """The axes that vary elsewhere in the table, and their values here."""
    label: str
    x: Floats
    y: Floats
    value: tuple[Floats, ...]
    """Predicted target, a row for each y."""
    inside: tuple[tuple[bool, ...], ...]
    """Whether a point of the grid lies within the convex hull of the measured settings (in logarithms where the axis is
    logarithmic): beyond it the law is extrapolated."""
    points: tuple[tuple[float, float, float], ...]
    """Measured settings: x, y, mean target over seeds."""
    logarithmic: tuple[bool, bool]


@remembered
def contour_panels(fit: Fit, x: str | None = None, y: str | None = None, size: int = 80) -> tuple[ContourPanel, ...]:
    """Predict the law of ``fit`` over two axes that it depends on (default: those in which the most cells differ), one
    panel for each setting of the other axes, at most four, those with the most measured cells.

    The grid of ``size`` by ``size`` goes an octave beyond the measured cells. Raises AnalysisError where the law does
    not depend on two axes that vary over its rows.
    """
    given = x is not None and y is not None
    rows, target = fit.rows, fit.target
    axes = _axes(fit, x, y)
    rows = rows[np.all([np.isfinite(numbers(rows, name)) for name in axes], axis=0)]
    groups = _groups(rows, *axes)
    if not any(_plane(part, *axes) for _, part in groups) and not given:
        raise AnalysisError(
            f"no setting of the other axes has measured cells that spread both in {axes[0]} and in {axes[1]}, so there "
            "is nothing to compare contours with; name two axes (--x, --y) to draw them anyway"
        )
    # Settings differ in what the law does not know, too; those with the most cells come first, in order.
    most = sorted(range(len(groups)), key=lambda i: -len(groups[i][1][list(axes)].drop_duplicates()))[:_MOST_PANELS]
    spans = {name: numbers(rows, name) for name in axes}
    logs = tuple(bool(span.min() > 0 and span.max() / span.min() >= 1.9) for span in spans.values())
    grids = [_grid(name, span, log, size) for (name, span), log in zip(spans.items(), logs, strict=True)]
    panels = []
    for i in sorted(most):
        fixed, part = groups[i]
        panels.append(_panel(fit, part, axes, grids, logs, fixed, target))
    return tuple(panels)


def _axes(fit: Fit, x: str | None, y: str | None) -> tuple[str, str]:
    """Choose the two axes: those asked for, else those in which one setting of all others has the most cells."""
    rows = fit.rows
    inputs: list[str] = []
    for name in fit.law.columns:
        needs = roots(name) if name in DERIVED else ()
        inputs += needs if needs and all(need in rows for need in needs) else [name]
    moving = varying(rows, list(dict.fromkeys([*(name for name in PANELS if name in inputs), *inputs])))
    for asked in (x, y):
        if asked is not None and asked not in moving:
            require_columns(rows, asked)
            raise AnalysisError(
                f"{fit.law.name} has no contours over {asked}: over these rows it varies with "
                f"{', '.join(moving) or 'no axis'}"
            )
    pairs = [(a, b) for a, b in itertools.permutations(moving, 2) if x in (None, a) and y in (None, b)]
    if x is None and y is None:
        pairs = [(a, b) for a, b in pairs if moving.index(a) < moving.index(b)]
    if not pairs:
        raise AnalysisError(
            f"contours need two axes, but of those that {fit.law.name} depends on, only "
            f"{', '.join(moving) or 'none'} varies over the measured rows; use another --law, or add cells"
        )
    return max(pairs, key=lambda pair: max(_plane(part, *pair) for _, part in _groups(rows, *pair)))


def _groups(rows: pd.DataFrame, x: str, y: str) -> list[tuple[dict[str, float | str], pd.DataFrame]]:
    """Group the rows by the setting of all axes but x and y."""
    others = [name for name in varying(rows) if name not in (x, y)]
    if not others:
        return [({}, rows)]
    return [
        ({n: plain(v) for n, v in zip(others, key, strict=True)}, part)
        for key, part in rows.groupby(others, dropna=False, sort=True)
    ]


def _plane(part: pd.DataFrame, x: str, y: str) -> int:
    """Count the cells that differ in x and y; 0 where all lie on one line. Cells without one of them do not count."""
    cells = np.unique(np.stack([numbers(part, x), numbers(part, y)], 1), axis=0)
    cells = cells[np.isfinite(cells).all(axis=1)]
    return len(cells) if len(cells) and np.linalg.matrix_rank(cells - cells[0]) == 2 else 0


def _grid(name: str, values: Array, log: bool, size: int) -> Array:
    low, high = float(values.min()), float(values.max())
    if log:
        least = BY_NAME[name].least if name in BY_NAME else 0
        return np.geomspace(max(low / 2, least), high * 2, size)
    return np.linspace(low - 0.25 * (high - low), high + 0.25 * (high - low), size)


def _panel(
    fit: Fit,
    part: pd.DataFrame,
    axes: tuple[str, str],
    grids: Sequence[Array],
    logs: tuple[bool, ...],
    fixed: dict[str, float | str],
    target: str,
) -> ContourPanel:
    x, y = axes
    across, up = np.meshgrid(*grids)
    first = np.zeros(across.size, int)
    where = moved(part, first, fit.law.reads, **{x: across.ravel(), y: up.ravel()})
    value = fit.predict(where)[0].reshape(across.shape)
    means = part.groupby([x, y])[target].mean()
    points = tuple((float(a), float(b), float(mean)) for a, b, mean in means.reset_index().to_numpy(float))
    scale = [np.log2 if log else np.asarray for log in logs]
    cells = np.array([[f(v) for f, v in zip(scale, point[:2], strict=True)] for point in points])
    inside = _hull(cells, np.stack([f(v.ravel()) for f, v in zip(scale, (across, up), strict=True)], 1))
    return ContourPanel(
        x,
        y,
        fixed,
        settings(fixed),
        tuple(grids[0]),
        tuple(grids[1]),
        tuple(tuple(row) for row in value),
        tuple(tuple(bool(one) for one in row) for row in inside.reshape(across.shape)),
        points,
        (logs[0], logs[1]),
    )


def _hull(cells: Array, grid: Array) -> npt.NDArray[np.bool_]:
    """Which points of the grid, (n, 2), lie in the convex hull of the cells; none where these are on one line."""
    low, span = cells.min(axis=0), np.ptp(cells, axis=0)
    if not span.all():
        return np.zeros(len(grid), bool)
    cells, grid = (cells - low) / span, (grid - low) / span
    try:
        # Not scipy.spatial's, which takes longer to import than to answer.
        mesh = Triangulation(*cells.T)
    except (RuntimeError, ValueError):
        return np.zeros(len(grid), bool)
    inside = np.ones(len(grid), bool)
    for triangle, corner in np.argwhere(mesh.neighbors < 0):
        # An edge of the hull, anticlockwise: inside is on its left.
        a, b = cells[mesh.triangles[triangle, [corner, (corner + 1) % 3]]]
        inside &= (b[0] - a[0]) * (grid[:, 1] - a[1]) - (b[1] - a[1]) * (grid[:, 0] - a[0]) >= -1e-9
    return inside


def contour_figure(fit: Fit, path: str | Path | None = None, x: str | None = None, y: str | None = None) -> Figure:
    """Draw :func:`contour_panels` with the same lines and colours in each. ``path``: as for
    :func:`analysis.scaling_figure`."""
    panels = contour_panels(fit, x, y)
    every = np.array([panel.value for panel in panels])
    seen = [mean for panel in panels for *_, mean in panel.points]
    finite = every[np.isfinite(every)]
    low, high = float(min(finite.min(), *seen)), float(max(finite.max(), *seen))
    if high <= low * (1 + 1e-9):  # a target that is the same everywhere has one colour
        low, high = low - 0.05 * abs(low or 1), high + 0.05 * abs(high or 1)
    norm = LogNorm(low, high) if low > 0 else Normalize(low, high)
    levels = round_ticks(low, high) if low > 0 else _inside(low, high)
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    width = 1.4 + 4.2 * across
    name = LABELS.get(fit.target, fit.target)
    with style():
        figure = Figure(figsize=(width, 1.2 + 3.5 * down), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        drawn = []
        for number, axes in enumerate(grid.ravel()):
            if number >= len(panels):
                axes.set_axis_off()
                continue
            drawn.append((panels[number], axes, draw_contours(panels[number], axes, norm, levels)))
            if number + across < len(panels):
                axes.set_xlabel("")
            if number % across:
                axes.set_ylabel("")
        shades = figure.colorbar(ScalarMappable(norm), ax=grid.ravel().tolist(), label=name, aspect=30)
        set_ticks(shades.ax.yaxis, levels, short_number)
        marks = [
            Line2D([], [], color=DARK, marker="o", markeredgecolor="black", linestyle="none", label=f"measured {name}"),
            Line2D([], [], color=DARK, linewidth=1.6, label=f"predicted {name}"),
            Patch(facecolor="#f4f4f4", edgecolor="#bbbbbb", hatch="////", linewidth=0, label="law extrapolated"),
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=3)
        caption(figure, [f"{fit.law.name}: {fit.formula()}.", f"\n{fit.excluded}." if fit.excluded else ""], width)
        for number, (panel, axes, lines) in enumerate(drawn):
            label_contours(panel, axes, lines, settled=number > 0)
        return save(figure, path)


def _inside(low: float, high: float) -> Floats:
    """Round numbers within [low, high], which may lie on both sides of 0."""
    return tuple(float(f"{one:.6g}") for one in MaxNLocator(8).tick_values(low, high) if low <= one <= high)


def draw_contours(panel: ContourPanel, axes: Axes, norm: Normalize, levels: Sequence[float]) -> QuadContourSet | None:
    """Draw ``panel`` on ``axes``: lines of equal predicted target at ``levels``; hatched where the law is extrapolated;
    measured settings as points, coloured alike. Returns the lines, for :func:`label_contours`; None where the law says
    the same everywhere."""
    value = np.ma.masked_invalid(np.array(panel.value))
    axes.set_axisbelow(True)
    axes.grid(False)
    for log, name, grid, axis in (
        (panel.logarithmic[0], panel.x_column, panel.x, axes.xaxis),
        (panel.logarithmic[1], panel.y_column, panel.y, axes.yaxis),
    ):
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log", base=2)
            octave_axis(axis, (grid[0], grid[-1]), name)
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(grid[0], grid[-1])
        axis.set_label_text(LABELS.get(name, name))
    outside = np.where(np.array(panel.inside), 0.0, 1.0)
    shade = axes.contourf(panel.x, panel.y, outside, levels=[0.5, 1.5], colors=["#f4f4f4"], hatches=["////"], zorder=0)
    shade.set(edgecolor="#cccccc", linewidth=0)
    lines = None
    if np.ptp(value) > 0:
        lines = axes.contour(panel.x, panel.y, value, levels=list(levels), norm=norm, linewidths=1.6, zorder=2)
    xs, ys, means = zip(*panel.points, strict=True)
    axes.scatter(xs, ys, c=means, norm=norm, s=34, edgecolors="black", linewidths=0.7, zorder=3, clip_on=False)
    axes.set_title(panel.label, loc="left", fontsize=9)
    return lines


# Above the point, below it, to its right and to its left.
_AROUND = ((0, 6, "center"), (0, -13, "center"), (7, -3, "left"), (-7, -3, "right"), (6, 6, "left"), (-6, 6, "right"))


def label_contours(panel: ContourPanel, axes: Axes, lines: QuadContourSet | None, settled: bool = False) -> None:
    """Write the measured values beside their points, and the level of each line where it hides no other label; where
    there is no such place, none is written. Call it when nothing of the figure moves any more. ``settled``: as for
    :func:`style.place_labels`."""
    points = [(x, y) for x, y, _ in panel.points]
    texts = [short_number(mean) for *_, mean in panel.points]
    taken = place_labels(axes, points, texts, points, _AROUND, settled)
    if lines is None:
        return
    marks = axes.transData.transform(np.array(points))
    for level, segments in zip(lines.levels, lines.allsegs, strict=True):
        text = plain_number(float(level))
        found = _free_place(axes, [np.asarray(segment, float) for segment in segments], text, taken, marks)
        if found is not None:
            place, box = found
            written = axes.clabel(lines, [level], fmt=lambda _, text=text: text, fontsize=7.5, colors="black",
                                  manual=[place])  # fmt: skip
            for one in written or ():
                one.set_in_layout(False)
            taken.append(box)


def _free_place(
    axes: Axes, segments: Sequence[Array], text: str, taken: Sequence[Bbox], marks: Array
) -> tuple[tuple[float, float], Bbox] | None:
    """A point of a line, in data coordinates, where its label hides nothing, the nearest to the middle of the longest
    segment; and the label's box in pixels."""
    probe = axes.text(0, 0, text, fontsize=7.5)
    extent = probe.get_window_extent()
    probe.remove()
    half = 0.5 * max(extent.width, extent.height) + 3  # labels turn with their line
    for segment in sorted((one for one in segments if len(one) > 1), key=len, reverse=True):
        pixels = axes.transData.transform(segment)
        middle = len(segment) // 2
        for at in sorted(range(len(segment)), key=lambda i: abs(i - middle)):
            x, y = pixels[at]
            box = Bbox.from_extents(x - half, y - half, x + half, y + half)
            whole = axes.get_window_extent()
            within = whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
            if within and fits_in(box, axes, taken, marks):
                return (float(segment[at, 0]), float(segment[at, 1])), box
    return None
