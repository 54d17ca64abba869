"""The report card of a fit, as text and JSON: everything to know before quoting a number from it.

``analysis.card_figure`` draws it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsq.analysis.checking.generation import Generation, generation
from gsq.analysis.checking.held_out import Errors, HeldOut, held_out
from gsq.analysis.checking.sensitivity import Sensitivity, sensitivity
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import spearman
from gsq.analysis.fitting.outputs import by_output
from gsq.analysis.fitting.result import Fit, interval_text, write_json
from gsq.analysis.jsonable import jsonable
from gsq.analysis.tables.outputs import OUT
from gsq.analysis.tables.table import labels, numbers, varying
from gsq.config.axes import TOKENIZER
from gsq.html import html_table
from gsq.words import counted

_AXES = (*TOKENIZER, "depth", "group_dim", "bits_per_pixel", "bits_per_dimension")
_OTHERS = ("image_size", "width", "learning_rate", "batch_size", "steps", "step", "seed")
TREND = 0.01  # p-value below which residuals that go with an axis are pointed out
ILL = 1e10  # condition number of the normal matrix beyond which half of the digits are gone


@dataclass(frozen=True)
class Trend:
    """The trend of the residuals along an axis."""

    column: str
    x: tuple[float, ...]
    error: tuple[float, ...]
    """Residuals: ln target - ln prediction, or target - prediction."""
    correlation: float
    """Rank correlation."""
    p: float


@dataclass(frozen=True)
class ReportCard:
    """A fit, its errors on rows that it was not fitted to, and what is wrong with it."""

    fit: Fit
    held_out: HeldOut
    trends: tuple[Trend, ...]
    findings: tuple[str, ...]
    """Reasons not to quote the fit, in sentences."""
    sensitivity: Sensitivity
    generation: Generation | None = None
    """The findings of generation probes about the same cells; None without probes or with several protocols."""

    def _repr_html_(self) -> str:
        """Show the fit and the reasons not to quote it, for notebooks."""
        findings = [(one,) for one in self.findings or ("nothing speaks against it",)]
        return self.fit._repr_html_() + html_table("Findings", ("",), findings)

    def text(self) -> str:
        """Return the card as lines of text."""
        fit, held = self.fit, self.held_out
        log = fit.residuals == "log"
        unit = "relative" if log else "absolute"

        def error(one: Errors) -> str:
            value = one.of(log)
            return "cannot be refitted" if np.isnan(value) else f"{value:.3g}"

        lines = [f"Report card of {fit.law.name}", f"  {fit.formula()}", f"  {fit.at_best()}", "", "Parameters"]
        width = max(len(name) for name in fit.parameters)
        for name, value in fit.parameters.items():
            shown = {
                "profile": interval_text(fit.profile_intervals[name]),
                "bootstrap": interval_text(fit.bootstrap_intervals[name]),
            }
            ends = "  ".join(f"{kind} [{text}]" for kind, text in shown.items() if text)
            marks = [f"not determined: {fit.undetermined[name]}"] if name in fit.undetermined else []
            marks += ["at a bound"] if name in fit.at_bound else []
            lines.append(f"  {name:<{width}} {value:>11.4g}  {ends}" + (f"  ({'; '.join(marks)})" if marks else ""))
        raw, inner = fit.condition
        lines += [
            "",
            "Fit",
            f"  {counted(fit.n_rows, 'row')} of {counted(fit.n_configurations, 'configuration')}; {fit.options.loss}, "
            f"{fit.residuals} residuals",
            f"  {fit.errors_text()}, AICc {fit.aicc:.1f}",
            f"  condition number {raw:.2g} ({inner:.2g} as solved); {fit.converged_share:.0%} of "
            f"{fit.options.starts} starts reach the optimum",
        ]
        lines += [f"  {name}: {one.text}" for name, one in by_output(fit).items()]
        if fit.lack_of_fit is not None:
            lines.append(f"  {fit.lack_of_fit.text}")
        lines += ["", f"Errors on rows held out ({unit})", f"  a configuration left out: {error(held.one_out)}"]
        for name in held.level_out:
            lines.append(
                f"  {name}: a level left out {error(held.level_out[name])}; each from the smaller ones "
                f"{error(held.window[name])}; the largest from the others {error(held.largest[name])}"
            )
        lines += [
            "",
            "Sensitivity",
            f"  {self.sensitivity.text(fit.law.outputs[0] if fit.law.outputs else fit.target)}",
        ]
        if self.generation is not None:
            lines += ["", "Generation", *(f"  {line}" for line in self.generation.lines)]
        if self.trends:
            parts = [f"{one.column} {one.correlation:+.2f} (p {one.p:.2g})" for one in self.trends]
            lines += ["", "Residuals against axes (rank correlation)", f"  {', '.join(parts)}"]
        lines += ["", "Findings"] + [f"  - {finding}" for finding in self.findings or ("nothing speaks against it",)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "fit": self.fit.to_dict(),
            "held_out": self.held_out.to_dict(),
            "trends": jsonable({one.column: {"correlation": one.correlation, "p": one.p} for one in self.trends}),
            "sensitivity": self.sensitivity.to_dict(),
            "findings": list(self.findings),
            **({"generation": self.generation.to_dict()} if self.generation is not None else {}),
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON to ``path``; folders are made."""
        write_json(self.to_dict(), Path(path))


def report_card(fit: Fit) -> ReportCard:
    """Make the report card of ``fit``: refit it on parts of its rows, and compare its residuals with every axis that
    varies."""
    held = held_out(fit)
    trends = residual_trends(fit)
    probed = None
    with suppress(AnalysisError):
        probed = generation(fit.rows)
    return ReportCard(fit, held, trends, tuple(_findings(fit, held, trends)), sensitivity(fit), probed)


def residual_trends(fit: Fit) -> tuple[Trend, ...]:
    """Residuals against each axis of the table that varies and each column of the law; of several outputs those of
    each."""
    names = [name for name in dict.fromkeys([*_AXES, *fit.law.columns, *_OTHERS]) if name in fit.rows]
    error = fit.errors()
    found = []
    for name in varying(fit.rows, names):
        x = numbers(fit.rows, name)
        for output in fit.law.outputs or ("",):
            known = np.isfinite(x) & (labels(fit.rows, OUT) == output if output else True)
            if known.sum() < 3 or np.ptp(x[known]) == 0 or np.ptp(error[known]) == 0:
                continue
            what = f"{name} ({output})" if output else name
            found.append(
                Trend(what, tuple(x[known].tolist()), tuple(error[known].tolist()), *spearman(x[known], error[known]))
            )
    return tuple(found)


def _findings(fit: Fit, held: HeldOut, trends: tuple[Trend, ...]) -> list[str]:
    found = []
    if fit.undetermined:
        names = ", ".join(fit.undetermined)
        found.append(f"these data do not determine {names}: quote predictions, not {'them' if ',' in names else 'it'}")
    found += list(fit.warnings)
    if fit.condition[0] > ILL:
        found.append(
            f"a condition number of {fit.condition[0]:.2g}: other parameters predict as well as these; a tool that "
            "solves in the formula's own parameters may stop anywhere among them"
        )
    if fit.converged_share < 0.5:
        found.append(f"{1 - fit.converged_share:.0%} of the starts end elsewhere: do not trust a single optimiser run")
    if fit.lack_of_fit is not None and fit.lack_of_fit.p is not None and fit.lack_of_fit.p < 0.05:
        found.append(f"lack of fit: {fit.lack_of_fit.text}")
    here = fit.log_rmse if fit.residuals == "log" else fit.rmse
    for name, errors in held.largest.items():
        value = errors.of(fit.residuals == "log")
        if value > 2 * here and value > 1e-9:
            found.append(
                f"the largest {name} is missed by {value:.2g}, {value / here:.1f} times the error of the fit: do not "
                "extrapolate in it"
            )
    for one in trends:
        if one.p < TREND:
            found.append(
                f"residuals go with {one.column} (rank correlation {one.correlation:+.2f}): the law misses something "
                "of it"
            )
    return found
