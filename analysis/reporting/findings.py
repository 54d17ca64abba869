"""Alternative texts of the report's pictures: what a figure shows, in a sentence or two.

Each function looks at the same panels that its figure draws, so that text and picture agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from gsq.analysis.checking.card import ReportCard
from gsq.analysis.checking.generation import generation
from gsq.analysis.figures.contours import contour_panels
from gsq.analysis.figures.panels import LABELS, Panel, axis_panel, rate_panel, step_panel
from gsq.analysis.figures.scatter import collapse_panels, pareto_panels
from gsq.analysis.figures.settings import plain, settings
from gsq.analysis.fitting.result import Fit
from gsq.analysis.tables.table import Array, measured, numbers, varying
from gsq.config.axes import PANELS
from gsq.words import counted, span

WEAK = 0.3  # a smaller rank correlation is no clear trend


def scaling(frame: pd.DataFrame, fits: Sequence[Fit]) -> str:
    rows = measured(frame)[0]
    panel = rate_panel(frame, fits)
    parts = [_trend("rFID", "bits per pixel", *_points(panel)), least(rows)]
    columns = varying(rows, PANELS)
    parts += [_lines(axis_panel(frame, column, fits)) for column in columns]
    parts += [f"{curve.law}: {curve.formula}" for curve in panel.curves]
    return _sentences(parts)


def groups(frame: pd.DataFrame) -> str:
    return _sentences([_lines(axis_panel(frame, "groups")), _lines(axis_panel(frame, "group_dim"))])


def usage(frame: pd.DataFrame) -> str:
    parts = []
    for metric in ("usage", "perplexity"):
        if metric not in frame or not frame[metric].notna().any():
            continue
        rows = measured(frame, metric)[0]
        low, high = float(rows[metric].min()), float(rows[metric].max())
        parts.append(f"{_capital(LABELS[metric])} lies between {low:.3g} and {high:.3g}")
        for column, moving in (("codebook_size", "codebook_size"), ("group_dim", "groups")):
            if column in rows and rows[moving].nunique() > 1:
                parts.append(_lines(axis_panel(frame, column, metric=metric)))
    return _sentences(parts)


def collapse(frame: pd.DataFrame) -> str:
    return _sentences(panel.found.text for panel in collapse_panels(frame))


def contours(fit: Fit) -> str:
    parts = []
    for panel in contour_panels(fit):
        values = np.array(panel.value)[np.array(panel.inside)] if np.any(panel.inside) else np.array(panel.value)
        where = f"At {panel.label.replace('$', '')}: " if panel.label else ""
        seen = [mean for *_, mean in panel.points]
        what, x, y = (LABELS.get(name, name) for name in (fit.target, panel.x_column, panel.y_column))
        parts.append(
            f"{where}{fit.law.name} predicts {what} from {np.nanmin(values):.3g} to {np.nanmax(values):.3g} over {x} "
            f"and {y}; {counted(len(seen), 'cell')} measured {_between(seen)}"
        )
    return _sentences(parts)


def pareto(frame: pd.DataFrame) -> str:
    parts = []
    for panel in pareto_panels(frame):
        first, last = panel.front_points[0], panel.front_points[-1]
        name = LABELS.get(panel.cost, panel.cost)
        ends = f"from rFID {first[1]:.4g} at {first[0]:.4g} to {last[1]:.4g} at {last[0]:.4g}"
        at = f"rFID {last[1]:.4g} at {last[0]:.4g}" if first == last else ends
        parts.append(f"{len(panel.front_points)} of {counted(len(panel.x), 'cell')} are on the front of {name}: {at}")
    return _sentences(parts)


def tradeoff(frame: pd.DataFrame) -> str:
    return generation(frame).text


def course(frame: pd.DataFrame, metrics: Sequence[str] = ("rfid", "usage")) -> str:
    parts = []
    for metric in metrics:
        if metric not in frame or not frame[metric].notna().any():
            continue
        panel = step_panel(frame, metric, varying(frame) or ["sweep"])
        series = [one for one in panel.series if len(one.mean) > 1]
        if not series:
            continue
        falls = sum(one.mean[-1] < one.mean[0] for one in series)
        ends = [one.mean[-1] for one in series]
        steps = f"step {series[0].steps[0]:.0f} to {max(one.steps[-1] for one in series):.0f}"
        parts.append(
            f"From {steps}, {LABELS.get(metric, metric)} falls for {falls} of {counted(len(series), 'setting')} and "
            f"ends at {_between(ends)}"
        )
    return _sentences(parts)


def card(card: ReportCard) -> str:
    fit = card.fit
    return _sentences([fit.formula(), fit.errors_text(3), *(card.findings or ("nothing speaks against it",))])


def curves(curves: pd.DataFrame, quantities: Sequence[str]) -> str:
    parts = []
    for name in quantities:
        known = curves[curves[name].notna()].sort_values("step").groupby("signature")[name]
        first, last = known.first(), known.last()
        parts.append(
            f"{_capital(name.replace('_', ' '))} falls in {int((last < first).sum())} of {counted(len(last), 'run')}, "
            f"in the median from {first.median():.3g} to {last.median():.3g}"
        )
    return _sentences(parts)


def least(rows: pd.DataFrame) -> str:
    """Name the lowest rFID and its cell."""
    row = rows.iloc[int(np.argmin(numbers(rows, "rfid")))]
    place = settings({name: plain(row[name]) for name in varying(rows) if pd.notna(row[name])}, powers=False)
    return f"The least rFID is {row['rfid']:.4g}" + (f", at {place}" if place else "")


def _points(panel: Panel) -> tuple[Array, Array]:
    x = [value for one in panel.series for value in one.x]
    return np.array(x), np.array([value for one in panel.series for value in one.y])


def _trend(what: str, along: str, x: Array, y: Array) -> str:
    if len(np.unique(x)) < 2:
        return f"{what} lies between {y.min():.4g} and {y.max():.4g} at {x[0]:.4g} {along}"
    if np.ptp(y) == 0:
        return f"{what} is {y[0]:.4g} everywhere"
    rank = float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])
    ends = [float(y[x == end].mean()) for end in (x.min(), x.max())]
    verb = "shows no clear trend" if abs(rank) < WEAK else "falls" if rank < 0 else "rises"
    return (
        f"{what} {verb} with {along}: {ends[0]:.4g} at {x.min():.4g}, {ends[1]:.4g} at {x.max():.4g} (rank correlation "
        f"{rank:+.2f}, {counted(len(x), 'run')})"
    )


def _lines(panel: Panel) -> str:
    """Say on how many of a panel's lines the metric falls or rises with the axis."""
    joined = [one for one in panel.series if one.joined]
    what, along = LABELS.get(panel.metric, panel.metric), panel.x_label
    if not joined:
        return f"No two cells differ in {along} alone"
    falls = sum(one.mean_y[-1] < one.mean_y[0] for one in joined)
    rises = sum(one.mean_y[-1] > one.mean_y[0] for one in joined)
    number, verb = (falls, "falls") if falls >= rises else (rises, "rises")
    return f"{_capital(what)} {verb} with {along} on {number} of {counted(len(joined), 'line')}"


def _between(values: Sequence[float]) -> str:
    return span(f"{min(values):.4g}", f"{max(values):.4g}")


def _capital(text: str) -> str:
    return text if text == "rFID" else text[:1].upper() + text[1:]


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(f"{part}." for part in parts if part)
