"""Predict what a grid will tell before any of it has run: the interval to expect for each parameter.

Of a law with given coefficients, linear around them, with slopes J of the logarithm of its value at each run, seed
noise sigma (relative) and no other scatter: t sigma sqrt of the diagonal of (J'J)^-1, with Student's t for
(configurations - k) degrees of freedom, which is what the fit's own intervals come to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.designing.target import interval_text
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import t_quantile
from gsq.analysis.fitting.result import or_none
from gsq.analysis.laws.named import Law, get_law
from gsq.analysis.tables.table import configuration_ids, with_derived

SEED_NOISE = 0.05
_SINGULAR = 1e-10  # of the eigenvalues of J'J with columns of unit length


@dataclass(frozen=True)
class Power:
    """The intervals to expect from a grid."""

    law: Law
    coefficients: dict[str, float]
    source: str
    """Where the coefficients come from."""
    noise: float
    confidence: float
    configurations: int
    runs: int
    half: dict[str, float]
    """Half of the expected interval of each parameter; infinite where the grid does not determine it."""
    intervals: dict[str, tuple[float, float]]
    """Intervals around the coefficients, in the logarithm for positive amplitudes; infinite where open."""

    def text(self) -> str:
        """Return the law, and a line for each parameter."""
        width = max(map(len, self.half))
        lines = [
            f"{self.law.name}: {self.law.formula}",
            f"  {self.configurations} configurations, {self.runs} runs; seed noise {self.noise:.1%}; coefficients "
            f"{self.source}",
        ]
        for name, half in self.half.items():
            value = self.coefficients[name]
            if not np.isfinite(half):
                lines.append(f"  {name:<{width}} = {value:.4g}  open: this grid does not determine it")
                continue
            relative = f" (+-{half / abs(value):.1%})" if half < abs(value) else ""
            shown = interval_text(self.intervals[name])
            lines.append(f"  {name:<{width}} = {value:.4g}  expected {self.confidence:.0%} interval {shown}{relative}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; open ends become None."""
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "coefficients": self.coefficients,
            "source": self.source,
            "noise": self.noise,
            "confidence": self.confidence,
            "configurations": self.configurations,
            "runs": self.runs,
            "parameters": {
                name: {"half": or_none(half), "low": or_none(pair[0]), "high": or_none(pair[1])}
                for (name, half), pair in zip(self.half.items(), self.intervals.values(), strict=True)
            },
        }


def power(
    cells: pd.DataFrame,
    law: str | Law = "power_law_bpp",
    *,
    coefficients: Mapping[str, float] | None = None,
    noise: float = SEED_NOISE,
    confidence: float = 0.95,
) -> Power:
    """Predict the intervals of a fit of ``law``, in log residuals, to one run of each row of ``cells``.

    cells: the law's columns (derived axes may follow from others), a row a run, seeds as rows of their own. noise:
    standard deviation between seeds, relative. coefficients: in place of the law's own (``Law.reference``).

    The intervals assume that the law is right and that seeds are the only noise; otherwise, expect wider ones. Raises
    AnalysisError for a grid that cannot carry the law, or parameters without a coefficient.
    """
    chosen = get_law(law, [str(name) for name in cells.columns])
    given = dict(coefficients or {})
    unknown = [name for name in given if name not in chosen.parameters]
    if unknown:
        raise AnalysisError(f"{chosen.name} has no parameter {unknown[0]!r}; it has {', '.join(chosen.parameters)}")
    values = {**chosen.reference, **given}
    missing = [name for name in chosen.parameters if name not in values]
    if missing:
        raise AnalysisError(
            f"{chosen.name} has no reference coefficients for {', '.join(missing)}; give them (--coefficient "
            f"{missing[0]}=NUMBER)"
        )
    if not 0 < noise < np.inf:
        raise AnalysisError(f"noise is the standard deviation between seeds, above 0 (0.05 is 5 %); got {noise:g}")
    if not 0 < confidence < 1:
        raise AnalysisError(f"confidence must lie between 0 and 1, got {confidence:g}")
    frame = with_derived(cells)
    reason = chosen.reason_not(frame)
    if reason is not None:
        raise AnalysisError(reason)
    theta = np.array([values[name] for name in chosen.parameters])
    form, data = chosen.form(chosen.parameters), chosen.values(frame)
    value, slope = form.both(theta[None], data, data.mean(axis=1))
    with np.errstate(all="ignore"):
        slopes = (slope / value)[:, 0].T
    if not (value > 0).all() or not np.isfinite(slopes).all():
        shown = ", ".join(f"{name} = {values[name]:g}" for name in chosen.parameters)
        raise AnalysisError(f"{chosen.name} with {shown} has no positive, finite value at every cell of the grid")
    size = np.linalg.norm(slopes, axis=0)
    unit = slopes / np.where(size > 0, size, 1)
    eigenvalues, vectors = np.linalg.eigh(unit.T @ unit)
    lost = eigenvalues < _SINGULAR * len(theta)
    inverse = (vectors[:, ~lost] / eigenvalues[~lost]) @ vectors[:, ~lost].T
    blind = (vectors[:, lost] ** 2).sum(axis=1) > 1e-6  # in a direction that no run sees
    configurations = int(configuration_ids(frame, chosen.columns).max()) + 1
    quantile = t_quantile((1 + confidence) / 2, configurations - len(theta))
    with np.errstate(all="ignore"):
        half = np.where(blind | (size == 0), np.inf, quantile * noise * np.sqrt(np.diag(inverse)) / size)
    intervals = {}
    for name, middle, width in zip(chosen.parameters, theta, half, strict=True):
        if chosen.bounds.get(name) == (0.0, np.inf) and middle > 0:
            ratio = np.exp(width / middle)
            intervals[name] = (float(middle / ratio), float(middle * ratio))
        else:
            intervals[name] = (float(middle - width), float(middle + width))
    own = [name for name in chosen.parameters if name not in given]
    source = "as given" if not own else "fitted to the paper's numbers" + (f" but {', '.join(given)}" if given else "")
    return Power(
        law=chosen,
        coefficients={name: float(values[name]) for name in chosen.parameters},
        source=source,
        noise=noise,
        confidence=confidence,
        configurations=configurations,
        runs=len(frame),
        half=dict(zip(chosen.parameters, map(float, half), strict=True)),
        intervals=intervals,
    )
