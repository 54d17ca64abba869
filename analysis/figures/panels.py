"""What the panels of a figure show, computed before anything is drawn (``figures.draw_panel`` draws one).

Tests and notebooks look at these frozen descriptions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures.settings import plain, setting, settings
from gsq.analysis.fitting.result import Fit
from gsq.analysis.tables.published import is_published
from gsq.analysis.tables.remembering import remembered
from gsq.analysis.tables.table import (
    Array,
    measured,
    moved,
    numbers,
    protocol_counts,
    require_columns,
    single,
    varying,
)
from gsq.config.axes import LABELS as AXIS_LABELS
from gsq.config.axes import PANELS, TOKENIZER

LABELS = {
    **AXIS_LABELS,
    "effective_bits": "effective bits a token",
    "step": "optimiser step",
    "train_flops": "training FLOPs",
    "device_seconds": "device seconds",
    "parameters": "parameters",
    "images_seen": "training images seen",
    "rfid": "rFID",
    "usage": "codebook usage",
    "perplexity": "codebook perplexity",
    "psnr_db": "PSNR (dB)",
}
MOST_WITH_CURVES = 100
# Stands for the protocols of published numbers, which are drawn together though each source has its own.
SOURCE = "source_protocol"
Floats = tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """A law along a panel's x axis, with its band (NaN without a bootstrap)."""

    law: str
    formula: str
    """The law with its fitted numbers."""
    x: Floats
    central: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Series:
    """The points of one fixed setting of all other axes."""

    label: str
    """For instance "f=8, D=16": the other axes that differ within the panel."""
    fixed: dict[str, float | str]
    """Those axes and their values."""
    x: Floats
    """One value for each measured run."""
    y: Floats
    mean_x: Floats
    """Distinct x, ascending."""
    mean_y: Floats
    """Mean over seeds at each of ``mean_x``."""
    curves: tuple[Curve, ...] = ()

    @property
    def joined(self) -> bool:
        """Whether there are at least two x to join by a line."""
        return len(self.mean_x) > 1


@dataclass(frozen=True)
class Overlay:
    """Points of another table beside those of a panel: drawn, never fitted."""

    label: str
    """Where they are from, such as "paper: fig4, table13"."""
    protocol: str
    """Features, images and protocol that they were measured by."""
    own_protocol: str
    """The same of the panel's own points."""
    series: tuple[Series, ...]

    @property
    def comparable(self) -> bool:
        """Whether both have the same protocol, so that heights can be compared."""
        return self.protocol == self.own_protocol


@dataclass(frozen=True)
class Panel:
    """One metric, by default rFID, against one column."""

    column: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    curves: tuple[Curve, ...] = ()
    """Laws that hold for all series at once (rate panel)."""
    metric: str = "rfid"
    overlay: Overlay | None = None

    @property
    def x_values(self) -> Floats:
        """Distinct x of all points, ascending."""
        series = (*self.series, *(self.overlay.series if self.overlay else ()))
        return tuple(sorted({x for one in series for x in one.mean_x}))


def reference_rows(frame: pd.DataFrame, metric: str = "rfid") -> pd.DataFrame:
    """The rows of a reference table to draw beside one's own, one for each setting (the first).

    Takes the protocol with the most rows (of published numbers: the resolution), and only rows whose config keys all
    have columns. Raises AnalysisError like :func:`measured`.
    """
    published = is_published(frame)
    if published:
        # Each source has a protocol of its own, and no heights are compared; but sizes are not mixed.
        frame = frame.assign(protocol="several", **{SOURCE: frame["protocol"]})
        frame = frame[frame["resolution"] == frame["resolution"].mode().iloc[0]]
    counts = protocol_counts(frame, metric)
    if len(counts) > 1:
        name = "protocol" if "protocol" in frame else "features"
        frame = frame[frame[name] == next(iter(counts))]
    rows, _ = measured(frame, metric)
    if "other_axes" in rows and rows["other_axes"].isna().any():
        rows = rows[rows["other_axes"].isna()]
    axes = [name for name in (*TOKENIZER, "depth", "levels", *(["model"] if published else [])) if name in rows]
    return rows.drop_duplicates(axes).reset_index(drop=True) if axes else rows


def protocol_text(rows: pd.DataFrame) -> str:
    """ "features, N images, protocol hash", as far as the table names them."""
    features, images, protocol = (single(rows, name) for name in ("features", "num_images", "protocol"))
    known = [features] if features is not None else []
    known += [f"{int(images):,} images"] if images is not None else []
    known += [f"protocol {protocol}"] if protocol is not None else []
    return ", ".join(known) or "protocol not named"


def _overlay(
    rows: pd.DataFrame, reference: pd.DataFrame | None, panel: Callable[[pd.DataFrame], Panel]
) -> Overlay | None:
    """``reference`` in the same panel; None without one, or where it has nothing to show there."""
    if reference is None:
        return None
    try:
        theirs = reference_rows(reference)
        series = panel(theirs).series
    except AnalysisError:
        return None
    if is_published(reference):
        papers = theirs["address"].nunique()
        label = f"published: {len(theirs)} models of {papers} sources at {theirs['resolution'].iloc[0]} pixels"
        return Overlay(label, "each by its source's protocol", protocol_text(rows), series)
    names = list(dict.fromkeys(theirs["sweep"].dropna())) if "sweep" in theirs else []
    paper = "protocol" in theirs and theirs["protocol"].astype(str).str.startswith("gsq-paper").all()
    label = f"{'paper' if paper else 'reference'}: {', '.join(names)}" if names else "reference"
    return Overlay(label, protocol_text(theirs), protocol_text(rows), series)


def _having(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows with a value: models trained elsewhere may have none."""
    require_columns(rows, column)
    if rows[column].isna().all():
        raise AnalysisError(f"no measured row has a {column}: nothing to plot")
    return rows[rows[column].notna()].reset_index(drop=True)


@remembered
def rate_panel(
    frame: pd.DataFrame, fits: Sequence[Fit] = (), reference: pd.DataFrame | None = None, metric: str = "rfid"
) -> Panel:
    """``metric`` against bits_per_pixel: one series for each downsample (or, where that is constant, for the next
    axis that varies), and the curves of the laws that predict it from bits_per_pixel alone.

    ``reference``: another table, whose :func:`reference_rows` become the overlay. Raises AnalysisError like
    :func:`measured`."""
    rows = _having(measured(frame, metric)[0], "bits_per_pixel")
    by = next(iter(varying(rows, TOKENIZER)), None)
    series = []
    for value, part in rows.groupby(by, sort=True, dropna=False) if by else [("", rows)]:
        fixed = {by: plain(value)} if by else {}
        series.append(_series(part, "bits_per_pixel", fixed, metric))
    rate = numbers(rows, "bits_per_pixel")
    low, high = rate.min(), rate.max()
    overlay = _overlay(rows, reference, lambda theirs: rate_panel(theirs, metric=metric))
    shown = y_label(rows, metric)
    panel = Panel("bits_per_pixel", LABELS["bits_per_pixel"], shown, tuple(series), metric=metric, overlay=overlay)
    if low == high:
        return panel
    grid = np.geomspace(low / 1.1, high * 1.1, 120)
    curves = [
        replace(_curve(fit, grid, *fit.predict(pd.DataFrame({"bits_per_pixel": grid} | levels))), law=named)
        for fit in fits
        if fit.target == metric and fit.law.columns == ("bits_per_pixel",)
        for levels, named in _level_curves(fit)
    ]
    return replace(panel, curves=tuple(curves))


def _level_curves(fit: Fit) -> list[tuple[dict[str, str], str]]:
    """The levels of each curve of a law, {} where it has none, and the curve's name."""
    found = []
    for values in itertools.product(*fit.law.levels.values()):
        levels = dict(zip(fit.law.levels, values, strict=True))
        found.append((levels, ", ".join(f"{name} {value}" for name, value in levels.items()) or fit.law.name))
    return found


@remembered
def axis_panel(
    frame: pd.DataFrame,
    column: str,
    fits: Sequence[Fit] = (),
    metric: str = "rfid",
    reference: pd.DataFrame | None = None,
) -> Panel:
    """``metric`` against one tokenizer axis: a series for each fixed value of all other axes, each with the curves of
    the laws that predict that metric (of at most 100 series: more curves and bands hide each other).

    ``column``: codebook_size, latent_dim, groups, downsample, or group_dim (latent_dim fixed, groups moving with it).
    ``reference``: as for :func:`rate_panel`. Raises AnalysisError where the column is constant.
    """
    if column not in (*PANELS, "group_dim"):
        raise AnalysisError(f"no panel for {column!r}; columns: {', '.join(PANELS)}, group_dim")
    rows = _having(measured(frame, metric)[0], column)
    if rows[column].nunique() < 2:
        raise AnalysisError(f"{column} takes one value in the measured rows ({rows[column].iloc[0]}): nothing to plot")
    others = [name for name in varying(rows) if name != column and not (column == "group_dim" and name == "groups")]
    order = [name for name in TOKENIZER if name in others]
    others = order + [name for name in others if name not in order]
    # Published numbers are joined where they are one model's, of one source.
    others += [name for name in ("model", SOURCE) if SOURCE in rows and name not in others]
    groups = list(rows.groupby(others, dropna=False, sort=True)) if others else [((), rows)]
    series = []
    for values, part in groups:
        fixed = {
            name: plain(value) for name, value in zip(others, np.atleast_1d(np.array(values, object)), strict=True)
        }
        series.append(_series(part, column, fixed, metric))
    drawn = [fit for fit in fits if fit.target == metric] if len(groups) <= MOST_WITH_CURVES else []
    series = _with_curves(series, rows, [part.index[0] for _, part in groups], column, drawn)
    overlay = _overlay(rows, reference, lambda theirs: axis_panel(theirs, column, metric=metric))
    return Panel(column, LABELS[column], y_label(rows, metric), _relabelled(series), metric=metric, overlay=overlay)


@dataclass(frozen=True)
class StepSeries:
    """The course of one metric over training, for all seeds of one setting."""

    label: str
    steps: Floats
    """Distinct steps, ascending."""
    mean: Floats
    """Mean over seeds at each of ``steps``."""
    runs: tuple[tuple[Floats, Floats], ...]
    """Steps and values of each run."""


@dataclass(frozen=True)
class StepPanel:
    """One metric against the optimiser step."""

    metric: str
    y_label: str
    series: tuple[StepSeries, ...]


def step_panel(frame: pd.DataFrame, metric: str, by: str | Sequence[str]) -> StepPanel:
    """``metric`` of every evaluation against its step: one series for each combination of the columns ``by``, in
    order of appearance. Raises AnalysisError where a column is missing, nothing was measured, or for rfid under
    several protocols."""
    by = [by] if isinstance(by, str) else list(by)
    require_columns(frame, metric, "step", "signature", *by)
    rows = frame[frame[metric].notna() & frame["step"].notna()]
    if not len(rows):
        raise AnalysisError(f"no row has a {metric}: nothing to plot; gsq status says what the runs are doing")
    if len(protocol_counts(rows)) > 1:
        raise AnalysisError("the rows are of several protocols; choose one: load_results(path, protocol=...)")
    series = []
    for values, part in rows.groupby(by, sort=False, dropna=False):
        named = {name.split(".")[-1]: plain(value) for name, value in zip(by, values, strict=True)}
        # A word alone needs no name.
        alone = len(named) == 1 and "other_axes" not in named and isinstance(next(iter(named.values())), str)
        label = ", ".join(str(value) if alone else setting(name, value) for name, value in named.items())
        means = part.groupby("step")[metric].mean()
        runs = [
            (_floats(numbers(run, "step")), _floats(numbers(run, metric)))
            for _, run in part.sort_values("step").groupby("signature")
        ]
        series.append(StepSeries(label, _floats(means.index.to_numpy()), _floats(means.to_numpy()), tuple(runs)))
    return StepPanel(metric, y_label(rows, metric), tuple(series))


def y_label(rows: pd.DataFrame, metric: str = "rfid") -> str:
    """ "rFID (features, N images)", as far as the table names them; of another metric its name."""
    if metric != "rfid":
        return LABELS.get(metric, metric)
    features, images = single(rows, "features"), single(rows, "num_images")
    known = [features] if features is not None else []
    known += [f"{int(images):,} images"] if images is not None else []
    return f"rFID ({', '.join(known)})" if known else "rFID"


def _series(part: pd.DataFrame, column: str, fixed: dict[str, float | str], metric: str) -> Series:
    x, y = numbers(part, column), numbers(part, metric)
    distinct = np.unique(x)
    means = [float(y[x == value].mean()) for value in distinct]
    return Series(settings(fixed), fixed, _floats(x), _floats(y), _floats(distinct), tuple(means), ())


def _with_curves(
    series: list[Series], rows: pd.DataFrame, firsts: Sequence[int], column: str, fits: Sequence[Fit], points: int = 60
) -> list[Series]:
    """The ``series`` with the curves of the laws over ``column``, all else as in the first row of each; predicted at
    once, since a table takes longer to make than to fill."""
    joined = [i for i, one in enumerate(series) if one.joined]
    if not fits or not joined:
        return series
    grids = {i: np.geomspace(series[i].mean_x[0], series[i].mean_x[-1], points) for i in joined}
    reads = [name for fit in fits for name in fit.law.reads]
    every = {column: np.concatenate(list(grids.values()))}
    where = moved(rows, np.repeat([firsts[i] for i in joined], points), reads, **every)
    predicted = [(fit, fit.predict(where)) for fit in fits if all(name in where for name in fit.law.columns)]
    found = list(series)
    for start, i in zip(range(0, len(where), points), joined, strict=True):
        here = slice(start, start + points)
        curves = [_curve(fit, grids[i], *(part[here] for part in parts)) for fit, parts in predicted]
        found[i] = replace(series[i], curves=tuple(curves))
    return found


def _relabelled(series: list[Series]) -> tuple[Series, ...]:
    """Labels with only the axes that differ between the joined series: the single points need none."""
    joined = [one for one in series if one.joined]
    names = [n for n in (series[0].fixed if series else {}) if len({one.fixed[n] for one in joined}) > 1]
    out = []
    for one in series:
        label = settings({name: one.fixed[name] for name in names})
        out.append(replace(one, label=label))
    return tuple(out)


def _curve(fit: Fit, grid: Array, central: Array, low: Array, high: Array) -> Curve:
    return Curve(fit.law.name, fit.formula(), _floats(grid), _floats(central), _floats(low), _floats(high))


def _floats(values: Array) -> Floats:
    return tuple(float(value) for value in values)
