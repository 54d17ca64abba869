"""Refuse rows before a fit starts: too few for the law, without variation, or so large that squares overflow."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.options import Residuals
from gsq.analysis.laws.named import Law
from gsq.analysis.tables.outputs import OUT
from gsq.analysis.tables.table import Array, labels, numbers, unquoted

LARGEST = 1e100  # of values whose squares, and products of those, a float holds


def check_values(rows: pd.DataFrame, law: Law, target: Array, data: Array, residuals: Residuals) -> None:
    """Raise AnalysisError if the rows cannot determine the law, do not vary, or hold numbers whose squares overflow."""
    each = {name: target[labels(rows, OUT) == name] for name in law.outputs} or {law.target: target}
    for name, values in each.items():
        if residuals == "log" and (values <= 0).any():
            wrong = values <= 0
            raise AnalysisError(
                f"log residuals need {name} above 0; {wrong.sum()} of {len(values)} rows are not, the first is "
                f"{values[wrong][0]:g}. Take residuals='linear' (--residuals linear), or drop those rows"
            )
    reason = law.obstacle(rows)
    if reason is not None:
        raise AnalysisError(reason)
    for name, values in each.items():
        if float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max()):
            raise AnalysisError(
                f"{name} is {values[0]:g} in all {len(values)} rows: nothing varies, so there is no law to fit; look "
                "at the table, or name another column (--target)"
            )
    most = float(np.abs(target).max())
    where = np.abs(target) > 0 if residuals == "log" else np.abs(target) == most
    least = float(np.abs(target[where]).min())
    sizes = [(law.target, least if least < 1 / LARGEST else most)]
    sizes += [
        (datum.text, float(np.abs(row).max()))
        for datum, row in zip(law.form().data, data, strict=True)
        if not datum.power and np.abs(row).max() > 0
    ]
    for name, size in sizes:
        if not 1 / LARGEST <= size <= LARGEST:
            raise AnalysisError(
                f"{name} has values near {size:.0e}, whose squares a computer does not hold; give it in another unit, "
                f"so that it lies between {1 / LARGEST:.0e} and {LARGEST:.0e} (for instance divided by {size:.0e})"
            )


def read_weights(rows: pd.DataFrame, name: str | None) -> Array:
    if name is None:
        return np.ones(len(rows))
    name = unquoted(name)
    values = numbers(rows, name)
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        raise AnalysisError(
            f"weights must be finite and above 0; {wrong.sum()} of {len(rows)} rows of {name!r} are not, the first is "
            f"{values[wrong][0]:g}"
        )
    return values / values.mean()
