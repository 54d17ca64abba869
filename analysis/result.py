"""The result of a fit: parameters with intervals, predictions with a band, and plain words about both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.laws import Law
from analysis.solver import STARTS, Residuals
from analysis.table import Array
from analysis.uncertainty import percentile_interval


@dataclass(frozen=True)
class Fit:
    """A fitted law. Intervals and bands are percentile bootstrap by configuration, at ``confidence``."""

    law: Law
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """Parameter to (low, high); NaN without a bootstrap."""
    undetermined: dict[str, str]
    """Parameters that these data do not determine, and why: see :func:`analysis.uncertainty.undetermined`."""
    residuals: Residuals
    confidence: float
    rmse: float
    """Root mean square of rfid - prediction over the rows."""
    log_rmse: float
    """Root mean square of ln rfid - ln prediction over the rows."""
    n_rows: int
    n_configurations: int
    converged_share: float
    """Share of random starts that end within 1e-6 (relative, in the sum of squares) of the best."""
    spearman: float | None
    """Rank correlation of bits_per_pixel with rfid over the rows; None where bits_per_pixel is constant."""
    bootstrap_requested: int
    bootstrap_failed: int
    bootstrap_redrawn: int
    excluded: str
    """What the table has but the fit does not use, in words; "" where nothing was left out."""
    warnings: tuple[str, ...]
    protocol: str | None
    features: str | None
    best: dict[str, float]
    """The law's columns at the row with the smallest predicted rfid."""
    theta: Array = field(repr=False, compare=False)
    """Internal parameters, shape (k,)."""
    draws: Array = field(repr=False, compare=False)
    """Internal parameters of the bootstrap refits, shape (done, k)."""

    def predict(self, where: pd.DataFrame | Mapping[str, object]) -> tuple[Array, Array, Array]:
        """Predicted rfid and its band: (central, low, high), each of shape (rows,).

        ``where`` has the law's columns (bits_per_pixel may be given as groups, codebook_size, downsample); a
        mapping may hold scalars. The band is the uncertainty of the law's value, without the scatter of
        single runs, and it assumes that the law holds there; NaN without a bootstrap.
        """
        frame = where if isinstance(where, pd.DataFrame) else _frame(where)
        x = self.law.values(frame)
        with np.errstate(over="ignore"):
            central = np.exp(self.law.log_prediction(x, self.theta))
            low, high = percentile_interval(np.exp(self.law.log_prediction(x, self.draws)), self.confidence)
        return central, low, high

    def formula(self) -> str:
        """The formula with its numbers; undetermined parameters stay letters."""
        text = self.law.formula
        for name, value in self.parameters.items():
            if name not in self.undetermined:
                number = f"{value:.4g}" if value >= 0 else f"({value:.4g})"
                text = re.sub(rf"\b{name}\b", number, text)
        return text

    def at_best(self) -> str:
        """The prediction at the best cell, in words: what a fit is good for even where parameters are not."""
        central, low, high = (float(value[0]) for value in self.predict(self.best))
        place = ", ".join(f"{name} = {value:.4g}" for name, value in self.best.items())
        return f"at {place}: rfid {central:.4g}" + ("" if np.isnan(low) else f" [{low:.4g}, {high:.4g}]")

    def quality(self) -> str:
        """Size, errors, starts and bootstrap counts in one or two lines."""
        lines = [
            f"{self.n_rows} rows of {self.n_configurations} configurations, {self.residuals} residuals; "
            f"RMSE {self.rmse:.4g} (log {self.log_rmse:.3g})"
            + ("" if self.spearman is None else f"; Spearman(bits_per_pixel, rfid) {self.spearman:.3f}"),
            f"{self.converged_share:.0%} of {STARTS} starts reach the optimum",
        ]
        if self.bootstrap_requested:
            lines[1] += (
                f"; {self.confidence:.0%} intervals from {self.bootstrap_requested} resamples by "
                "configuration "
                f"({self.bootstrap_failed} failed, {self.bootstrap_redrawn} drawn again)"
            )
        return "\n".join(lines)

    def summary(self) -> str:
        """The formula with its numbers, one parameter a line, fit quality, and what was left out."""
        width = max(len(name) for name in self.parameters)
        lines = [f"{self.law.name}: {self.formula()}", f"  {self.at_best()}"]
        for name, value in self.parameters.items():
            low, high = self.intervals[name]
            line = f"  {name:<{width}} = {value:.4g}" + ("" if np.isnan(low) else f"  [{low:.4g}, {high:.4g}]")
            if name in self.undetermined:
                line += f"  not determined by these data ({self.undetermined[name]})"
            lines.append(line)
        lines += [f"  {line}" for line in self.quality().splitlines()]
        lines.append(f"  rfid in {self.features or 'unnamed features'}, protocol {self.protocol or 'not recorded'}")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready: numbers, strings, lists and dicts; NaN becomes None. The draws are left out."""
        rows = {
            name: {
                "value": value,
                "low": _or_none(self.intervals[name][0]),
                "high": _or_none(self.intervals[name][1]),
                "determined": name not in self.undetermined,
                "why_not": self.undetermined.get(name),
            }
            for name, value in self.parameters.items()
        }
        central, low, high = (float(value[0]) for value in self.predict(self.best))
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "source": self.law.source,
            "parameters": rows,
            "best": {"at": self.best, "rfid": central, "low": _or_none(low), "high": _or_none(high)},
            "residuals": self.residuals,
            "confidence": self.confidence,
            "rmse": self.rmse,
            "log_rmse": self.log_rmse,
            "n_rows": self.n_rows,
            "n_configurations": self.n_configurations,
            "converged_share": self.converged_share,
            "spearman": self.spearman,
            "bootstrap": {
                "requested": self.bootstrap_requested,
                "failed": self.bootstrap_failed,
                "redrawn": self.bootstrap_redrawn,
            },
            "excluded": self.excluded,
            "warnings": list(self.warnings),
            "protocol": self.protocol,
            "features": self.features,
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON to ``path``; folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def _frame(where: Mapping[str, object]) -> pd.DataFrame:
    columns = {name: np.atleast_1d(np.asarray(value)) for name, value in where.items()}
    return pd.DataFrame(dict(zip(columns, np.broadcast_arrays(*columns.values()), strict=True)))


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
