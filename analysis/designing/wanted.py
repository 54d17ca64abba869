"""The cells at which a prediction is wanted, with every column that the laws read."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from gsq.analysis.designing.target import Target, cell_text
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.result import Fit
from gsq.analysis.tables.table import completed, numbers, with_derived
from gsq.config.axes import CONFIGURATION, DERIVED, roots


def wanted_cells(fits: Sequence[Fit], target: Target, measured_and_candidates: pd.DataFrame) -> pd.DataFrame:
    """The target cells, with every column that a law reads."""
    if target.rows is not None:
        return _target_rows(fits, target.rows)
    if not target.cells:
        return measured_and_candidates
    given = sorted({name for cell in target.cells for name in cell})
    known = {*map(str, fits[0].rows.columns), *DERIVED, *CONFIGURATION, *measured_and_candidates}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            raise AnalysisError(
                f"target cell: there is no axis {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
            )
    read = [name for one in fits for name in one.law.reads]
    frame = with_derived(completed(pd.DataFrame([dict(cell) for cell in target.cells]), fits[0].rows, read))
    for one in fits:
        for name in one.law.reads:
            if name not in frame or frame[name].isna().any():
                raise AnalysisError(
                    f"target cell {cell_text(target.cells[0])}: {one.law.name} reads {name}, which is not given; add "
                    f"it ({name}=...)" + (f", or {' and '.join(roots(name))}" if name in DERIVED else "")
                )
        for name, only in one.law.holds_for.items():
            value = only if only is not None else float(numbers(one.rows, name)[0]) if name in one.rows else None
            if value is not None and name in frame and (numbers(frame, name) != value).any():
                raise AnalysisError(
                    f"target cell {cell_text(target.cells[0])}: {one.law.name} holds for {name} = {value:g} only"
                )
    return frame


def _target_rows(fits: Sequence[Fit], given: pd.DataFrame) -> pd.DataFrame:
    """Select the columns that the laws read from a table of target rows."""
    names = list(dict.fromkeys(name for one in fits for name in one.law.reads))
    frame = with_derived(completed(given, fits[0].rows, names))
    for name in names:
        if name not in frame:
            raise AnalysisError(
                f"the target rows have no column {name!r}, which the law reads; they have "
                f"{', '.join(map(str, given.columns[:12]))}"
            )
        wrong = ~np.isfinite(numbers(frame, name))
        if wrong.any():
            raise AnalysisError(
                f"the target rows: {name} is not a number in {wrong.sum()} of {len(frame)} rows, the first of them row "
                f"{int(np.argmax(wrong)) + 1}; fill it in or leave those rows out"
            )
    for one in fits:
        for name, only in one.law.holds_for.items():
            value = only if only is not None else float(numbers(one.rows, name)[0]) if name in one.rows else None
            if value is not None and name in frame and (numbers(frame, name) != value).any():
                raise AnalysisError(f"the target rows: {one.law.name} holds for {name} = {value:g} only")
    return frame[names]
