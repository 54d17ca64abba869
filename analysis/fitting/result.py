"""The result of a fit: parameters with intervals, predictions with a band, and plain words about both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.derived import Derived, Quantity, parameter_expression, region_ends
from gsq.analysis.fitting.distributions import t_quantile
from gsq.analysis.fitting.intervals import delta_band, percentile_interval
from gsq.analysis.fitting.noise import LackOfFit
from gsq.analysis.fitting.outputs import by_output
from gsq.analysis.fitting.solver import Problem
from gsq.analysis.jsonable import jsonable, picked
from gsq.analysis.laws.formula import split_target, with_numbers
from gsq.analysis.laws.named import Law
from gsq.analysis.tables.outputs import OUT
from gsq.analysis.tables.table import Array, Index, completed, labels, quoted
from gsq.files import write_text
from gsq.html import html_table
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.analysis.fitting.options import Intervals, Options, Residuals


@dataclass(frozen=True)
class Fit:
    """A fitted law. ``intervals`` are those shown: profile likelihood for least squares, else bootstrap by
    configuration."""

    law: Law
    options: Options
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """(low, high) of each parameter, of the kind shown; infinite if open, NaN without an interval."""
    interval_kind: Intervals
    profile_intervals: dict[str, tuple[float, float]]
    """Profile intervals by the F test on the sum of squares; NaN for losses other than least squares."""
    bootstrap_intervals: dict[str, tuple[float, float]]
    """Bootstrap intervals: expanded percentiles of the resamples; NaN without a bootstrap."""
    undetermined: dict[str, str]
    """Parameters that these data do not determine, and why: see :func:`gsq.analysis.fitting.intervals.undetermined`."""
    confounded: tuple[tuple[str, ...], ...]
    """Parameters that the rows cannot tell apart, and (alone) those that nothing in the rows depends on. Predictions at
    settings like those measured hold all the same; of the parameters the smallest that fit are given."""
    room: float
    """The rise of the cost at the ends of profile intervals and of their bands."""
    at_bound: tuple[str, ...]
    """Parameters that ended at a bound."""
    residuals: Residuals
    confidence: float
    cost: float
    """The sum that was minimised: of squares (relative for log residuals), or of the loss."""
    rmse: float
    """Root mean square of target - prediction over the rows."""
    log_rmse: float
    """Root mean square of ln target - ln prediction over the rows."""
    n_rows: int
    n_configurations: int
    freedom: tuple[int, int]
    """How many units the intervals count, configurations or, where the law needs every replicate, rows; and how many
    degrees of freedom the law leaves of them."""
    converged: bool
    """Whether the best start converged; otherwise the parameters are the best that were found."""
    converged_share: float
    """Share of random starts that end within 1e-6 (relative, in the sum) of the best."""
    condition: tuple[float, float]
    """Condition number of the normal matrix J'J: in the formula's parameters, and in those that the solver uses."""
    lack_of_fit: LackOfFit | None
    spearman: float | None
    """Rank correlation of bits_per_pixel with the target over the rows; None where bits_per_pixel is constant."""
    bootstrap_requested: int
    bootstrap_failed: int
    bootstrap_redrawn: int
    excluded: str
    """The rows that the fit leaves out, in words; "" if it uses them all."""
    warnings: tuple[str, ...]
    protocol: str | None
    features: str | None
    best: dict[str, float | str]
    """The law's columns, those of levels included, at the row with the smallest predicted target."""
    theta: Array = field(repr=False, compare=False)
    """Internal parameters, shape (k,)."""
    draws: Array = field(repr=False, compare=False)
    """Internal parameters of the bootstrap refits, shape (done, k)."""
    problem: Problem = field(repr=False, compare=False)
    weights: Array = field(repr=False, compare=False)
    configurations: Index = field(repr=False, compare=False)
    rows: pd.DataFrame = field(repr=False, compare=False)
    """The rows used."""
    ranges: tuple[tuple[float, float] | None, ...] = field(repr=False, compare=False)
    scales: Array = field(repr=False, compare=False)

    @property
    def target(self) -> str:
        return self.law.target

    @property
    def rank(self) -> int:
        """Parameters that the rows can tell apart."""
        return self.freedom[0] - self.freedom[1]

    @property
    def aicc(self) -> float:
        """n ln(RSS / n) + 2K + 2K(K+1) / (n - K - 1), K = k + 1 counting the noise variance; NaN where n is too small
        or the loss is not least squares. Compare only fits of the same rows and residuals."""
        n, k = self.n_rows, self.rank + 1
        if self.options.loss != "least_squares" or n - k - 1 <= 0 or self.cost <= 0:
            return np.nan
        return float(n * np.log(self.cost / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))

    @property
    def scatter(self) -> float:
        """Standard deviation of a run about the law, with n - k degrees of freedom (relative for log residuals)."""
        error = self.errors()
        left = max(1, self.n_rows - self.rank)
        return float(np.sqrt(np.sum(self.weights * error**2) / left))

    @np.errstate(all="ignore")
    def errors(self) -> Array:
        """Residuals of the rows, (n,): ln target - ln prediction, or target - prediction."""
        value = self.problem.predict(self.theta[None])[0]
        target = self.problem.target
        return np.asarray(np.log(target) - np.log(value) if self.residuals == "log" else target - value)

    @np.errstate(all="ignore")  # open ends
    def predict(
        self,
        where: pd.DataFrame | Mapping[str, object],
        *,
        single_run: bool = False,
        kind: Intervals | None = None,
    ) -> tuple[Array, Array, Array]:
        """Predicted target and its band: (central, low, high), each of shape (rows,).

        The band, of the kind of ``intervals`` or of ``kind`` (profile: by the delta method), is the uncertainty of the
        law's value and assumes that the law holds there; with ``single_run`` it holds the scatter of one new run as
        well. NaN where there is none (no degree of freedom left, or no bootstrap).

        ``where`` has the law's columns (derived axes may be given as what they follow from; depth and levels are those
        of the fitted rows where it has none); a mapping may hold scalars. Raises AnalysisError where a column is
        missing, or a depth that is not the same in all fitted rows.
        """
        frame = where if isinstance(where, pd.DataFrame) else as_frame(where)
        data = self.law.values(completed(frame, self.rows, self.law.columns))
        central = self.problem.predict(self.theta[None], data)[0]
        freedom = self.freedom
        kind = kind or self.interval_kind
        if kind == "none":
            low = high = np.full_like(central, np.nan)
        elif kind == "profile":
            low, high = delta_band(self.problem, self.theta, self.weights, self.room, data)
        else:
            sampled = self.problem.predict(self.draws, data)
            low, high = percentile_interval(sampled, self.confidence, freedom, self.options.loss)
        if single_run:
            wide = t_quantile((1 + self.confidence) / 2, max(1, freedom[1])) * self.scatter
            if self.law.outputs:
                of = {name: one.scatter for name, one in by_output(self).items()}
                wide = wide / self.scatter * np.array([of[name] for name in labels(frame, OUT)])
            if self.residuals == "log":
                low = central * np.exp(-np.hypot(np.log(central / low), wide))
                high = central * np.exp(np.hypot(np.log(high / central), wide))
            else:
                low = central - np.hypot(central - low, wide)
                high = central + np.hypot(high - central, wide)
        return central, low, high

    def derive(self, expression: str, quantity: Quantity | None = None) -> Derived:
        """Compute a quantity that follows from the parameters, with its intervals: ``fit.derive("b / (a + b)")``.

        It may be well determined where no parameter is. ``quantity``: computes it from natural parameters, where it is
        no expression; ``expression`` is then its name. Raises AnalysisError for what cannot be read, names that are no
        parameters, and a quantity that is not finite at the fit.
        """
        compute = quantity or parameter_expression(expression, self.law)
        centre = self.problem.centre
        value = float(compute(self.problem.form.natural(self.theta[None], centre))[0])
        if not np.isfinite(value):
            raise AnalysisError(f"{expression} is not a finite number at the fitted parameters ({value:g})")
        nothing = np.nan, np.nan
        by_profile = nothing
        if self.interval_kind == "profile" and self.freedom[1] > 0:
            by_profile = value, value
            if self.room > 0:
                by_profile = region_ends(self.problem, self.theta, self.weights, self.room, compute, self.draws)
        by_bootstrap = nothing
        if len(self.draws):
            sampled = compute(self.problem.form.natural(self.draws, centre))
            low, high = percentile_interval(sampled[~np.isnan(sampled)], self.confidence, self.freedom)
            by_bootstrap = float(low), float(high)
        shown = by_profile if self.interval_kind == "profile" else by_bootstrap
        return Derived(expression, value, shown, by_profile, by_bootstrap)

    def formula(self) -> str:
        """The formula with its numbers; undetermined parameters stay letters."""
        numbers = {
            name: f"{value:.4g}" if value >= 0 else f"({value:.4g})"
            for name, value in self.parameters.items()
            if name not in self.undetermined
        }
        for name, (base, column) in self.law.indexed.items():
            each = {level: numbers.pop(f"{base}[{level}]", None) for level in self.law.levels[column]}
            if None not in each.values():
                numbers[name] = f"{{{', '.join(f'{level}: {value}' for level, value in each.items())}}}[{column}]"
        return f"{quoted(self.target)} = {with_numbers(split_target(self.law.formula)[1], numbers)}"

    def at_best(self) -> str:
        """Return the smallest predicted target among the rows with its interval, which any fit may quote."""
        place = ", ".join(
            f"{name} = {value}" if isinstance(value, str) else f"{name} = {value:g}"
            for name, value in self.best.items()
            if name != OUT or not self.law.outputs
        )
        central, low, high = (float(value[0]) for value in self.predict(self.best))
        shown = {name: (one.best, *one.interval) for name, one in by_output(self).items()}
        shown = shown or {self.target: (central, low, high)}
        values = [
            f"{name} {value:.4g}" + ("" if np.isnan(low) else f" [{low:.4g}, {high:.4g}]")
            for name, (value, low, high) in shown.items()
        ]
        return f"at {place}: {', '.join(values)}"

    def quality(self) -> str:
        """Size, errors, starts and bootstrap counts in one or two lines."""
        relative = "" if np.isnan(self.log_rmse) else f" (log {self.log_rmse:.3g})"
        lines = [
            f"{counted(self.n_rows, 'row')} of {counted(self.n_configurations, 'configuration')}, {self.residuals} "
            "residuals; "
            f"RMSE {self.rmse:.4g}{relative}"
            + ("" if self.spearman is None else f"; Spearman(bits_per_pixel, {self.target}) {self.spearman:.3f}"),
            f"{self.converged_share:.0%} of {self.options.starts} starts reach "
            f"{'the optimum' if self.converged else 'the best value found (not converged)'}; "
            f"{self.confidence:.0%} intervals: {KINDS[self.interval_kind]}",
        ]
        if self.bootstrap_requested:
            lines[1] += (
                f"; {self.bootstrap_requested} resamples by configuration "
                f"({self.bootstrap_failed} failed, {self.bootstrap_redrawn} drawn again)"
            )
        return "\n".join([*lines, *(f"{name}: {one.text}" for name, one in by_output(self).items())])

    def errors_text(self, digits: int = 4) -> str:
        """ "RMSE 0.0416, log-RMSE 0.00743", without the latter where a value has no logarithm."""
        relative = "" if np.isnan(self.log_rmse) else f", log-RMSE {self.log_rmse:.3g}"
        return f"RMSE {self.rmse:.{digits}g}{relative}"

    def summary(self) -> str:
        """The formula with its numbers, one parameter a line, fit quality, and what was left out."""
        width = max(len(name) for name in self.parameters)
        lines = [f"{self.law.name}: {self.formula()}", f"  {self.at_best()}"]
        for name, value in self.parameters.items():
            line = f"  {name:<{width}} = {value:.4g}"
            shown = interval_text(self.intervals[name])
            line += f"  [{shown}]" if shown else ""
            if name in self.undetermined:
                line += f"  not determined by these data ({self.undetermined[name]})"
            lines.append(line)
        lines += [f"  {line}" for line in self.quality().splitlines()]
        if self.features or self.protocol:
            lines.append(f"  {self.target} in {self.features or 'unnamed features'}, protocol {self.protocol}")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = ((n, f"{v:.4g}", interval_text(self.intervals[n], " to ")) for n, v in self.parameters.items())
        notes = (f"intervals of {self.confidence:.0%}; {self.quality()}", *self.warnings)
        return html_table(f"{self.law.name}: {self.formula()}", ("parameter", "value", "interval"), rows, notes)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready: numbers, strings, lists and dicts; NaN and open ends become None. The draws are left out."""

        def ends(pair: tuple[float, float]) -> dict[str, object]:
            sides = [side for side, end in zip(("low", "high"), pair, strict=True) if np.isinf(end)]
            return {"low": or_none(pair[0]), "high": or_none(pair[1]), "open": sides}

        def bound(end: float | str) -> float | str | None:
            return end if isinstance(end, str) else or_none(end)

        rows = {
            name: {
                "value": value,
                **ends(self.intervals[name]),
                "profile": ends(self.profile_intervals[name]),
                "bootstrap": ends(self.bootstrap_intervals[name]),
                "determined": name not in self.undetermined,
                "why_not": self.undetermined.get(name),
                "at_bound": name in self.at_bound,
            }
            for name, value in self.parameters.items()
        }
        central, low, high = (float(value[0]) for value in self.predict(self.best))
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "source": self.law.source,
            "target": self.target,
            **({"outputs": jsonable(by_output(self))} if self.law.outputs else {}),
            **({"levels": {name: list(levels) for name, levels in self.law.levels.items()}} if self.law.levels else {}),
            "bounds": {name: [bound(end) for end in pair] for name, pair in self.law.bounds.items()},
            "starts": {name: list(pair) for name, pair in self.law.starts.items()},
            "options": asdict(self.options),
            "parameters": rows,
            "best": {"at": self.best, self.target: central, "low": or_none(low), "high": or_none(high)},
            "residuals": self.residuals,
            "loss": self.options.loss,
            "intervals": self.interval_kind,
            **picked(self, "confidence", "cost", "rmse", "log_rmse", "aicc", "n_rows", "n_configurations", "converged"),
            **picked(self, "converged_share", "confounded", "condition", "lack_of_fit", "spearman"),
            "bootstrap": {kind: getattr(self, f"bootstrap_{kind}") for kind in ("requested", "failed", "redrawn")},
            **picked(self, "excluded", "warnings", "protocol", "features"),
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON to ``path``; folders are made."""
        write_json(self.to_dict(), Path(path))


KINDS = {"profile": "profile likelihood", "bootstrap": "bootstrap by configuration", "none": "none"}


def confounded_text(groups: tuple[tuple[str, ...], ...]) -> str:
    """Say which parameters the rows cannot tell apart or do not depend on."""
    return "; ".join(
        f"these rows cannot tell {', '.join(group)} apart"
        if len(group) > 1
        else f"nothing in these rows depends on {group[0]}"
        for group in groups
    )


def interval_text(pair: tuple[float, float], joint: str = ", ") -> str:
    """ "1.2, 3.4"; "open" for an infinite end; "" where there is no interval."""
    if np.isnan(pair).any():
        return ""
    return joint.join("open" if np.isinf(end) else f"{end:.4g}" for end in pair)


def write_json(document: object, path: Path) -> None:
    """Write ``document`` to ``path`` whole or not at all, creating its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def as_frame(where: Mapping[str, object]) -> pd.DataFrame:
    """Columns or scalars as a frame."""
    columns = {name: np.atleast_1d(np.asarray(value)) for name, value in where.items()}
    lengths = {name: len(one) for name, one in columns.items() if len(one) != 1}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise AnalysisError(f"the settings to predict have as many values in each column, or one; got {found}")
    return pd.DataFrame(dict(zip(columns, np.broadcast_arrays(*columns.values()), strict=True)))


def or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
