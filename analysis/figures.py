"""Figures of a sweep. ``panels`` computes what they show; here it is drawn, and nothing is computed.

Figures are made without pyplot, so that importing this module or saving a file changes no global state; in a
notebook with %matplotlib inline, the returned Figure shows itself.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from analysis.card import ReportCard
from analysis.errors import AnalysisError
from analysis.laws import LAWS
from analysis.panels import (
    AXES,
    LABELS,
    Panel,
    Series,
    StepPanel,
    axis_panel,
    power_of_two,
    rate_panel,
    setting,
    step_panel,
)
from analysis.result import Fit
from analysis.table import measured, varying

# Okabe and Ito's colour-blind-safe palette, without yellow (too light for lines) and black (used for laws).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "svg.hashsalt": "gsq",  # the same table gives the same file
    "svg.fonttype": "none",
}
GREY = "#888888"
LEGEND_SERIES = 6  # with more joined series than this, colours name the values of one axis only


def scaling_figure(frame: pd.DataFrame, fits: Fit | Sequence[Fit] = (), path: str | Path | None = None) -> Figure:
    """rFID against bits_per_pixel (large) and against each tokenizer axis that varies (small).

    ``path``: where given, PNG (150 dpi) and SVG are saved beside each other under its stem. Raises
    AnalysisError like :func:`analysis.measured`.
    """
    fits = [fits] if isinstance(fits, Fit) else list(fits)
    rows, excluded = measured(frame)
    columns = varying(rows, AXES)
    panels = [axis_panel(frame, column, fits) for column in columns]
    across = 1 if len(panels) <= 2 else 2
    down = 1 if len(panels) <= 1 else 2
    width, height = (5.6 + 3.4 * across, 3.3 * down + 0.9) if panels else (6.4, 4.6)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        if not panels:
            draw_panel(rate_panel(frame, fits), figure.subplots())
        else:
            left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[5.6, 3.4 * across])[0]
            draw_panel(rate_panel(frame, fits), left.subplots())
            for number, axes in enumerate(right.subplots(down, across, squeeze=False).ravel()):
                if number < len(panels):
                    draw_panel(panels[number], axes, y_label="rFID" if number % across == 0 else "")
                else:
                    axes.set_axis_off()
        figure.supxlabel(_caption(panels, fits, excluded.text, width), fontsize=7.5, color="#555555")
        if path is not None:
            _save(figure, Path(path))
    return figure


def step_figure(
    frame: pd.DataFrame, metrics: str | Sequence[str], by: str | Sequence[str], path: str | Path | None = None
) -> Figure:
    """Each of ``metrics`` (usage, perplexity, rfid, psnr_db, ...) against the optimiser step, side by side: a line for
    each combination of the columns ``by``, the mean over seeds, each run thin behind it.

    ``path``: as for :func:`scaling_figure`. Raises AnalysisError like :func:`analysis.step_panel`.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    panels = [step_panel(frame, metric, by) for metric in metrics]
    count = len(panels[0].series)
    rows = -(-count // 4)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(max(4.8, 3.9 * len(panels)), 3.2 + 0.2 * rows), layout="constrained")
        for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
            handles = draw_steps(panel, axes)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(count, 4), columnspacing=1.4)
        notes = (
            ["Thin lines: runs; wide lines: means over seeds."]
            if any(len(one.runs) > 1 for one in panels[0].series)
            else []
        )
        notes += [f"{panel.y_label}." for panel in panels if panel.metric == "rfid"]
        figure.suptitle(" ".join(notes), fontsize=7.5, color="#555555")
        if path is not None:
            _save(figure, Path(path))
    return figure


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
        axes.yaxis.set_major_locator(FixedLocator(list(round_ticks(*axes.get_ylim()))))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if panel.metric == "usage" else None)
    axes.set_xlabel("optimiser step")
    # What rfid was measured in is too long for a narrow panel.
    axes.set_ylabel("rFID" if panel.metric == "rfid" else panel.y_label)
    return handles


def _caption(panels: Sequence[Panel], fits: Sequence[Fit], excluded: str, width: float) -> str:
    """What the marks mean, wrapped to a figure of ``width`` inches, and what the fits leave out."""
    parts = ["Filled points: runs."]
    if any(not one.joined for panel in panels for one in panel.series):
        parts.append("Hollow: runs without a neighbour along the axis.")
    if panels:
        parts.append("Thin lines: means over seeds.")
    if fits:
        words = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dash-dotted"}
        laws = ", ".join(f"{words[_line_style(fit.law.name)]} {fit.law.name}" for fit in fits)
        parts.append(f"Wide curves: {laws}.")
    if fits:
        where = " (small panels: of the last law)" if len(fits) > 1 and panels else ""
        parts.append(f"Bands: {fits[-1].confidence:.0%} intervals of the law{where}.")
    lines = textwrap.wrap(" ".join(parts), int(15 * width))
    return "\n".join([*lines, *textwrap.wrap(f"{excluded}." if excluded else "", int(15 * width))])


def draw_panel(panel: Panel, axes: Axes, *, y_label: str | None = None) -> None:
    """Draw ``panel`` on ``axes``, on logarithmic scales, its legend below the x label where no point is.

    ``y_label``: in place of the panel's own, for instance a short one in a grid of panels."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    handles = _draw_series(panel, axes)
    for curve in panel.curves:
        axes.plot(curve.x, curve.central, _line_style(curve.law), color="black", linewidth=1.2, zorder=1.5)
        axes.fill_between(curve.x, curve.low, curve.high, color="black", alpha=0.12, linewidth=0, zorder=1)
    axes.set_title("\n".join(curve.formula for curve in panel.curves), loc="left")
    _set_ticks(panel, axes)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label if y_label is None else y_label)
    if handles:
        below = offset_copy(axes.transAxes, fig=axes.get_figure(root=True), y=-34, units="points")
        shown = max(len(re.sub(r"[${}^]", "", str(handle.get_label()))) for handle in handles)
        # About 0.06 inches a letter and 0.4 for the mark: a legend wider than a small panel would shrink it.
        columns = max(1, min(len(handles), int(2.7 / (0.06 * shown + 0.4))))
        axes.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=below,
            ncols=columns,
            borderaxespad=0,
            columnspacing=1.2,
            handletextpad=0.3,
        )


def _draw_series(panel: Panel, axes: Axes) -> list[Line2D]:
    """Points, joined means and curves; returns the legend's handles."""
    is_rate = panel.column == "bits_per_pixel"
    named = [one for one in panel.series if one.label and (is_rate or one.joined)]
    styles, handles = _styles(named)
    for one in panel.series:
        if not (is_rate or one.joined):
            axes.plot(one.x, one.rfid, "o", color=GREY, markerfacecolor="none", markersize=3.5, zorder=2)
            continue
        colour, marker = styles.get(id(one), (COLOURS[0], MARKERS[0]))
        axes.plot(one.x, one.rfid, marker, color=colour, linestyle="none", zorder=3, alpha=0.9)
        if one.joined and not is_rate:
            axes.plot(one.mean_x, one.mean_rfid, "-", color=colour, linewidth=0.8, zorder=2.5)
        for curve in one.curves:
            (line,) = axes.plot(curve.x, curve.central, _line_style(curve.law), color=colour, zorder=2)
            line.set(linewidth=2.2, alpha=0.35)
        for curve in one.curves[-1:]:  # the bands of several laws would hide each other
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.1, linewidth=0, zorder=1)
    return handles


def _styles(named: list[Series]) -> tuple[dict[int, tuple[str, str]], list[Line2D]]:
    """Colour and marker of each series, and the legend's handles. Many series share colours by one axis's
    value."""
    if len(named) <= LEGEND_SERIES:
        keys = [one.label for one in named]
    else:
        differing = [n for n in named[0].fixed if len({one.fixed[n] for one in named}) > 1]
        name = next((n for n in differing if len({one.fixed[n] for one in named}) <= LEGEND_SERIES), None)
        if name is None:
            return {id(one): (COLOURS[0], MARKERS[0]) for one in named}, []
        keys = [setting(name, one.fixed[name]) for one in named]
    order = list(dict.fromkeys(keys))
    styles = {id(o): (COLOURS[order.index(k)], MARKERS[order.index(k)]) for o, k in zip(named, keys, strict=True)}
    if len(order) < 2:
        return styles, []
    return styles, [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[i], linestyle="none", label=key) for i, key in enumerate(order)
    ]


def _line_style(law: str) -> str:
    names = list(LAWS)
    return ("-", "--", ":", "-.")[names.index(law) % 4] if law in names else "-"


def _set_ticks(panel: Panel, axes: Axes) -> None:
    if panel.column == "bits_per_pixel":
        low, high = axes.get_xlim()
        ticks = [2.0**e for e in range(int(np.ceil(np.log2(low))), int(np.floor(np.log2(high))) + 1)]
        ticks = ticks[:: -(-len(ticks) // 8)] if len(ticks) > 2 else list(round_ticks(low, high))
    else:
        ticks = list(panel.x_values)
        ticks = ticks[:: -(-len(ticks) // 6)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    codebook = panel.column == "codebook_size"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: power_of_two(v) if codebook else f"{v:.3g}"))
    axes.yaxis.set_major_locator(FixedLocator(list(round_ticks(*axes.get_ylim()))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def round_ticks(low: float, high: float) -> tuple[float, ...]:
    """Three to eight round numbers within [low, high], for a logarithmic axis; low > 0.

    Powers of ten where there are enough, else finer and finer multiples of them, so that an axis of less
    than a decade still has readable ticks.
    """
    decades = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    ticks: tuple[float, ...] = ()
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(np.arange(10, 100) / 10)):
        inside = [float(f"{step * 10.0**e:.3g}") for e in decades for step in steps]
        ticks = tuple(tick for tick in inside if low <= tick <= high)
        if len(ticks) >= 3:
            break
    if len(ticks) < 3:
        ticks = tuple(float(f"{tick:.3g}") for tick in np.linspace(low, high, 5)[1:-1])
    return ticks[:: -(-len(ticks) // 8)]


def reconstruction_figure(entries: Sequence[tuple[str, str | Path]], path: str | Path) -> Figure:
    """Stack pictures, each under its title, and save them as PNG to ``path``.

    ``entries``: (title, PNG file); each picture is a ready strip, originals above reconstructions. Raises
    AnalysisError where there are none or one cannot be read.
    """
    if not entries:
        raise AnalysisError("no pictures to stack; each run leaves samples.png in its folder once it is evaluated")
    pictures = []
    for title, file in entries:
        if not Path(file).is_file():
            raise AnalysisError(f"{file}: no such picture (of {title!r}); evaluate the run first")
        try:
            pictures.append(mpl.image.imread(file))
        except (OSError, SyntaxError, ValueError) as error:
            raise AnalysisError(f"{file}: not a readable PNG ({error})") from error
    width = 9.0
    heights = [width * picture.shape[0] / picture.shape[1] for picture in pictures]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, sum(heights) + 0.32 * len(entries)), layout="constrained")
        grid = figure.subplots(len(entries), 1, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
        for (title, _), picture, axes in zip(entries, pictures, grid, strict=True):
            axes.imshow(picture, cmap="gray", interpolation="nearest", aspect="equal")
            axes.set_title(title, loc="left", fontsize=9, pad=3)
            axes.set_axis_off()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)
    return figure


def card_figure(card: ReportCard, path: str | Path | None = None) -> Figure:
    """The report card drawn: predictions against the target, intervals of the parameters, residuals against each axis.

    ``path``: as for :func:`scaling_figure`.
    """
    fit, trends = card.fit, card.trends[:6]
    across = 3
    down = 1 + -(-len(trends) // across)
    findings = [line for one in card.findings for line in textwrap.wrap(f"• {one}", 150, subsequent_indent="   ")]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 2.7 * down + 0.5 + 0.15 * len(findings)), layout="constrained")
        grid = figure.add_gridspec(down, 2 * across)
        _draw_predicted(fit, figure.add_subplot(grid[0, :across]))
        _draw_intervals(fit, figure.add_subplot(grid[0, across:]))
        for number, trend in enumerate(trends):
            axes = figure.add_subplot(grid[1 + number // across, 2 * (number % across) : 2 * (number % across) + 2])
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.plot(trend.x, trend.error, "o", color=COLOURS[0], alpha=0.8, markersize=3.5)
            values = np.unique(trend.x)
            if values[0] > 0 and values[-1] / values[0] >= 1.9:
                axes.set_xscale("log", base=2)
                ticks = (
                    list(values)
                    if len(values) < 8
                    else [2.0**e for e in range(-8, 24) if values[0] <= 2.0**e <= values[-1]]
                )
                codebook = trend.column == "codebook_size"
                axes.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 5)]))
                axes.xaxis.set_major_formatter(
                    FuncFormatter(lambda v, _, codebook=codebook: power_of_two(v) if codebook else f"{v:.3g}")
                )
                axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel(LABELS.get(trend.column, trend.column))
            axes.set_title(f"rank correlation {trend.correlation:+.2f}, p {trend.p:.2g}", fontsize=8, loc="left")
            if number % across == 0:
                axes.set_ylabel("relative residual" if fit.residuals == "log" else "residual")
        figure.suptitle(fit.formula(), fontsize=10, x=0.01, ha="left")
        figure.supxlabel(
            "\n".join(findings or ["Nothing speaks against it."]), fontsize=7.5, x=0.01, ha="left", color="#333333"
        )
        if path is not None:
            _save(figure, Path(path))
    return figure


def _draw_predicted(fit: Fit, axes: Axes) -> None:
    target, value = fit.problem.target, fit.problem.predict(fit.theta[None])[0]
    axes.plot(value, target, "o", color=COLOURS[0], alpha=0.8)
    ends = [min(target.min(), value.min()), max(target.max(), value.max())]
    axes.plot(ends, ends, color=GREY, linewidth=0.8, zorder=1)
    if ends[0] > 0 and fit.residuals == "log":
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            axis.set_major_locator(FixedLocator(list(round_ticks(*limits))))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"predicted {fit.target}")
    axes.set_ylabel(fit.target)
    axes.set_title(f"{fit.n_rows} rows; RMSE {fit.rmse:.3g}, log-RMSE {fit.log_rmse:.3g}", fontsize=8, loc="left")


def _draw_intervals(fit: Fit, axes: Axes) -> None:
    """Each parameter's intervals in units of its value; an arrow where one is open or runs out of the panel."""
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
    labels = [f"{name} = {fit.parameters[name]:.4g}" + (" (!)" if name in fit.undetermined else "") for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("(end of the interval - value) / |value|")
    handles = [
        Line2D([], [], color=COLOURS[i], linewidth=2, label=kind) for i, kind in enumerate(("profile", "bootstrap"))
    ]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1)
    marked = "; (!): not determined by these data" if fit.undetermined else ""
    axes.set_title(f"{fit.confidence:.0%} intervals{marked}", fontsize=8, loc="left")


def saved_files(path: str | Path) -> tuple[Path, Path]:
    """The PNG and the SVG that :func:`scaling_figure` writes for ``path`` (with or without a suffix)."""
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    return stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    png, svg = saved_files(path)
    figure.savefig(png, dpi=150)
    figure.savefig(svg, metadata={"Date": None})
