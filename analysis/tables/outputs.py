"""Several outputs of a run in one table: a row for each run and output, the output as a level of the column ``out``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.tables.left_out import Excluded
from gsq.analysis.tables.table import Array, labels, measured, numbers, require_columns

OUT = "out"
"""The column of outputs, by which a formula indexes parameters: A[out]."""


def joined(outputs: Sequence[str]) -> str:
    """The name of the column that holds all outputs: that of one, or "loss, rfid"."""
    return ", ".join(outputs)


def stacked(
    frame: pd.DataFrame, outputs: Sequence[str], columns: Sequence[str], factors: Sequence[str]
) -> tuple[pd.DataFrame, Excluded]:
    """:func:`gsq.analysis.measured` rows of each of the ``outputs``, one below the other, with the columns ``out`` and
    :func:`joined`. A run that lacks one output counts for the others.

    Raises AnalysisError where the table lacks an output or has a column ``out`` already, or as ``measured`` does.
    """
    require_columns(frame, *outputs)
    if OUT in frame:
        raise AnalysisError(
            f"several targets are told apart by a column {OUT!r}, which this table has already; rename its own"
        )
    parts, left_out = [], []
    for name in outputs:
        rows, excluded = measured(frame, name, columns, [one for one in factors if one != OUT])
        rows[joined(outputs)], rows[OUT] = numbers(rows, name), name
        parts.append(rows)
        left_out.append(excluded)
    counts: Counter[str] = sum((Counter(one.counts) for one in left_out), Counter())
    warnings = tuple(dict.fromkeys(text for one in left_out for text in one.warnings))
    total = Excluded(sum(one.cells for one in left_out), sum(one.used for one in left_out), dict(counts), warnings)
    return pd.concat(parts, ignore_index=True), total


def scales(rows: pd.DataFrame, outputs: Sequence[str], residual: Array, leverage: Array, robust: bool) -> Array:
    """Standard deviation of the ``residual`` (n,) of each output, given back for each row, (n,).

    The ``leverage`` (n,) of its rows is what an output pays for the parameters. ``robust``: from the median of absolute
    residuals, for losses that hold outliers back. Not below a thousandth of the largest: an output that is met exactly
    would take all weight.
    """
    names, found = labels(rows, OUT), np.empty(len(residual))
    for name in outputs:
        here = names == name
        part, left = residual[here], max(1.0, float(np.sum(1 - leverage[here])))
        found[here] = 1.4826 * np.median(np.abs(part)) if robust else np.sqrt(np.sum(part**2) / left)
    return np.maximum(found, max(1e-3 * found.max(), 1e-300))
