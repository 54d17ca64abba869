"""Roll out over increasing size: fit the law to the smaller sizes, predict the next one, and repeat."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.fit import fit_determined
from gsq.analysis.fitting.result import Fit
from gsq.analysis.jsonable import picked
from gsq.analysis.tables.left_out import Excluded
from gsq.analysis.tables.table import large_end, numbers, require_columns, unquoted, with_derived
from gsq.words import counted

_MOST = 24  # More sizes are pooled into this many groups of neighbours.


@dataclass(frozen=True)
class Rollout:
    """Predictions of each size of a column from the law of the smaller ones."""

    column: str
    target: str
    table: pd.DataFrame
    """One row for each run predicted: the column, the target, predicted, low, high (of one run), and fitted, the number
    of rows that the prediction is from."""
    skipped: dict[str, str]
    """The reason why the smaller sizes did not determine the law, by size."""

    @property
    def error(self) -> float:
        """Root mean square of ln target - ln predicted; NaN where one of them is not positive."""
        with np.errstate(all="ignore"):
            return float(np.sqrt(np.mean(np.log(self.table[self.target] / self.table["predicted"]) ** 2)))

    @property
    def inside(self) -> float:
        """Share of the runs within their interval; NaN without intervals."""
        known = self.table["low"].notna()
        return float(self.table[self.target].between(self.table["low"], self.table["high"])[known].mean())

    @property
    def text(self) -> str:
        lines = [f"{self.column} predicted from the smaller sizes (intervals of one run)"]
        for size, rows in self.table.groupby(self.column, sort=False):
            first = rows.iloc[0]
            lines.append(
                f"  {size:.6g}: {counted(len(rows), 'row')}, {self.target} {rows[self.target].mean():.4g}, predicted "
                f"{rows['predicted'].mean():.4g} [{rows['low'].mean():.4g}, {rows['high'].mean():.4g}] from "
                f"{counted(int(first['fitted']), 'row')}"
            )
        lines += [f"  {size}: not predicted ({why})" for size, why in self.skipped.items()]
        lines.append(f"  missed by {self.error:.3g} in the logarithm; {self.inside:.0%} lie within their intervals")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        rows = [{name: one for name, one in row.items() if one == one} for row in self.table.to_dict("records")]
        return {**picked(self, "column", "error", "inside", "skipped"), "rows": rows}


def rollout(fit: Fit, column: str) -> Rollout:
    """Fit the law of ``fit`` to the rows of the smallest sizes of ``column``, predict the next size, and so on.

    Small is what needs less memory and time, so small codebooks and large downsampling. Above 24 sizes,
    neighbours are grouped. Options are those of the fit, without a bootstrap where intervals are profiles. Raises
    AnalysisError where the column is missing or constant, or no size can be predicted.
    """
    column = unquoted(column)
    rows = with_derived(fit.rows)
    require_columns(rows, column)
    size = large_end(column) * numbers(rows, column)
    known = np.isfinite(size)
    levels = np.unique(size[known])
    if len(levels) < 2:
        raise AnalysisError(f"{column} takes one value in these rows: no size is smaller than another; name another")
    edges = [part[0] for part in np.array_split(levels, min(len(levels), _MOST))] + [np.inf]
    options = replace(fit.options, bootstrap=0 if fit.interval_kind == "profile" else fit.options.bootstrap)
    unbound = replace(fit.law, levels={})
    parts, skipped = [], {}
    for low, high in itertools.pairwise(edges[1:]):
        smaller = rows[known & (size < low)].reset_index(drop=True)
        here = rows[known & (size >= low) & (size < high)].reset_index(drop=True)
        try:
            found = fit_determined(smaller, Excluded.none(smaller), unbound, options)
            middle, least, most = found.predict(here, single_run=True)
        except AnalysisError as error:
            skipped[f"{column} = {abs(low):.6g}"] = str(error)
            continue
        parts.append(here[[column, fit.target]].assign(predicted=middle, low=least, high=most, fitted=found.n_rows))
    if not parts:
        raise AnalysisError(
            f"no size of {column} can be predicted from the smaller ones: {next(iter(skipped.values()))}"
        )
    return Rollout(column, fit.target, pd.concat(parts, ignore_index=True), skipped)
