"""A results table as a paper prints it: a row for each configuration, mean and standard deviation over its seeds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.table import (
    configuration_ids,
    is_results,
    labels,
    measured,
    numbers,
    require_columns,
    varying,
    with_derived,
)
from gsq.config.axes import BY_NAME as AXES
from gsq.config.axes import POWERS
from gsq.sweeps.schema import columns as schema
from gsq.words import counted

Format = Literal["latex", "csv", "markdown"]
FORMATS: tuple[Format, ...] = ("latex", "csv", "markdown")
DEFAULT_VALUES = ("rfid", "psnr_db", "ssim", "lpips", "usage")
"""The columns of values that are exported by default, of those that the table has measured."""
LESS = frozenset({"rfid", "kid", "lpips", "mse", "dead_rows"})
MORE = frozenset({"inception_score", "psnr_db", "ssim", "usage", "perplexity", "effective_bits"})
NAMES = {
    "rfid": "rFID",
    "kid": "KID",
    "lpips": "LPIPS",
    "psnr_db": "PSNR",
    "ssim": "SSIM",
    "mse": "MSE",
    "train_flops": "training cost",
    "device_seconds": "device time",
    "peak_memory_bytes": "memory",
}


@dataclass(frozen=True)
class ExportColumn:
    """One column. A column of keys has its printed values in ``text`` and no ``spread``."""

    name: str
    unit: str
    text: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    """Mean over the rows of each configuration; NaN where none has a value."""
    spread: tuple[float, ...] = ()
    """Standard deviation of these rows (of a sample, n - 1); NaN for a single one."""
    best: frozenset[int] = frozenset()
    """Rows that no other row beats, at the printed precision."""

    @property
    def head(self) -> str:
        """Its name with the unit in brackets."""
        name = NAMES.get(self.name, self.name.replace("_", " "))
        return f"{name} [{self.unit}]" if self.unit and not name.endswith(self.unit) else name


@dataclass(frozen=True)
class Export:
    """A table to print, as :func:`export_table` makes it."""

    columns: tuple[ExportColumn, ...]
    counts: tuple[int, ...]
    """Rows of the results table behind each printed row: runs of one configuration."""
    note: str
    """How to read it: what is averaged, what is bold, and the evaluation protocol."""
    left_out: str
    """Which cells have no value, and which runs have none of a further column, in words; "" if none."""

    def text(self, form: Format) -> str:
        """The table as LaTeX (booktabs), CSV or Markdown, with a final line break. CSV has full precision, columns for
        the mean and the standard deviation, and the number of runs; the others round, and set the best value bold.

        Raises AnalysisError for another format."""
        if form not in FORMATS:
            raise AnalysisError(f"format {form!r} is not one of {', '.join(FORMATS)}")
        return {"latex": self._latex, "csv": self._csv, "markdown": self._markdown}[form]()

    def _cells(self, form: Format) -> list[list[str]]:
        """Heads and rows, as ``form`` writes them."""
        columns = [[_head(one, form), *_cells(one, form)] for one in self.columns]
        if len(set(self.counts)) > 1:
            columns.append(["runs", *map(str, self.counts)])
        return [list(row) for row in zip(*columns, strict=True)]

    def _latex(self) -> str:
        head, *rows = [" & ".join(row) + r" \\" for row in self._cells("latex")]
        sides = "".join("r" if one.mean or _numeric(one.text) else "l" for one in self.columns)
        sides += "r" * (len(set(self.counts)) > 1)
        lines = [f"% {self.note} Needs \\usepackage{{booktabs}}.", rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head]
        return "\n".join([*lines, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""])

    def _markdown(self) -> str:
        head, *rows = [f"| {' | '.join(row)} |" for row in self._cells("markdown")]
        rule = "|" + "|".join("---:" if one.mean or _numeric(one.text) else "---" for one in self.columns)
        rule += "|---:|" if len(set(self.counts)) > 1 else "|"
        return "\n".join([head, rule, *rows, "", self.note, ""])

    def _csv(self) -> str:
        columns: dict[str, Sequence[object]] = {}
        for one in self.columns:
            unit = f" [{one.unit}]" if one.unit else ""
            if one.mean:
                columns |= {f"{one.name}{unit}": one.mean, f"{one.name} sd{unit}": one.spread}
            else:
                columns[f"{one.name}{unit}"] = one.text
        return pd.DataFrame({**columns, "runs": self.counts}).to_csv(index=False, lineterminator="\n")


def export_table(
    frame: pd.DataFrame,
    columns: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    *,
    digits: int = 4,
    best: dict[str, str] | None = None,
) -> Export:
    """Average the runs of each configuration of ``frame`` and format them.

    columns: the values to average (default: DEFAULT_VALUES as far as measured). by: what tells the rows apart (default:
    the axes that vary, and bits_per_pixel); a table that is not gsq's needs both. digits: significant digits of a
    mean where seeds do not say more. best: "min" or "max" for columns of which gsq does not know it, or "none".

    Takes the rows of a fit (:func:`~gsq.analysis.tables.table.measured`). Raises AnalysisError where a column is
    missing or holds text, where rows that ``by`` does not tell apart differ in more than the seed, and for what
    ``measured`` refuses.
    """
    if not 1 <= digits <= 15:
        raise AnalysisError(f"digits: {digits} is not a number of digits; use 1 to 15")
    own = is_results(frame)
    if not own and not (columns and by):
        what = "which values to average (--column)" if by else "which columns tell its rows apart (--by)"
        raise AnalysisError(f"the table is not one of gsq's: say {what}; it has {', '.join(map(str, frame.columns))}")
    chosen = list(
        dict.fromkeys(columns or [name for name in DEFAULT_VALUES if name in frame and frame[name].notna().any()])
    )
    if not chosen:
        raise AnalysisError(f"the table has none of {', '.join(DEFAULT_VALUES)}; name its values with --column")
    require_columns(with_derived(frame), *chosen, *(by or ()))
    rows, excluded = measured(frame, chosen[0])
    keys = list(dict.fromkeys(by)) if by else _default_keys(rows)
    require_columns(rows, *chosen, *keys)
    if both := [name for name in keys if name in chosen]:
        raise AnalysisError(f"{both[0]} cannot tell rows apart (--by) and be averaged (--column)")
    groups = rows.groupby(keys, dropna=False, sort=True).ngroup().to_numpy() if keys else np.zeros(len(rows), dtype=int)
    if own:
        _refuse_mixtures(rows, groups, keys)
    for name in best or {}:
        if name not in chosen:
            raise AnalysisError(f"best: {name!r} is not among the values; they are {', '.join(chosen)}")
    first = [int(np.flatnonzero(groups == one)[0]) for one in range(groups.max() + 1)]
    found = [ExportColumn(name, _unit(name), tuple(labels(rows, name)[first])) for name in keys]
    found += [_averaged(rows, name, groups, digits, (best or {}).get(name)) for name in chosen]
    counts = tuple(int(one) for one in np.bincount(groups))
    holes = {name: int((~np.isfinite(numbers(rows, name))).sum()) for name in chosen}
    missing = [f"no {name} in {count} of {counted(len(rows), 'run')}" for name, count in holes.items() if count]
    left_out = "; ".join(filter(None, (excluded.text, *missing)))
    return Export(tuple(found), counts, _note(rows, found, counts, missing), left_out)


def _default_keys(rows: pd.DataFrame) -> list[str]:
    names = [name for name in varying(rows) if name != "other_axes"]
    if "other_axes" in rows:  # each of these keys is a column of its own, too
        others = {key for text in rows["other_axes"].dropna() if text for key in json.loads(text)}
        names += sorted(key for key in others if key in rows and rows[key].nunique(dropna=False) > 1)
    return [*names, *(["bits_per_pixel"] if names and varying(rows, ("bits_per_pixel",)) else [])]


def _refuse_mixtures(rows: pd.DataFrame, groups: np.ndarray, keys: list[str]) -> None:
    """Raise AnalysisError where one printed row would average several configurations."""
    ids = configuration_ids(rows)
    for one in range(groups.max() + 1):
        inside = rows[groups == one]
        if len(set(ids[groups == one])) > 1:
            differ = varying(inside) or ["an axis"]
            where = ", ".join(f"{name}={labels(inside, name)[0]}" for name in keys) or "all rows"
            raise AnalysisError(
                f"the rows with {where} differ in {', '.join(differ)}, too, so their mean would mix configurations. "
                f"Add {' '.join(f'--by {name}' for name in differ)}, or choose rows with --where"
            )


def _averaged(rows: pd.DataFrame, name: str, groups: np.ndarray, digits: int, direction: str | None) -> ExportColumn:
    values = numbers(rows, name)
    each = [values[(groups == one) & np.isfinite(values)] for one in range(groups.max() + 1)]
    mean = tuple(float(one.mean()) if len(one) else math.nan for one in each)
    spread = tuple(float(one.std(ddof=1)) if len(one) > 1 else math.nan for one in each)
    if direction not in (None, "min", "max", "none"):
        raise AnalysisError(f"best: {name}={direction!r} is not allowed; use min, max or none")
    direction = direction or ("min" if name in LESS else "max" if name in MORE else "none")
    places = _places(mean, spread, digits)
    text = tuple(_rounded(one, places, digits) for one in mean)
    there = [one for one in mean if not math.isnan(one)]
    best: frozenset[int] = frozenset()
    if direction != "none" and len(there) > 1:
        winner = text[mean.index(min(there) if direction == "min" else max(there))]
        best = frozenset(i for i, one in enumerate(text) if one == winner)
    spreads = tuple(_rounded(one, places, digits) for one in spread)
    shown = tuple(a if b == "" else f"{a} ± {b}" for a, b in zip(text, spreads, strict=True))
    return ExportColumn(name, _unit(name), shown, mean, spread, best if len(best) < len(mean) else frozenset())


def _places(mean: Sequence[float], spread: Sequence[float], digits: int) -> int | None:
    """Decimal places of a column: ``digits`` of its largest mean, and two of the typical spread where that is more;
    None where its values span too many decades to share places."""
    sizes = [abs(one) for one in mean if one == one and one]
    if not sizes:
        return 0
    if max(sizes) / min(sizes) > 1e4 or max(sizes) >= 1e6:
        return None
    if all(one == round(one) for one in mean if one == one) and not any(one > 0 for one in spread):
        return 0
    places = digits - 1 - math.floor(math.log10(max(sizes)))
    scatter = [one for one in spread if one > 0]
    if scatter:
        places = max(places, 1 - math.floor(math.log10(float(np.median(scatter)))))
    return min(max(places, 0), 12)


def _rounded(value: float, places: int | None, digits: int) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.{digits}g}" if places is None else f"{value:.{places}f}"


def _unit(name: str) -> str:
    unit = schema.BY_NAME[name].unit if name in schema.BY_NAME else AXES[name].unit if name in AXES else ""
    # A count of what the column is named for needs no unit: groups [groups].
    said = unit in (name, name.replace("_per_", "/"), "share", "rows", "")
    return "" if said or name in POWERS else unit


def _head(column: ExportColumn, form: Format) -> str:
    axis = AXES.get(column.name)
    if form == "latex":
        return f"${axis.symbol}$" if axis and axis.symbol else _escaped(column.head)
    return column.head.replace("|", r"\|")


def _cells(column: ExportColumn, form: Format) -> list[str]:
    found = []
    for i, text in enumerate(column.text):
        if not column.mean:
            shown = _escaped(text) if form == "latex" else text.replace("|", r"\|")
        elif not text:
            shown = "--"
        elif form == "latex":
            shown = _math(text, bold=i in column.best)
        else:
            shown = f"**{text}**" if i in column.best else text
        found.append(shown)
    return found


def _math(text: str, bold: bool) -> str:
    """``12.3 ± 0.4`` for LaTeX; powers of ten are written out."""
    shown = re.sub(r"([\d.]+)e([+-])0*(\d+)", lambda m: rf"{m[1]} \times 10^{{{m[2].strip('+')}{m[3]}}}", text)
    shown = shown.replace("±", r"\pm")
    return rf"$\mathbf{{{shown}}}$" if bold else f"${shown}$"


def _escaped(text: str) -> str:
    special = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "|": "bar", "<": "less", ">": "greater"}
    return re.sub(r"[\\~^|<>&%$#_{}]", lambda m: rf"\text{special[m[0]]}{{}}" if m[0] in special else "\\" + m[0], text)


def _numeric(texts: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", one) for one in texts if one)


def _note(rows: pd.DataFrame, found: Sequence[ExportColumn], counts: Sequence[int], missing: Sequence[str]) -> str:
    least, most = min(counts), max(counts)
    runs = counted(most, "run") if least == most else f"{least} to {most} runs"
    parts = [
        f"Mean ± standard deviation over {runs} of each configuration."
        if most > 1
        else "One run of each configuration."
    ]
    if missing:
        parts.append(f"There is {', '.join(missing)}.")
    if any(one.best for one in found):
        parts.append("Bold: the best of a column, at the printed precision.")
    if any(one.name in ("rfid", "kid", "inception_score") for one in found) and "features" in rows:
        names = sorted({str(one) for one in rows["features"].dropna()})
        protocols = sorted({str(one) for one in rows["protocol"].dropna()}) if "protocol" in rows else []
        parts.append(f"Features: {', '.join(names)}" + (f" (protocol {', '.join(protocols)})." if protocols else "."))
    return " ".join(parts)
