"""Columns of a table by name: which tables are gsq's own, numbers, derived axes, and what is said of a missing one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.sweeps.schema import columns as schema

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Axes that follow from the others, and what they follow from: (needs, formula). The paper's names: D, G, V, f.
DERIVED: dict[str, tuple[tuple[str, ...], Callable[..., Array]]] = {
    "group_dim": (("latent_dim", "groups"), lambda d, g: d / g),
    "bits_per_token": (("groups", "codebook_size"), lambda g, v: g * np.log2(v)),
    "bits_per_pixel": (("groups", "codebook_size", "downsample"), lambda g, v, f: g * np.log2(v) / f**2),
    "bits_per_dimension": (("latent_dim", "groups", "codebook_size"), lambda d, g, v: g * np.log2(v) / d),
    "compression_ratio": (("downsample", "latent_dim"), lambda f, d: 3 * f**2 / d),
    "tokens_per_image": (("groups", "image_size", "downsample"), lambda g, h, f: g * (h / f) ** 2),
}

# What makes a configuration. Seeds and repeats repeat it, and group_dim = D / G follows from two others.
CONFIGURATION_AXES: tuple[str, ...] = tuple(
    c.name for c in schema.COLUMNS if c.role == "axis" and c.name not in ("seed", "repeat", "group_dim")
)
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
    import keyword

    plain = _PLAIN_NAME.fullmatch(name) and not any(keyword.iskeyword(part) for part in name.split("."))
    return name if plain else f"`{name}`"


def unquoted(name: str) -> str:
    """A column's name without the backticks that a formula would need."""
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] == "`" else name


def require_columns(frame: pd.DataFrame, *names: str) -> None:
    """Raise AnalysisError naming the first column that ``frame`` lacks, with those that have a name like it."""
    for name in names:
        if name not in frame.columns:
            raise AnalysisError(_missing(frame, name))


def _missing(frame: pd.DataFrame, name: str) -> str:
    columns = [str(column) for column in frame.columns]
    if name in DERIVED:
        axes = [axis for axis in DERIVED[name][0] if axis not in frame]
        if not axes:  # they are there, but nothing follows from them
            return next(filter(None, (_not_positive(frame, axis) for axis in DERIVED[name][0])), name)
    curves = frame.attrs.get("curves")
    if curves:
        return (
            f"column {name!r} is missing: {curves} holds training curves (gsq gather --curves), a row for each logged "
            f"step. Fit the results table beside it, {curves.replace('-curves', '')}, or write a formula over the "
            f"columns of the curves: {', '.join(columns)}"
        )
    near = near_names(name, columns)
    text = f"column {name!r} is missing from the table; it has {len(columns)} columns, such as "
    text += ", ".join(near or columns[:8]) + (f". Did you mean {' or '.join(near)}?" if near else ".")
    if name in DERIVED:
        text += f" {name} follows from {', '.join(DERIVED[name][0])}, of which it lacks {', '.join(axes)}."
    if is_results(frame):
        return text + " Gather the sweep again (gsq gather SWEEP), or add the column"
    if name == "rfid":
        return text + ' Name the column to predict: "loss = E + A / N^a", or --target loss'
    return text + " Rename a column, or add this one"


def _not_positive(frame: pd.DataFrame, axis: str) -> str:
    """What is wrong with a column from which others follow; "" where nothing is."""
    try:
        least = np.nanmin(numbers(frame, axis), initial=np.inf)
    except AnalysisError as error:
        return str(error)
    return f"column {axis!r} must be positive, got {least:g}" if least <= 0 else ""


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


def with_derived(frame: pd.DataFrame, *, fresh: bool = False) -> pd.DataFrame:
    """``frame`` with the derived axes that follow from its columns, where they are absent; ``fresh``: computed anew.

    Of a table that is not gsq's own, axes that are no positive numbers are columns of that name, of which nothing
    follows. Raises AnalysisError where an axis of gsq's own table is zero or negative.
    """
    new: dict[str, Array] = {}
    own: bool | None = None
    wrong: dict[str, str] = {}
    for name, (axes, formula) in DERIVED.items():
        if (name in frame and not fresh) or any(axis not in frame for axis in axes):
            continue
        for axis in axes:
            if axis not in wrong:
                wrong[axis] = _not_positive(frame, axis)
        if found := next((wrong[axis] for axis in axes if wrong[axis]), ""):
            own = is_results(frame) if own is None else own
            if own:
                raise AnalysisError(found)
            continue
        new[name] = formula(*(numbers(frame, axis) for axis in axes))
    return frame.assign(**new) if new else frame


def varying(frame: pd.DataFrame, names: Sequence[str] = CONFIGURATION_AXES) -> list[str]:
    """The columns among ``names`` that are present and take more than one value (null is not a value)."""
    return [name for name in names if name in frame and frame[name].nunique() > 1]


def single(frame: pd.DataFrame, name: str) -> str | None:
    """The one value of column ``name``, as text; None where it is absent or takes none or several."""
    values: list[object] = list(frame[name].dropna().unique()) if name in frame else []
    return str(values[0]) if len(values) == 1 else None
