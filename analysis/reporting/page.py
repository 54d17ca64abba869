"""The report as one HTML page: everything inline, nothing fetched, no text from a table taken for markup."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gsq.analysis.fitting.result import interval_text
from gsq.analysis.reporting.report import Report
from gsq.config.axes import SYMBOLS
from gsq.files import write_text
from gsq.sweeps.schema import columns as schema

_HERE = Path(__file__).parent
_MOST_WIDE_ROWS = 2000  # longer tables have the main columns only
_MOST_FAILURES = 50
_ORDER = ("done", "running", "queued", "planned", "pruned", "stopped", "failed")
_DESCRIPTIONS = {column.name: column for column in schema.COLUMNS}
_FORMATS = {
    "device_hours": ".3g",
    "failed_hours": ".3g",
    "psnr_db": ".2f",
    "usage": ".3f",
    "perplexity": ".1f",
    "device_seconds": ".0f",
    "ssim": ".3f",
}


def write_page(report: Report, path: str | Path) -> Path:
    """Write :func:`page` to ``path`` at once or not at all; folders are made. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(report))
    return path


def page(report: Report) -> str:
    """The whole document. Its content security policy lets nothing be fetched, and no script run but its own."""
    script, style = ((_HERE / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    pictures = {one.title: one for one in report.figures}
    cards = [(card, pictures.pop(f"Report card of {card.fit.law.name}")) for card in report.cards]
    known = [state for state in _ORDER if state in report.counts]
    columns = _columns(report)
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            version=_version(),
            script=Markup(script),
            style=Markup(style),
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            tiles=_tiles(report),
            states=[*known, *(state for state in report.counts if state not in known)],
            failures=report.failures.head(_MOST_FAILURES),
            spent=_spent(report),
            spent_by_cell=report.spent_by_cell.head(_MOST_WIDE_ROWS),
            columns=columns,
            others=len(columns) > len(report.main),
            letters=json.dumps({symbol: name for name, symbol in SYMBOLS.items()}),
            symbols=SYMBOLS.values(),
            drawn=pictures.values(),
            cards=cards,
        )
    )


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "exact": exact_text,
        "interval": lambda pair: interval_text(pair, " to "),
        "numeric": _numeric,
        "rows": _rows,
        "sentence": _sentence,
        "shown": text_of,
        "spaced": lambda name: str(name).replace("_", " "),
        "width": _width_class,
    }
    return made


def _version() -> str:
    try:
        return metadata.version("gsq")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _tiles(report: Report) -> list[tuple[str, str]]:
    """The numbers at the head of the page, each with what it is."""
    tiles = [(f"{report.counts.get('done', 0)} of {sum(report.counts.values())}", "cells done")]
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
    return tiles


def _spent(report: Report) -> str:
    """Device hours in a sentence; "" where none are known."""
    if report.spent.empty:
        return ""
    hours = float(report.spent["device_hours"].sum())
    failed = float(report.spent["failed_hours"].sum()) if "failed_hours" in report.spent else np.nan
    words = f"{hours:.3g} device hours in all: training, evaluation and start-up of all attempts"
    return words + ("." if np.isnan(failed) else f", {failed:.3g} of them in attempts that failed or were stopped.")


def _columns(report: Report) -> dict[str, dict[str, object]]:
    """The columns of the results table: those shown first, then the others, where the table is not too long."""
    table, main = report.table, report.main
    wide = len(table) <= _MOST_WIDE_ROWS
    others = [str(name) for name in table if wide and name not in main and table[name].notna().any()]
    found: dict[str, dict[str, object]] = {}
    for name in (*main, *others):
        about = _DESCRIPTIONS.get(name)
        unit = f" ({about.unit})" if about and about.unit else ""
        numeric = pd.api.types.is_numeric_dtype(table[name]) and not pd.api.types.is_bool_dtype(table[name])
        found[name] = {
            "numeric": numeric,
            "kind": " ".join(["n"] * numeric + ["more"] * (name in others)),
            "title": f"{about.description}{unit}" if about else name,
        }
    return found


def _numeric(frame: pd.DataFrame) -> set[str]:
    return {str(name) for name in frame if pd.api.types.is_numeric_dtype(frame[name])}


def _rows(frame: pd.DataFrame, names: Iterable[str]) -> Iterator[list[tuple[str, object]]]:
    """The cells of each row, with the names of their columns."""
    names = list(names)
    for values in zip(*(frame[name] for name in names), strict=True):
        yield list(zip(names, values, strict=True))


def _sentence(text: str) -> str:
    first = text.split(" ", 1)[0]
    plain = first.isalpha() and first not in _DESCRIPTIONS  # no column or law, whose names stay as they are
    return (text[:1].upper() if plain else text[:1]) + text[1:] + ("" if text.endswith(".") else ".")


def _width_class(text: str) -> str:
    """The class of a cell of a table: long text gets a wide column, so that its row stays low."""
    return "longer" if len(text) > 100 else "long" if len(text) > 40 else ""


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def text_of(value: object, name: str = "") -> str:
    """A value of column ``name`` to read."""
    if _missing(value):
        return ""
    if isinstance(value, np.ndarray | list | tuple):
        return ", ".join(text_of(one, name.removesuffix("_per_group")) for one in value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return format(float(value), _FORMATS.get(name, ".4g"))
    return str(value)


def exact_text(value: object) -> str:
    """A value to sort and filter by; a number with all its digits."""
    if isinstance(value, float | np.floating):
        return "" if _missing(value) else repr(float(value))
    return text_of(value)
