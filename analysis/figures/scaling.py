"""Figures of a sweep. ``panels`` computes what they show; here it is drawn, and nothing is computed.

Iso-rFID contours are in ``contours``, the collapse and the Pareto front in ``scatter``; ``style`` has what all share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.panels import LABELS, Overlay, Panel, Series, axis_panel, rate_panel
from gsq.analysis.figures.settings import setting
from gsq.analysis.figures.style import (
    COLOURS,
    DARK,
    GREY,
    MARKERS,
    caption,
    log_axis,
    octave_axis,
    raster_where_many,
    save,
    style,
)
from gsq.analysis.fitting.result import Fit
from gsq.analysis.laws.named import LAWS
from gsq.analysis.tables.table import measured, require_columns, require_shown, varying, with_derived
from gsq.config.axes import PANELS

LEGEND_SERIES = 6  # with more joined series than this, colours name the values of one axis only


def scaling_figure(
    frame: pd.DataFrame,
    fits: Fit | Sequence[Fit] = (),
    path: str | Path | None = None,
    reference: pd.DataFrame | None = None,
) -> Figure:
    """What the (first) law predicts, by default rFID, against bits_per_pixel (large) and against each tokenizer axis
    that varies (small), with the laws that predict it.

    ``path``: where given, PNG (150 dpi) and SVG are saved beside each other under its stem, or a PDF where it ends in
    .pdf. ``reference``: another table, such as :func:`analysis.load_reference`'s, drawn beside one's own points and
    not fitted. Raises AnalysisError like :func:`analysis.measured`.
    """
    fits = [fits] if isinstance(fits, Fit) else list(fits)
    metric = fits[0].target if fits and not fits[0].law.outputs else "rfid"
    require_shown(with_derived(frame), metric, "bits_per_pixel")
    rows, excluded = measured(frame, metric)
    columns = varying(rows, PANELS)
    panels = [axis_panel(frame, column, fits, metric, reference) for column in columns]
    across = 1 if len(panels) <= 2 else 2
    down = 1 if len(panels) <= 1 else 2
    width, height = (5.6 + 3.4 * across, 3.3 * down + 0.9) if panels else (6.4, 4.6)
    with style():
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
        rate = rate_panel(frame, fits, reference, metric)
        if not panels:
            draw_panel(rate, figure.subplots(), right_label=True)
        else:
            left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[5.6, 3.4 * across])[0]
            draw_panel(rate, left.subplots(), right_label=True)
            for number, axes in enumerate(right.subplots(down, across, squeeze=False).ravel()):
                if number < len(panels):
                    draw_panel(panels[number], axes, y_label=LABELS.get(metric, metric) if number % across == 0 else "")
                else:
                    axes.set_axis_off()
        caption(figure, _notes([rate, *panels], fits, excluded.text), width)
        return save(figure, path)


def group_figure(
    frame: pd.DataFrame,
    fits: Fit | Sequence[Fit] = (),
    path: str | Path | None = None,
    reference: pd.DataFrame | None = None,
) -> Figure:
    """Group decomposition: rFID against groups G and against channels a group d = D / G, D and all else fixed along a
    line.

    ``path`` and ``reference``: as for :func:`scaling_figure`. Raises AnalysisError where groups do not vary at any D.
    """
    fits = [fits] if isinstance(fits, Fit) else list(fits)
    require_shown(frame, "rfid")
    rows, excluded = measured(frame)
    require_columns(rows, "groups", "latent_dim")
    first = axis_panel(frame, "groups", fits, reference=reference)
    if not any(one.joined for one in first.series):
        raise AnalysisError(
            "no two cells differ in groups alone: a group decomposition needs the same D, V and f with several G; add "
            "such cells to the sweep"
        )
    second = axis_panel(frame, "group_dim", fits, reference=reference)
    return _panel_row([first, second], fits, excluded.text, path)


def usage_figure(frame: pd.DataFrame, path: str | Path | None = None, reference: pd.DataFrame | None = None) -> Figure:
    """Codebook usage and perplexity against the codebook size V and, where groups vary, against channels a group d.

    ``path`` and ``reference``: as for :func:`scaling_figure`. Raises AnalysisError where a table has neither metric, or
    neither V nor d varies.
    """
    metrics = [name for name in ("usage", "perplexity") if name in frame and frame[name].notna().any()]
    if not metrics:
        require_columns(frame, "usage")
        raise AnalysisError("no row has a usage or a perplexity: nothing to plot; evaluate the runs, then gather again")
    rows, excluded = measured(frame, metrics[0])
    columns = [
        name
        for name, moving in (("codebook_size", "codebook_size"), ("group_dim", "groups"))
        if name in rows and rows[moving].nunique() > 1
    ]
    if not columns:
        raise AnalysisError(
            "neither the codebook size nor the number of groups varies over the measured rows, so there is nothing to "
            "plot usage against; --kind steps shows it over training"
        )
    panels = [axis_panel(frame, column, metric=metric, reference=reference) for metric in metrics for column in columns]
    joined = [column for column in columns if any(one.joined for p in panels if p.column == column for one in p.series)]
    if not joined:
        raise AnalysisError(
            f"no two cells differ in {' or '.join(columns)} alone, so nothing can be joined to a line; add such cells "
            "to the sweep"
        )
    return _panel_row([one for one in panels if one.column in joined], (), excluded.text, path, across=len(joined))


def _panel_row(
    panels: Sequence[Panel], fits: Sequence[Fit], excluded: str, path: str | Path | None, across: int = 2
) -> Figure:
    """Panels of equal size, ``across`` in a row."""
    down = -(-len(panels) // across)
    width = 0.6 + 4.3 * across
    with style():
        figure = Figure(figsize=(width, 0.6 + 3.9 * down), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
        for number, axes in enumerate(figure.subplots(down, across, squeeze=False).ravel()):
            if number < len(panels):
                first, last = number % across == 0, number % across == across - 1
                metric = panels[number].metric
                draw_panel(panels[number], axes, y_label=LABELS[metric] if first else "", right_label=last)
            else:
                axes.set_axis_off()
        caption(figure, _notes(panels, fits, excluded), width)
        return save(figure, path)


def _notes(panels: Sequence[Panel], fits: Sequence[Fit], excluded: str) -> list[str]:
    """What the marks mean, what the fits leave out, and by what an overlay was measured."""
    parts = [] if any(panel.overlay for panel in panels) else _measured_in(panels)
    parts.append("Filled points: runs.")
    small = [panel for panel in panels if panel.column != "bits_per_pixel"]
    if any(not one.joined for panel in small for one in panel.series):
        parts.append("Hollow: runs without a neighbour along the axis.")
    joined = [one for panel in small for one in panel.series if one.joined]
    if joined:
        seeds = any(len(one.x) > len(one.mean_x) for one in joined)
        parts.append(f"Thin lines join {'means over seeds' if seeds else 'runs'}.")
    if any(panel.metric == "perplexity" and panel.column == "codebook_size" for panel in panels):
        parts.append("Dotted: every row used equally.")
    drawn = [fit for fit in fits if any(panel.metric == fit.target for panel in panels)]
    if drawn:
        words = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dash-dotted"}
        laws = ", ".join(f"{words[_line_style(fit.law.name)]} {fit.law.name}" for fit in drawn)
        where = " (small panels: of the last law)" if len(drawn) > 1 and len(panels) > len(small) > 0 else ""
        parts.append(f"Wide curves: {laws}. Bands: {drawn[-1].confidence:.0%} intervals of the law{where}.")
    overlay = next((panel.overlay for panel in panels if panel.overlay), None)
    if overlay:
        parts.append(f"\nOwn points: {overlay.own_protocol}.")
        if overlay.comparable:
            parts.append(f"Grey diamonds, not fitted: {overlay.label}, by the same protocol.")
        else:
            scale = ", right-hand scale" if any(p.metric == "rfid" for p in panels) else ""
            parts.append(
                f"Grey diamonds{scale}, not fitted: {overlay.label}, {overlay.protocol}. Two protocols: slopes may be "
                "compared, heights may not."
            )
    if excluded:
        parts.append(f"\n{excluded}.")
    return parts


def _measured_in(panels: Sequence[Panel]) -> list[str]:
    """What rFID was measured in, where no y label says it."""
    rfid = next((panel for panel in panels if panel.metric == "rfid"), None)
    named = rfid is None or any(panel.column == "bits_per_pixel" for panel in panels)
    return [] if named or rfid is None or rfid.y_label == "rFID" else [f"{rfid.y_label}."]


def draw_panel(panel: Panel, axes: Axes, *, y_label: str | None = None, right_label: bool = False) -> None:
    """Draw ``panel`` on ``axes``, on logarithmic scales (usage above 5 %: linear), its legend below the x label where
    no point is.

    ``y_label``: in place of the panel's own, for instance a short one in a grid of panels. ``right_label``: name the
    right-hand scale of an overlay.
    """
    axes.set_xscale("log", base=2)
    everything = [y for one in (*panel.series, *(panel.overlay.series if panel.overlay else ())) for y in one.y]
    logarithmic = min(everything) > 0 and not (panel.metric == "usage" and min(everything) > 0.05)
    if logarithmic:
        axes.set_yscale("log")
    handles = _draw_series(panel, axes)
    raster_where_many(axes, len(everything))
    for curve in panel.curves:
        axes.plot(curve.x, curve.central, _line_style(curve.law), color="black", linewidth=1.2, zorder=1.5)
        axes.fill_between(curve.x, curve.low, curve.high, color="black", alpha=0.12, linewidth=0, zorder=1)
    axes.set_title("\n".join(dict.fromkeys(curve.formula for curve in panel.curves)), loc="left")
    axes.set_ylabel(panel.y_label if y_label is None else y_label)
    if panel.metric == "usage" and not logarithmic:
        axes.set_ylim(0, 1.05)
    if panel.metric == "perplexity" and panel.column == "codebook_size":
        axes.plot(panel.x_values, panel.x_values, ":", color=GREY, linewidth=1, zorder=1)
    if panel.overlay is not None:
        handles = [*handles, _draw_overlay(panel, panel.overlay, axes, right_label)]
    rate = panel.column == "bits_per_pixel"
    octave_axis(axes.xaxis, axes.get_xlim(), panel.column, () if rate else panel.x_values, most=8 if rate else 6)
    if logarithmic:
        log_axis(axes.yaxis, axes.get_ylim())
    axes.set_xlabel(panel.x_label)
    if handles:
        below = offset_copy(axes.transAxes, fig=axes.get_figure(root=True), y=-34, units="points")
        shown = max(len(str(handle.get_label())) for handle in handles)
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


def _draw_overlay(panel: Panel, overlay: Overlay, axes: Axes, right_label: bool) -> Line2D:
    """The points of another table, in grey. rFIDs of another protocol get a scale of their own on the right, of as many
    decades as the left one, so that slopes can be compared and heights are not."""
    own_scale = panel.metric == "rfid" and not overlay.comparable
    width = 0.0 if panel.column == "bits_per_pixel" else 0.7
    right = axes.twinx() if own_scale else axes
    for one in overlay.series:
        right.plot(one.mean_x, one.mean_y, "-", color=GREY, linewidth=width, zorder=1.2, alpha=0.7)
        right.plot(one.x, one.y, "D", color=GREY, markerfacecolor="white", markersize=3.2, linestyle="none", zorder=1.4)
    if own_scale:
        right.set_yscale("log")
        spans = [np.log(np.array(one.get_ylim())) for one in (axes, right)]
        half = max(float(np.ptp(span)) for span in spans) / 2
        for scale, span in zip((axes, right), spans, strict=True):
            scale.set_ylim(*np.exp(span.mean() + half * np.array([-1, 1])))
        right.spines["right"].set(visible=True, color=GREY)
        right.grid(False)
        right.tick_params(colors=DARK)
        log_axis(right.yaxis, right.get_ylim())
        if right_label:
            right.set_ylabel(f"rFID, {overlay.label.split(':')[0]}'s protocol", color=DARK)
    label = f"{overlay.label.split(':')[0]}, not fitted"
    return Line2D([], [], color=GREY, marker="D", markerfacecolor="white", markersize=4, linewidth=width, label=label)


def _draw_series(panel: Panel, axes: Axes) -> list[Line2D]:
    """Points, joined means and curves; returns the legend's handles."""
    is_rate = panel.column == "bits_per_pixel"
    named = [one for one in panel.series if one.label and (is_rate or one.joined)]
    styles, handles = _styles(named)
    for one in panel.series:
        if not (is_rate or one.joined):
            axes.plot(one.x, one.y, "o", color=GREY, markerfacecolor="none", markersize=3.5, zorder=2)
            continue
        colour, marker = styles.get(id(one), (COLOURS[0], MARKERS[0]))
        axes.plot(one.x, one.y, marker, color=colour, linestyle="none", zorder=3, alpha=0.9)
        if one.joined and not is_rate:
            axes.plot(one.mean_x, one.mean_y, "-", color=colour, linewidth=0.8, zorder=2.5)
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
