"""The report as one HTML page: everything inline, nothing fetched, no text from a table taken for markup."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from gsq.analysis.checking.card import ReportCard
from gsq.analysis.fitting.result import interval_text
from gsq.analysis.reporting.markup import (
    Markup,
    exact_text,
    join,
    plain_table,
    scroll_box,
    tag,
    text_cell,
    text_of,
    width_class,
)
from gsq.analysis.reporting.report import Picture, Report
from gsq.config.axes import SYMBOLS
from gsq.sweeps.schema import columns as schema

_HERE = Path(__file__).parent
_MOST_WIDE_ROWS = 2000  # longer tables have the main columns only
_MOST_FAILURES = 50
_ORDER = ("done", "running", "queued", "planned", "pruned", "stopped", "failed")
_DESCRIPTIONS = {column.name: column for column in schema.COLUMNS}


def write_page(report: Report, path: str | Path) -> Path:
    """Write :func:`page` to ``path`` at once or not at all; folders are made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page(report), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def page(report: Report) -> str:
    """The whole document. Its content security policy lets nothing be fetched, and no script run but its own."""
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    sections = [
        ("status", "Status", _status(report)),
        ("table", "Results", _table(report)),
        ("figures", "Figures", _figures(report)),
        ("laws", "Laws", _laws(report)),
        ("pictures", "Reconstructions", _pictures(report)),
        ("training", "Training", _training(report)),
        ("provenance", "Provenance", provenance(report)),
    ]
    sections = [one for one in sections if one[2]]
    links = [tag("a", title, href=f"#{name}") for name, title, _ in sections]
    body = [
        tag(
            "header",
            tag("h1", report.name),
            tag("p", f"Report of a sweep of image tokenizers, made {report.made} by gsq {_version()}.", class_="faint"),
            tag("nav", *links, aria_label="Sections"),
        ),
        tag("main", *(tag("section", tag("h2", title), content, id=name) for name, title, content in sections)),
        Markup(f"<script>{script}</script>"),
    ]
    head = [
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{report.name}: gsq report"),
        Markup(f"<style>{style}</style>"),
    ]
    inner = "\n".join(["<head>", *head, "</head>", "<body>", *body, "</body>"])
    return f'<!DOCTYPE html>\n<html lang="en">\n{inner}\n</html>\n'


def _version() -> str:
    try:
        return metadata.version("gsq")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _status(report: Report) -> Markup:
    total = sum(report.counts.values())
    states = sorted(report.counts, key=lambda state: _ORDER.index(state) if state in _ORDER else len(_ORDER))
    tiles = [(f"{report.counts.get('done', 0)} of {total}", "cells done")]
    if report.best:
        value, place = report.best
        tiles.append((value, "least rFID" + (f": {place}" if place else "")))
    tiles += [
        (card.fit.formula().split("=", 1)[-1].strip(), f"rFID by {card.fit.law.name}") for card in report.cards[:1]
    ]
    if "device_seconds" in report.totals:
        tiles.append((f"{report.totals['device_seconds'] / 3600:.3g} h", "device time, all attempts"))
    if "train_flops" in report.totals:
        tiles.append((f"{report.totals['train_flops']:.3g}", "training FLOPs"))
    bar = [tag("i", class_=state, style=f"flex: {report.counts[state]}", title=state) for state in states]
    counts = [tag("li", tag("span", class_=f"dot {state}"), f"{report.counts[state]} {state}") for state in states]
    parts = [
        tag(
            "div",
            *(tag("div", tag("b", value), tag("span", what), class_="tile") for value, what in tiles),
            class_="tiles",
        ),
        tag("div", *bar, class_="bar", role="img", aria_label=", ".join(f"{report.counts[s]} {s}" for s in states)),
        tag("ul", *counts, class_="counts"),
    ]
    if report.warnings:
        lines = [tag("li", _sentence(warning)) for warning in report.warnings]
        parts.append(tag("div", tag("ul", *lines), class_="warnings", role="note"))
    if len(report.failures):
        shown = report.failures.head(_MOST_FAILURES)
        heads = ("signature", "setting", "failure", "message", "attempts")
        rows = [
            tag(
                "tr",
                *(text_cell(text_of(name, row[name])) for name in heads),
            )
            for _, row in shown.iterrows()
        ]
        more = len(report.failures) - len(shown)
        parts += [
            tag("h3", f"Failed cells: {len(report.failures)}"),
            scroll_box(
                tag("table", tag("thead", tag("tr", *(tag("th", name) for name in heads))), tag("tbody", *rows)),
                "Failed cells",
            ),
            tag("p", f"And {more} more; filter the table below by state=failed.", class_="faint")
            if more
            else Markup(""),
        ]
    return join(parts + _spent(report))


def _sentence(text: str) -> str:
    first = text.split(" ", 1)[0]
    plain = first.isalpha() and first not in _DESCRIPTIONS  # no column or law, whose names stay as they are
    return (text[:1].upper() if plain else text[:1]) + text[1:] + ("" if text.endswith(".") else ".")


def _table(report: Report) -> Markup:
    table, main = report.table, list(report.main)
    others = (
        [str(n) for n in table if n not in main and table[n].notna().any()] if len(table) <= _MOST_WIDE_ROWS else []
    )
    columns = [*main, *others]
    numeric = {
        name
        for name in columns
        if pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name])
    }
    kinds = {
        name: " ".join(k for k in ("n" if name in numeric else "", "more" if name in others else "") if k)
        for name in columns
    }
    heads = []
    for name in columns:
        about = _DESCRIPTIONS.get(name)
        unit = f" ({about.unit})" if about and about.unit else ""
        button = tag(
            "button", name.replace("_", " "), type="button", title=f"{about.description}{unit}" if about else name
        )
        heads.append(
            tag(
                "th",
                button,
                scope="col",
                class_=kinds[name] or None,
                data_k=name,
                data_t="n" if name in numeric else "s",
            )
        )
    rows = []
    for values in zip(*(table[name] for name in columns), strict=True):
        cells = []
        for name, value in zip(columns, values, strict=True):
            shown, exact = text_of(name, value), exact_text(value)
            classes = f"{kinds[name]} {width_class(shown)}".strip()
            cells.append(tag("td", shown, class_=classes or None, data_v=exact if exact != shown else None))
        rows.append(tag("tr", *cells))
    field = tag(
        "input",
        type="search",
        id="filter",
        placeholder="filter: groups=4 rfid<200 V>=2^10 failed",
        aria_label="Filter the rows",
        aria_describedby="why",
        autocapitalize="off",
        autocomplete="off",
        spellcheck="false",
    )
    letters = json.dumps({symbol: name for name, symbol in SYMBOLS.items()})
    box = tag("label", tag("input", type="checkbox", id="all"), f" all {len(columns)} columns", hidden=not others)
    return join(
        [
            tag(
                "div",
                field,
                box,
                tag("span", id="shown", class_="faint", role="status"),
                tag("span", id="why", role="alert"),
                class_="tools",
                id="tools",
                hidden=True,
            ),
            scroll_box(
                tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), id="results", data_letters=letters),
                "Results of all cells",
                "scroll tall",
            ),
            tag(
                "p",
                "Click a head to sort. The filter takes words and comparisons, all of which must hold: "
                "latent dim >= 16, 2 <= G <= 4, V = 2^6|2^10 (either), state != done; "
                f"{', '.join(SYMBOLS.values())} are the paper's letters. The address of the page keeps both. Each run "
                "is shown at its last step; pointing at a head explains the column.",
                class_="faint",
            ),
        ]
    )


def _picture(picture: Picture, *, caption: str = "") -> Markup:
    image = tag("img", src=picture.url, alt=picture.alt or picture.title, loading="lazy")
    return tag("figure", tag("div", image, class_="sheet"), tag("figcaption", caption) if caption else Markup(""))


def _figures(report: Report) -> Markup:
    cards = {f"Report card of {card.fit.law.name}" for card in report.cards}
    parts = []
    for one in report.figures:
        if one.title not in cards:
            parts += [tag("h3", one.title), _picture(one)]
    if report.not_drawn:
        lines = [tag("li", f"{title}: {reason}.") for title, reason in report.not_drawn.items()]
        parts.append(
            tag("details", tag("summary", "Figures that this table cannot carry"), tag("ul", *lines), class_="faint")
        )
    return join(parts)


def _laws(report: Report) -> Markup:
    parts: list[Markup] = []
    drawn = {one.title: one for one in report.figures}
    for card in report.cards:
        parts += [tag("h3", card.fit.law.name), *_card(card)]
        parts.append(_picture(drawn[f"Report card of {card.fit.law.name}"]))
        parts.append(tag("details", tag("summary", "the report card as text"), tag("pre", card.text(), tabindex=0)))
    if report.compared is not None and len(report.compared) > 1:
        parts += [tag("h3", "Laws compared"), plain_table(report.compared, "Laws compared")]
        words = "The least AICc first (k: parameters). loo: error of cells left out; out X: of levels of X left out; "
        words += "largest X: of the largest X, predicted from the others; p: lack of fit, where there are seeds."
        parts.append(tag("p", words, class_="faint"))
    if report.not_fitted:
        named = [r if r.startswith(name) else f"{name}: {r}" for name, r in report.not_fitted.items()]
        lines = [tag("li", f"{one}.") for one in named]
        parts.append(tag("details", tag("summary", "Not fitted"), tag("ul", *lines), open=not report.cards))
    return join(parts)


def _card(card: ReportCard) -> list[Markup]:
    fit = card.fit
    rows = []
    for name, value in fit.parameters.items():
        why = fit.undetermined.get(name)
        note = f"not determined by these data ({why})" if why else "at a bound" if name in fit.at_bound else ""
        rows.append(
            tag(
                "tr",
                tag("td", name),
                tag("td", f"{value:.4g}", class_="n"),
                tag("td", interval_text(fit.intervals[name], " to ")),
                tag("td", note, class_="long"),
            )
        )
    heads = ("parameter", "value", f"{fit.confidence:.0%} interval", "")
    findings = [tag("li", _sentence(one)) for one in card.findings or ("nothing speaks against it",)]
    return [
        tag("p", tag("code", fit.formula())),
        tag("p", _sentence(fit.at_best())),
        scroll_box(
            tag("table", tag("thead", tag("tr", *(tag("th", one) for one in heads))), tag("tbody", *rows)),
            f"Parameters of {fit.law.name}",
        ),
        tag("p", fit.quality(), class_="faint lines"),
        tag("ul", *findings),
    ]


def _pictures(report: Report) -> Markup:
    if not report.pictures:
        return Markup("")
    shown = [
        tag(
            "figure",
            tag("img", src=one.url, alt=one.alt or one.title, loading="lazy"),
            tag("figcaption", f"{one.title} ({one.text})" if one.text else one.title),
        )
        for one in report.pictures
    ]
    words = (
        "The first images of the evaluation, not chosen by anyone. Below the originals, each row is one cell, from the "
        "least rFID to the largest, and each column one image."
    )
    return join([tag("p", words), tag("div", *shown, class_="pictures")])


def _spent(report: Report) -> list[Markup]:
    """Device hours by state and by cell."""
    if report.spent.empty:
        return []
    hours = float(report.spent["device_hours"].sum())
    failed = float(report.spent["failed_hours"].sum()) if "failed_hours" in report.spent else np.nan
    words = f"{hours:.3g} device hours in all: training, evaluation and start-up of all attempts"
    words += "." if np.isnan(failed) else f", {failed:.3g} of them in attempts that failed or were stopped."
    parts = [tag("h3", "Device hours spent"), tag("p", words), plain_table(report.spent, "Device hours by state")]
    if len(report.spent_by_cell):
        cells = report.spent_by_cell.head(_MOST_WIDE_ROWS)
        head = f"Device hours of each cell ({len(report.spent_by_cell)})"
        more = len(report.spent_by_cell) - len(cells)
        note = [tag("p", f"And {more} more, which took less.", class_="faint")] if more else []
        parts.append(tag("details", tag("summary", head), plain_table(cells, "Device hours by cell"), *note))
    return parts


def _training(report: Report) -> Markup:
    return (
        Markup("") if report.curves is None else _picture(report.curves, caption=f"{report.curves.text}, a line each.")
    )


def provenance(report: Report) -> Markup:
    rows = []
    for what, values in report.provenance.items():
        for number, (value, count) in enumerate(values.items()):
            rows.append(
                tag(
                    "tr",
                    tag("td", what if number == 0 else ""),
                    text_cell(value),
                    tag("td", count, class_="n"),
                )
            )
    if not rows:
        return tag("p", "The table does not say how its rows were made.")
    heads = tag("tr", tag("th", "what"), tag("th", "value"), tag("th", "rows", class_="n"))
    return scroll_box(tag("table", tag("thead", heads), tag("tbody", *rows)), "Provenance")
