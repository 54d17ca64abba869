"""The report of a sweep: what its table says, computed here (``page`` makes one HTML file of it).

What is only in run folders (training curves, pictures) comes in through :class:`RunFiles`, for this room knows no runs.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gsq.analysis.checking.card import ReportCard, report_card
from gsq.analysis.checking.compare import compare_laws
from gsq.analysis.errors import AnalysisError
from gsq.analysis.figures import reconstructions as pictures
from gsq.analysis.figures import scaling as figures
from gsq.analysis.figures import scatter
from gsq.analysis.figures.card import card_figure
from gsq.analysis.figures.contours import contour_figure
from gsq.analysis.figures.curves import course_figure, curve_figure
from gsq.analysis.figures.settings import plain, settings
from gsq.analysis.figures.style import style, write
from gsq.analysis.figures.tradeoff import tradeoff_figure
from gsq.analysis.fitting.fit import fit_determined
from gsq.analysis.fitting.options import Options
from gsq.analysis.fitting.result import Fit
from gsq.analysis.laws.named import DEFAULT_LAWS, Law, get_law
from gsq.analysis.reporting import findings
from gsq.analysis.reporting.provenance import mixtures, provenance
from gsq.analysis.tables.remembering import remembering
from gsq.analysis.tables.spending import cell_states, spent_by_cell, spent_by_state
from gsq.analysis.tables.table import (
    as_asked,
    is_results,
    measured,
    numbers,
    protocol_counts,
    select_protocol,
    varying,
    with_derived,
)
from gsq.sweeps.schema import columns as schema
from gsq.words import counted

_MOST_CURVES = 48
_PICTURE_WIDTH = 1600  # pixels; wider ones are made smaller
_PICTURE_BYTES = 400_000
_MAIN = (
    "bits_per_pixel",
    "rfid",
    "gfid",
    "prior_bits_per_pixel",
    "probe",
    "kid",
    "inception_score",
    "lpips",
    "psnr_db",
    "ssim",
    "usage",
    "perplexity",
)
_LAST = ("parameters", "train_flops", "device_seconds", "state", "failure", "message", "signature")


class RunFiles(Protocol):
    """What run folders hold and tables do not; each method takes the signature of a run."""

    def curve(self, signature: str) -> list[dict[str, float]]:
        """Each logged step: "step" and the quantities logged there. Empty where there is no such run."""

    def picture(self, signature: str) -> Path | None:
        """PNG with originals above reconstructions."""


@dataclass(frozen=True)
class Picture:
    """A picture to show: SVG, PNG or JPEG."""

    title: str
    kind: str
    data: bytes
    text: str = ""
    alt: str = ""
    """Alternative text, for readers who cannot see it."""

    @property
    def url(self) -> str:
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    name: str
    made: str
    """Date and time, UTC."""
    counts: dict[str, int]
    """Cells by state."""
    failures: pd.DataFrame
    """A row for each failed cell: signature, setting, failure, message, attempts."""
    warnings: tuple[str, ...]
    table: pd.DataFrame
    """A row for each cell and protocol, of its last step."""
    main: tuple[str, ...]
    """The columns of ``table`` that are shown first."""
    figures: tuple[Picture, ...]
    not_drawn: dict[str, str]
    """Why a figure is missing, by title."""
    cards: tuple[ReportCard, ...]
    not_fitted: dict[str, str]
    """Why a law was not fitted, by name."""
    compared: pd.DataFrame | None
    """Laws, the one with the least AICc first."""
    best: tuple[str, str] | None
    """The least rFID and its cell, in words; None where nothing was measured."""
    curves: Picture | None
    pictures: tuple[Picture, ...]
    """Originals (``text`` is empty), each followed by what cells made of them (``text``: the signature)."""
    spent: pd.DataFrame
    """Device hours by state: cells, attempts, device_hours and, of these, failed_hours in attempts that failed or were
    stopped."""
    spent_by_cell: pd.DataFrame
    """The same for each cell that was tried, the most expensive first."""
    provenance: dict[str, dict[str, int]]
    """For protocols, code, versions, devices and data: the number of runs by value."""
    totals: dict[str, float]
    """device_seconds, train_flops, images_seen: sums over runs, where known."""


def make_report(
    frame: pd.DataFrame,
    name: str,
    files: RunFiles | None = None,
    *,
    protocol: str | None = None,
    laws: Sequence[str | Law] | None = None,
    options: Options | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Collect everything that the page says about a results table, whatever state its cells are in.

    ``protocol``: the one of the figures and laws, by default the one that the sweep's file asks for, else that of the
    most rows; ``laws``: names or formulas, by default those of ``gsq fit``; ``notes``: warnings that are known already.
    Raises AnalysisError where the table is empty or ``protocol`` is none of its.
    """
    with remembering():
        return _made(frame, name, files, protocol, laws, options or Options(), notes)


def _made(
    frame: pd.DataFrame,
    name: str,
    files: RunFiles | None,
    protocol: str | None,
    laws: Sequence[str | Law] | None,
    options: Options,
    notes: Sequence[str],
) -> Report:
    if frame.empty:
        raise AnalysisError("the table has no rows. Gather a sweep first: gsq gather SWEEP")
    warnings = list(notes)
    table = _cells(frame)
    chosen, counts = frame, protocol_counts(frame)
    if protocol is not None:
        chosen = select_protocol(frame, protocol)
    elif len(counts) > 1 and "protocol" in frame:
        first = next(iter(protocol_counts(as_asked(frame))))
        chosen = select_protocol(frame, first)
        listed = ", ".join(f"{key} ({counted(count, 'row')})" for key, count in counts.items())
        warnings.append(
            f"the table has {len(counts)} evaluation protocols, {listed}; figures and laws use only {first} "
            "(--protocol chooses another)"
        )
    fits, not_fitted, excluded = _fit(chosen, laws, options)
    warnings += [excluded] if excluded else []
    for fit in fits:
        warnings += [one for one in fit.warnings if one not in warnings]
    warnings += [] if any("mixes runs" in note for note in notes) else mixtures(table)
    cards = tuple(report_card(fit) for fit in fits)
    shown, not_drawn = _figures(chosen, cards)
    states = table.drop_duplicates("signature") if is_results(table) else table
    return Report(
        name=name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        counts=dict(Counter(cell_states(states))),
        failures=_failures(states),
        warnings=tuple(warnings),
        table=table,
        main=_main_columns(table),
        figures=shown,
        not_drawn=not_drawn,
        cards=cards,
        not_fitted=not_fitted,
        compared=_compared(chosen, options) if laws is None and fits else None,
        best=_best(chosen),
        curves=_curves(states, files) if files else None,
        pictures=_pictures(chosen, files) if files else (),
        spent=spent_by_state(states),
        spent_by_cell=spent_by_cell(states, [_setting(row, states) for _, row in states.iterrows()]),
        provenance=provenance(table),
        totals={
            total: float(states[total].sum())
            for total in ("device_seconds", "train_flops", "images_seen")
            if total in states and states[total].notna().any()
        },
    )


def _cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The last step of each cell and protocol, derived axes added."""
    cells = with_derived(frame)
    keys = [name for name in ("sweep", "signature", "protocol", "resolution", "probe_protocol") if name in cells]
    if is_results(cells) and "step" in cells:
        ordered = cells.assign(_step=pd.to_numeric(cells["step"]).fillna(-1)).sort_values("_step", kind="stable")
        cells = ordered.drop_duplicates(keys, keep="last").drop(columns="_step").sort_index()
    return cells.reset_index(drop=True)


def _main_columns(table: pd.DataFrame) -> tuple[str, ...]:
    """Axes that vary, then metrics and costs; all of a small table."""
    if len(table.columns) <= 12:
        return tuple(str(name) for name in table)
    names = [*varying(table), *varying(table, ("sweep", "seed", "protocol", "resolution")), *_MAIN, *_LAST]
    keys = [str(name) for name in table if "." in str(name)]  # swept keys without a column of the schema
    names = [*(n for n in names if n != "other_axes" or not keys), *keys]
    axes = {column.name for column in schema.COLUMNS if column.role == "axis"} | set(keys)
    names = sorted(dict.fromkeys(names), key=lambda name: name not in axes)
    return tuple(name for name in names if name in table and table[name].notna().any())


def _failures(cells: pd.DataFrame) -> pd.DataFrame:
    columns = ["signature", "setting", "failure", "message", "attempts"]
    failed = cells[np.array(cell_states(cells)) == "failed"]
    failed = failed.assign(setting=[_setting(row, cells) for _, row in failed.iterrows()])
    return failed.reindex(columns=columns).reset_index(drop=True)


def _setting(row: pd.Series, among: pd.DataFrame) -> str:
    """The axes that vary, and their values in a row, without mathematics."""
    names = [*varying(among), *varying(among, ("seed",))]
    return settings({name: plain(row[name]) for name in names if pd.notna(row[name])}, powers=False)


def _best(frame: pd.DataFrame) -> tuple[str, str] | None:
    try:
        rows, _ = measured(frame)
    except AnalysisError:
        return None
    row = rows.iloc[int(np.argmin(numbers(rows, "rfid")))]
    return f"{row['rfid']:.4g}", _setting(row, rows)


def _fit(
    frame: pd.DataFrame, laws: Sequence[str | Law] | None, options: Options
) -> tuple[list[Fit], dict[str, str], str]:
    """Fit the laws; also returns why others were not fitted, and what all of them leave out."""
    fits: list[Fit] = []
    reasons: dict[str, str] = {}
    left_out = ""
    for law in [get_law(one, [str(name) for name in frame.columns]) for one in laws or DEFAULT_LAWS]:
        try:
            rows, excluded = law.rows(frame)
            left_out = left_out or excluded.text
            fits.append(fit_determined(rows, excluded, law, options))
        except AnalysisError as error:
            reasons[law.name] = str(error)
    return fits, reasons, left_out


def _compared(frame: pd.DataFrame, options: Options) -> pd.DataFrame | None:
    try:
        return compare_laws(frame, None, replace(options, bootstrap=0)).table
    except AnalysisError:
        return None


def _figures(frame: pd.DataFrame, cards: Sequence[ReportCard]) -> tuple[tuple[Picture, ...], dict[str, str]]:
    """Draw every figure that the table can carry, and say why the others are missing."""
    fits = [card.fit for card in cards]

    def first() -> Fit:
        if not fits:
            raise AnalysisError("no law was fitted")
        return fits[0]

    wanted: dict[str, tuple[Callable[[], Figure], Callable[[], str]]] = {
        "Scaling": (lambda: figures.scaling_figure(frame, fits), lambda: findings.scaling(frame, fits)),
        "Collapse on bits per pixel": (lambda: scatter.collapse_figure(frame), lambda: findings.collapse(frame)),
        "Iso-rFID contours": (lambda: contour_figure(first()), lambda: findings.contours(first())),
        "Group decomposition": (lambda: figures.group_figure(frame, fits), lambda: findings.groups(frame)),
        "Codebook usage": (lambda: figures.usage_figure(frame), lambda: findings.usage(frame)),
        "Pareto front": (lambda: scatter.pareto_figure(frame), lambda: findings.pareto(frame)),
        "Reconstruction and generation": (lambda: tradeoff_figure(frame), lambda: findings.tradeoff(frame)),
        "Evaluations over training": (lambda: course_figure(frame), lambda: findings.course(frame)),
    }
    drawn, reasons = [], {}
    for title, (draw, finding) in wanted.items():
        try:
            drawn.append(replace(_svg(title, draw), alt=finding()))
        except AnalysisError as error:
            reasons[title] = str(error)
    for card in cards:
        picture = _svg(f"Report card of {card.fit.law.name}", lambda card=card: card_figure(card))  # type: ignore[misc]
        drawn.append(replace(picture, alt=findings.card(card)))
    return tuple(drawn), reasons


def _svg(title: str, draw: Callable[[], Figure]) -> Picture:
    """Draw a figure as SVG with letters as shapes, so that the page looks the same whatever fonts are installed."""
    file, figure = io.BytesIO(), draw()
    with style(), mpl.rc_context({"svg.fonttype": "path"}):
        write(figure, file, "svg")
    return Picture(title, "svg+xml", file.getvalue())


def _curves(cells: pd.DataFrame, files: RunFiles) -> Picture | None:
    """Draw training curves of at most 48 runs, spaced evenly from the best to the worst."""
    if not is_results(cells):
        return None
    ranked = cells.sort_values("rfid") if "rfid" in cells else cells
    parts = []
    for signature in pictures.spread(list(ranked["signature"].dropna()), _MOST_CURVES):
        lines = files.curve(signature)
        if len(lines) > 1:
            parts.append(pd.DataFrame(lines).assign(signature=signature))
    if not parts:
        return None
    curves = pd.concat(parts, ignore_index=True)
    names = [n for n in ("loss", "mse", "perceptual") if n in curves and curves[n].notna().any()]
    if not names:
        return None
    picture = _svg("Training curves", lambda: curve_figure(curves, cells, names))
    return replace(picture, text=f"{len(parts)} of {counted(len(cells), 'run')}", alt=findings.curves(curves, names))


def _pictures(frame: pd.DataFrame, files: RunFiles) -> tuple[Picture, ...]:
    """Show reconstructions of the same images by at most eight cells, from the lowest rFID to the highest, below the
    originals."""
    if not is_results(frame):
        return ()
    try:
        found: dict[str, Path] = {}
        for signature in frame["signature"].dropna().unique() if "signature" in frame else ():
            path = files.picture(signature)
            if path is not None:
                found[signature] = path
        chosen = pictures.chosen_cells(frame, found)
    except AnalysisError:
        return ()
    entries, origins = [], []
    for title, signature in chosen:
        with suppress(AnalysisError):  # a picture that cannot be read is left out
            entries.append((title, pictures.read_picture(title, found[signature])))
            origins.append(signature)
    shown = []
    for sheet in pictures.sheets(entries):
        titles = "; ".join(strip.title for strip in sheet.strips)
        if sheet.originals is not None:
            shown.append(_raster("originals", sheet.originals, "", f"the originals, to compare with: {titles}"))
        for strip in sheet.strips:
            signature = origins[strip.entry]
            alt = f"the same images as reconstructed by the cell with {strip.title}"
            if sheet.originals is None:
                alt = f"originals and reconstructions of the cell with {strip.title}"
            shown.append(_raster(strip.title, strip.pixels, signature, alt))
    return tuple(shown)


def _raster(title: str, pixels: pictures.Pixels, signature: str, alt: str) -> Picture:
    """A PNG, or a JPEG of at most 1,600 pixels in width where that would be large."""
    from PIL import Image

    image, file = Image.fromarray(pixels), io.BytesIO()
    image.save(file, "PNG", optimize=True)
    if image.width <= _PICTURE_WIDTH and file.tell() <= _PICTURE_BYTES:
        return Picture(title, "png", file.getvalue(), signature, alt)
    image.thumbnail((_PICTURE_WIDTH, 4 * _PICTURE_WIDTH))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return Picture(title, "jpeg", file.getvalue(), signature, alt)
