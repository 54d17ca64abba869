"""Columns of a table by name: which tables are gsq's own, numbers, derived axes, and what is said of a missing one."""

from __future__ import annotations

import difflib
import keyword
import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.config.axes import CONFIGURATION, DEFAULTS, DERIVED, ancestry, modifiers, read_levels, roots
from gsq.sweeps.schema import columns as schema
from gsq.words import counted

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

NUMBER = (int, float, np.number)

_SIGNATURE = re.compile(r"[0-9a-f]{12}")
# Names that formulas read without quotes.
_PLAIN_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_DATE = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4}")


def is_results(frame: pd.DataFrame) -> bool:
    """Whether ``frame`` is (part of) a results table of gsq's, where ``state``, ``signature``, ``step``, ``protocol``
    and ``repeat`` mean what the schema says: it has the schema's key columns, or signatures of 12 hex digits."""
    if {*schema.KEY} <= {*frame.columns}:
        return True
    if "signature" not in frame:
        return False
    known = frame["signature"].dropna()
    return len(known) > 0 and all(isinstance(one, str) and _SIGNATURE.fullmatch(one) for one in known.unique())


def near_names(name: str, columns: Collection[object]) -> list[str]:
    """Up to three columns whose names are like ``name``: equal but for case and punctuation, beginning with it, or
    spelled alike."""
    names = list(dict.fromkeys(map(str, columns)))

    def bare(text: str) -> str:
        return re.sub(r"[\W_]+", "", text).casefold()

    wanted = bare(name)
    same = [one for one in names if bare(one) == wanted]
    words = [one for one in names if wanted and wanted in map(str.casefold, re.split(r"[\W_]+", one))]
    begins = [one for one in names if wanted and bare(one).startswith(wanted)]
    close = difflib.get_close_matches(name, names, 3, 0.6)
    return list(dict.fromkeys([*same, *words, *begins, *close]))[:3]


def quoted(name: str) -> str:
    """``name`` as a formula has it: in backticks where it is not made of letters, digits, _ and dots alone."""
    # Python reads some letters as others, such as the micro sign as a Greek mu.
    same = unicodedata.normalize("NFKC", name) == name
    plain = same and _PLAIN_NAME.fullmatch(name) and not any(keyword.iskeyword(part) for part in name.split("."))
    return name if plain else f"`{name}`"


def unquoted(name: str) -> str:
    """A column's name without the backticks that a formula would need."""
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] == "`" else name


def require_columns(frame: pd.DataFrame, *names: str) -> None:
    """Raise AnalysisError naming the first column that ``frame`` lacks, with those that have a name like it."""
    for name in names:
        if name not in frame.columns:
            raise AnalysisError(_missing(frame, name))


def require_shown(frame: pd.DataFrame, *names: str) -> None:
    """Raise AnalysisError where a figure of tokenizers lacks one of the columns that it shows (the first: what it is a
    figure of), naming the figures that a law over any other table has."""
    for name in names:
        if name not in frame.columns:
            raise AnalysisError(
                f"this figure shows {names[0]} over the axes of tokenizers, and the table has no column {name!r}; for "
                "a law over any other table there are its report card and its contours (gsq plot TABLE --law LAW "
                "--kind card, or contours)"
            )


def _missing(frame: pd.DataFrame, name: str) -> str:
    columns = [str(column) for column in frame.columns]
    if name in DERIVED:
        axes = [axis for axis in roots(name) if axis not in frame]
        if not axes:  # they are there, but nothing follows from them
            return next(filter(None, (_unusable(frame, axis) for axis in roots(name))), name)
    curves = frame.attrs.get("curves")
    if curves:
        return (
            f"column {name!r} is missing: {curves} holds training curves (gsq gather --curves), a row for each logged "
            f"step. Fit the results table beside it, {curves.replace('-curves', '')}, or write a formula over the "
            f"columns of the curves: {', '.join(columns)}"
        )
    near = near_names(name, columns)
    text = f"column {name!r} is missing from the table; it has {counted(len(columns), 'column')}, such as "
    text += ", ".join(near or columns[:8]) + (f". Did you mean {' or '.join(near)}?" if near else ".")
    if name in DERIVED:
        text += f" {name} follows from {', '.join(roots(name))}, of which it lacks {', '.join(axes)}."
    if is_results(frame):
        return text + " Gather the sweep again (gsq gather SWEEP), or add the column"
    if name == "rfid":
        return text + ' Name the column to predict: "loss = E + A / N^a", or --target loss'
    return text + " Rename a column, or add this one"


def _unusable(frame: pd.DataFrame, name: str) -> str:
    """What is wrong with a column from which others follow; "" where nothing is."""
    if name == "levels":
        wrong = [one for one in frame[name].dropna().unique() if read_levels(one) is None]
        return f"column 'levels' must hold the values of each index, such as 8x8x5; got {wrong[0]!r}" if wrong else ""
    try:
        least = np.nanmin(numbers(frame, name), initial=np.inf)
    except AnalysisError as error:
        return str(error)
    return f"column {name!r} must be positive, got {least:g}" if least <= 0 and name not in DERIVED else ""


def numbers(frame: pd.DataFrame, name: str) -> Array:
    """Column ``name`` as float64 of shape (rows,); null becomes NaN, True 1. Raises AnalysisError if not numeric."""
    require_columns(frame, name)
    column = frame[name]
    if isinstance(column, pd.DataFrame):
        raise AnalysisError(f"{column.shape[1]} columns are called {name!r}; rename or remove all but one")
    kind = str(column.dtype)
    if kind.startswith(("datetime", "timedelta", "period", "timestamp", "date", "time", "duration", "complex")):
        what = "durations" if kind.startswith(("timedelta", "duration")) else "complex" if kind[0] == "c" else "dates"
        raise AnalysisError(
            f"column {name!r} holds something that is not a number: {what} ({kind}). Add a column of numbers"
        )
    try:
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise AnalysisError(_not_a_number(column, name)) from error


def labels(frame: pd.DataFrame, name: str) -> npt.NDArray[np.object_]:
    """Column ``name`` as text of shape (rows,), a number in its shortest form (4, not 4.0), null as "". Raises
    AnalysisError where the column is missing."""
    require_columns(frame, name)

    def text(one: Any) -> str:
        if pd.isna(one):
            return ""
        # A whole number has all its digits: an id of 17 digits is not the next one.
        fraction = isinstance(one, NUMBER) and not isinstance(one, int | np.integer)
        return f"{one:.15g}" if fraction else str(one)

    return np.array([text(one) for one in frame[name]], dtype=object)


def _not_a_number(column: pd.Series, name: str) -> str:
    """The first value of a column that is no number, and the likely reason."""
    for row, value in enumerate(column, 1):
        try:
            float(value)
        except (TypeError, ValueError, OverflowError):
            if pd.api.types.is_scalar(value) and pd.isna(value):
                continue
            text = f"column {name!r} holds something that is not a number: {str(value)[:40]!r} in row {row}"
            if re.fullmatch(r"[+-]?\d[\d.,' \u00a0\u202f]*", str(value)):
                return text + ". Write it without marks between thousands and with a full stop as the decimal mark"
            if _DATE.match(str(value)):
                return text + ", which looks like a date. Add a column of numbers"
            return text
    return f"column {name!r} holds something that is not a number"


def with_derived(frame: pd.DataFrame, *, fresh: bool = False, names: Collection[str] = tuple(DERIVED)) -> pd.DataFrame:
    """``frame`` with the derived axes that follow from its columns, where they are absent; ``fresh``: computed anew.
    ``names``: those of them that are wanted, and what they follow from.

    The formulas are those of :mod:`gsq.config.axes`, right for every quantizer where the columns depth and levels are
    there. Of a table that is not gsq's own, axes that are no positive numbers are columns of that name, of which
    nothing follows. Raises AnalysisError where an axis of gsq's own table is zero or negative.
    """
    new: dict[str, Array] = {}
    wanted = {one for name in names for one in ancestry(name)}
    for name, axis in DERIVED.items():
        if (
            name not in wanted
            or (name in frame and not fresh)
            or any(need not in frame and need not in new for need in axis.needs)
        ):
            continue
        given = [one for one in axis.inputs if one in frame and one not in new]
        wrong = {one: text for one in given if (text := _unusable(frame, one))}
        if wrong and is_results(frame):
            raise AnalysisError(next(iter(wrong.values())))
        if wrong.keys() & set(axis.needs) or axis.formula is None:
            continue
        columns = [new[one].tolist() if one in new else _inputs(frame, one, one not in wrong) for one in axis.inputs]
        new[name] = np.array([axis.formula(*row) for row in zip(*columns, strict=True)], dtype=np.float64)
    return frame.assign(**new) if new else frame


def _inputs(frame: pd.DataFrame, name: str, known: bool) -> list[Any]:
    """What formulas take of a column, for each row; its default where it is null, absent or not ``known``."""
    default = DEFAULTS.get(name, np.nan)
    if name not in frame or not known:
        return [default] * len(frame)
    if name == "levels":
        return _levels(frame)
    return [default if value != value else value for value in numbers(frame, name).tolist()]


def _levels(frame: pd.DataFrame) -> list[tuple[int, ...] | None]:
    """Levels of each row. A table that is not gsq's own may mean something else by them, so that they count there only
    if they are as many as the groups, the largest of them the codebook size."""
    read = {text: read_levels(text) for text in frame["levels"].dropna().unique()}
    found = [read.get(text) for text in frame["levels"]]
    if is_results(frame) or "groups" not in frame or "codebook_size" not in frame:
        return found
    cells = zip(found, numbers(frame, "groups"), numbers(frame, "codebook_size"), strict=True)
    return [levels if levels and (len(levels), max(levels)) == (g, v) else None for levels, g, v in cells]


def moved(rows: pd.DataFrame, at: npt.NDArray[np.intp], names: Collection[str], **axes: Array) -> pd.DataFrame:
    """The ``rows`` at these places, (n,), with other values of some axes, (n,) each; of them the columns ``names`` and
    those that these follow from. What follows from the axes is computed anew: derived axes, the groups of another
    group_dim. Levels are of one codebook size and number of groups: where either moves, all indices are taken to be of
    the same size."""
    kept = {*schema.KEY, "quantizer", "latent_dim", *(one for name in names for one in ancestry(name))}
    rows = rows.loc[:, rows.columns.isin(kept)].iloc[at]
    if "group_dim" in axes:
        axes = {**axes, "groups": numbers(rows, "latent_dim") / axes["group_dim"]}
    changed = rows.assign(**axes)
    if "levels" in rows and axes.keys() & set(roots("bits_per_token")):
        changed = changed.assign(levels=None)
    return with_derived(changed, fresh=True, names=names)


def completed(cells: pd.DataFrame, rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Hypothetical ``cells`` with the depth and the levels that they do not name, but that ``columns`` follow from:
    those of the measured ``rows`` with the same quantizer and groups (for levels: and codebook size). Groups that no
    row has leave the depth of all rows of the quantizer.

    Raises AnalysisError where these rows differ in it.
    """
    for name in columns:
        if name in DERIVED and not {*roots(name)} <= {*cells.columns}:
            continue
        for modifier in modifiers(name, cells.columns):
            if modifier in rows and modifier not in cells and not _unusable(rows, modifier):
                cells = cells.assign(**{modifier: _as_in(cells, rows, modifier, name)})
    return cells


def _as_in(cells: pd.DataFrame, rows: pd.DataFrame, modifier: str, derived: str) -> list[Any]:
    """The value of ``modifier`` for each of ``cells``."""
    exact = modifier == "levels"
    names = [name for name in ("quantizer", "groups", *["codebook_size"] * exact) if name in cells and name in rows]
    known: dict[tuple[object, ...], Any] = {}
    keys = list(zip(*(cells[name] for name in names), strict=True)) if names else [()] * len(cells)
    for key in dict.fromkeys(keys):
        alike = rows
        for name, value in zip(names, key, strict=True):
            same = alike[alike[name] == value]
            alike = same if exact or name == "quantizer" or len(same) else alike
        values = list(dict.fromkeys(map(_modifier, [modifier] * len(alike), alike[modifier])))
        if len(values) > 1:
            raise AnalysisError(
                f"{derived} depends on {modifier}, too, but a cell does not give its {modifier}, and similar measured "
                f"rows have {', '.join(map(str, values[:6]))}; give the cell its {modifier}, or {derived} itself"
            )
        known[key] = values[0] if len(values) else DEFAULTS[modifier]
    return [known[key] for key in keys]


def _modifier(name: str, value: Any) -> Any:
    """A modifier's value; its default where it is null, or levels that are all alike, which follow from the rest."""
    alike = name == "levels" and len(set(read_levels(value) or ())) == 1
    return DEFAULTS[name] if alike or pd.isna(value) else value


def varying(frame: pd.DataFrame, names: Sequence[str] = CONFIGURATION) -> list[str]:
    """The columns among ``names`` that are present and take more than one value (null is not a value)."""
    return [name for name in names if name in frame and frame[name].nunique() > 1]


def single(frame: pd.DataFrame, name: str) -> str | None:
    """The one value of column ``name``, as text; None where it is absent or takes none or several."""
    values: list[object] = list(frame[name].dropna().unique()) if name in frame else []
    return str(values[0]) if len(values) == 1 else None
