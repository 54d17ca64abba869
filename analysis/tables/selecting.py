"""Rows of a table that meet a condition: ``--where`` of the verbs that fit."""

from __future__ import annotations

import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.columns import near_names, quoted
from gsq.analysis.tables.table import with_derived


def select(frame: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows of ``frame`` that meet ``where``, such as "outlier == False" or "groups in [4, 8] and step > 1000".

    Comparisons of columns (measured or derived; other names in backticks) with and, or, not, in, as
    ``DataFrame.query`` reads them. None keeps every row. Raises AnalysisError for a condition that cannot be read, an
    unknown column, a value that is neither true nor false, and where no row is left.
    """
    if where is None:
        return frame
    known = with_derived(frame)
    try:
        kept = known.eval(where, engine="python")
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        near = near_names(name, list(map(str, known.columns)))
        hint = f"; did you mean {' or '.join(map(quoted, near))}?" if near else ""
        raise AnalysisError(f"--where {where!r}: the table has no column {name!r}{hint}") from None
    except Exception as error:  # whatever the text makes pandas raise
        reason = str(error).partition("\n")[0]
        raise AnalysisError(
            f"--where {where!r} cannot be read ({reason}); write a condition over columns, such as outlier == False or "
            "groups in [4, 8] and step > 1000"
        ) from None
    if not (isinstance(kept, pd.Series) and kept.dropna().isin([True, False]).all()):
        raise AnalysisError(f"--where {where!r} is not a condition: compare columns, such as outlier == False")
    rows = frame[kept.fillna(False).astype(bool)]
    if rows.empty:
        raise AnalysisError(f"--where {where!r} leaves none of {len(frame)} rows")
    rows.attrs.update(frame.attrs)
    return rows
