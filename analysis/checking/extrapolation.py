"""Fit learning curves to the beginning of each run and predict its later steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.fit import fit_determined
from gsq.analysis.fitting.options import Options
from gsq.analysis.laws.named import Law, get_law
from gsq.analysis.tables.table import Excluded, measured, numbers
from gsq.words import counted

CURVE_LAWS = ("step_approach", "step_power")


@dataclass(frozen=True)
class Extrapolation:
    """Learning curves that were fitted to their beginnings and predicted at later steps."""

    table: pd.DataFrame
    """One row for each later evaluation: signature, step, the target, predicted, low, high, law."""
    target: str
    fraction: float
    skipped: dict[str, str]
    """The reason why a curve was not fitted, by run."""

    @property
    def error(self) -> float:
        """Root mean square of ln target - ln predicted over the later evaluations."""
        return float(np.sqrt(np.mean(np.log(self.table[self.target] / self.table["predicted"]) ** 2)))

    @property
    def inside(self) -> float:
        """Share of the later evaluations within their interval."""
        return float(self.table[self.target].between(self.table["low"], self.table["high"]).mean())

    @property
    def text(self) -> str:
        runs = self.table["signature"].nunique()
        return (
            f"{counted(runs, 'curve')} fitted on the first {self.fraction:.0%} of their steps: "
            f"{counted(len(self.table), 'later value')} of {self.target} missed by {self.error:.3g} in the logarithm; "
            f"{self.inside:.0%} lie within their intervals"
            + (f"; {counted(len(self.skipped), 'curve')} left out" if self.skipped else "")
        )


def extrapolate(
    frame: pd.DataFrame,
    target: str = "rfid",
    laws: Sequence[str | Law] = CURVE_LAWS,
    fraction: float = 0.5,
    options: Options | None = None,
) -> Extrapolation:
    """Fit each run's ``target`` against its step on the first ``fraction`` of its steps, and predict the rest.

    Each curve takes the one of ``laws`` with the smallest AICc on its first part; intervals are for one evaluation. A
    curve needs two more evaluations than parameters in that part. Raises AnalysisError where no curve has them.
    """
    if not 0 < fraction < 1:
        raise AnalysisError(f"fraction must lie between 0 and 1, got {fraction}")
    options = options or Options(bootstrap=200, starts=16, bootstrap_starts=2)
    chosen = [get_law(law, [str(name) for name in frame.columns], target=target) for law in laws]
    if "signature" not in frame:
        frame = frame.assign(signature="one run")
    rows, _ = measured(frame, target, ["step"])
    parts, skipped = [], {}
    for signature, run in rows.groupby("signature", sort=False):
        run = run.sort_values("step").reset_index(drop=True)
        early = numbers(run, "step") <= fraction * numbers(run, "step").max()
        first, later = run[early].reset_index(drop=True), run[~early].reset_index(drop=True)
        fits, reason = [], f"{counted(len(first), 'evaluation')} in the first {fraction:.0%} of its steps"
        for law in chosen:
            if len(first) < len(law.parameters) + 2:
                continue
            try:
                fits.append(fit_determined(first, Excluded.none(first), law, options))
            except AnalysisError as error:
                reason = str(error)
        if not fits or not len(later):
            skipped[str(signature)] = reason
            continue
        best = min(fits, key=lambda one: (np.isnan(one.aicc), one.aicc))
        middle, low, high = best.predict(later, single_run=True)
        parts.append(
            later[["signature", "step", target]].assign(predicted=middle, low=low, high=high, law=best.law.name)
        )
    if not parts:
        why = next(iter(skipped.values()), "no run")
        raise AnalysisError(
            f"no learning curve can be fitted ({why}); evaluate more often: evaluation.every in the sweep's set"
        )
    return Extrapolation(pd.concat(parts, ignore_index=True), target, fraction, skipped)
