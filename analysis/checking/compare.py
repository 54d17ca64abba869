"""Compare laws: errors on rows that a fit has not seen, AICc, and predictions averaged over laws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from gsq.analysis.checking.held_out import HeldOut, held_out
from gsq.analysis.errors import AnalysisError, together
from gsq.analysis.fitting.distributions import t_quantile
from gsq.analysis.fitting.fit import fit_determined
from gsq.analysis.fitting.options import Options
from gsq.analysis.fitting.result import Fit
from gsq.analysis.laws.named import COMPARED, Law, get_law
from gsq.analysis.tables.remembering import remembering
from gsq.analysis.tables.table import Array, Excluded, is_results
from gsq.words import counted


@dataclass(frozen=True)
class Comparison:
    """Laws fitted to the same rows."""

    fits: tuple[Fit, ...]
    """The fits in the order of AICc, the best first."""
    held_out: tuple[HeldOut, ...]
    weights: tuple[float, ...]
    """AICc weights: exp(-difference / 2), summing to one; 0 where there is no AICc."""
    not_fitted: dict[str, str] = field(default_factory=dict)
    """The reason why the table does not support a law, by law."""

    @property
    def table(self) -> pd.DataFrame:
        """One row a law: k, rmse, log_rmse, aicc, weight, loo (as the residuals: relative or absolute), largest held
        out for each axis, lack-of-fit p, parameters that are not determined."""
        log = self.fits[0].residuals == "log"
        rows = []
        for fit, held, weight in zip(self.fits, self.held_out, self.weights, strict=True):
            row: dict[str, object] = {
                "law": fit.law.name,
                "k": len(fit.parameters),
                "rmse": fit.rmse,
                "log_rmse": fit.log_rmse,
                "aicc": fit.aicc,
                "delta": fit.aicc - self.fits[0].aicc,
                "weight": weight,
                "loo": held.one_out.of(log),
            }
            row.update({f"out {name}": one.of(log) for name, one in held.level_out.items()})
            row.update({f"largest {name}": one.of(log) for name, one in held.largest.items()})
            row["p"] = None if fit.lack_of_fit is None else fit.lack_of_fit.p
            row["undetermined"] = ", ".join(fit.undetermined)
            rows.append(row)
        return pd.DataFrame(rows)

    def predict(
        self, where: pd.DataFrame | Mapping[str, object], *, single_run: bool = False
    ) -> tuple[Array, Array, Array]:
        """Prediction averaged over the laws by their AICc weights (with log residuals, its logarithm): (central, low,
        high), each (rows,).

        ``single_run``: the laws' own bands hold the scatter of one new run as well, see :meth:`Fit.predict`.

        The squared half width of the band is the weighted mean of the laws' own and of t times their distance from the
        average (Burnham and Anderson), so it holds their disagreement. Raises AnalysisError where no law has an AICc.
        """
        parts = [(fit, weight) for fit, weight in zip(self.fits, self.weights, strict=True) if weight > 1e-4]
        if not parts:
            raise AnalysisError(
                "no law has an AICc to weight an average by: there are too few rows, or the loss is not least_squares"
            )

        share = np.array([weight for _, weight in parts])[:, None] / sum(weight for _, weight in parts)
        middle, low, high = (
            np.stack(found)
            for found in zip(*(fit.predict(where, single_run=single_run) for fit, _ in parts), strict=True)
        )
        # Where residuals are relative, so are bands; otherwise a wide one would reach below 0.
        log = self.fits[0].residuals == "log"
        if log:
            middle, low, high = np.log(middle), np.log(low), np.log(high)
        central = np.asarray((share * middle).sum(axis=0))
        freedom = max(1, min(fit.freedom[1] for fit, _ in parts))
        apart = (t_quantile((1 + self.fits[0].confidence) / 2, freedom) * (middle - central)) ** 2
        below, above = (np.sqrt((share * ((end - middle) ** 2 + apart)).sum(axis=0)) for end in (low, high))
        band = central, central - below, central + above
        return (np.exp(band[0]), np.exp(band[1]), np.exp(band[2])) if log else band

    @property
    def rows_text(self) -> str:
        """Say in words which rows the laws were fitted to."""
        one = self.fits[0]
        which = _which(one.law, one.rows)
        rows = f"{counted(one.n_rows, 'row')} of {counted(one.n_configurations, 'configuration')}"
        return f"{rows}, {which}" if which else rows

    def text(self) -> str:
        """Return the rows used, a table of laws, a table of held-out levels, and what was not fitted."""
        log = self.fits[0].residuals == "log"
        unit = "relative" if log else "absolute"
        columns = ["law", "k", "rmse", "log_rmse", "aicc", "weight", "loo", "p", "undetermined"]
        lines = [f"{self.rows_text}:"]
        lines += _aligned(
            [columns, *([_shown(row[name], name) for name in columns] for _, row in self.table.iterrows())]
        )
        lines.append(f"loo: {unit} error for a configuration left out; p: lack of fit (-: no seeds)")
        axes = list(self.held_out[0].level_out)
        if axes:
            lines += ["", f"{unit} error for a level of an axis left out / for the largest, predicted from the others"]
            rows = [["law", *axes]]
            for fit, held in zip(self.fits, self.held_out, strict=True):
                pairs = [(held.level_out.get(name), held.largest.get(name)) for name in axes]
                errors = [[one and one.of(log) for one in pair] for pair in pairs]
                rows.append([fit.law.name, *(" / ".join(_shown(error) for error in pair) for pair in errors)])
            lines += _aligned(rows)
        lines += [f"Not fitted: {reason}." for reason in self.not_fitted.values()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        laws = [
            {**fit.to_dict(), "weight": weight, "held_out": held.to_dict()}
            for fit, held, weight in zip(self.fits, self.held_out, self.weights, strict=True)
        ]
        return {"rows": self.rows_text, "laws": laws, "not_fitted": self.not_fitted}


def compare_laws(
    frame: pd.DataFrame, laws: Sequence[str | Law] | None = None, options: Options | None = None
) -> Comparison:
    """Fit ``laws`` (default: every named law whose columns the table has) to the same rows of ``frame``.

    The rows are those that each law uses in a fit of its own (:meth:`Law.rows`). Laws of rate use the last row of each
    run, and laws that read step use every evaluation, so the two cannot be compared. By default this compares the named
    laws of rate, or those that read step if the table supports no others; :func:`comparisons` returns both. A named law
    whose columns are empty in some rows is not fitted, either.

    Raises AnalysisError where no law can be carried, or where those asked for have different targets or rows.
    """
    kinds, reasons = _kinds(frame, laws)
    compared, apart = next(_compared(kinds, reasons, options or Options()), (None, []))
    if compared is None:
        raise together(reasons)
    for one in (one for kind in apart for one in kind):
        reasons[one.law.name] = f"{one.what}, and is compared only with laws of its kind"
    return replace(compared, not_fitted={**reasons, **compared.not_fitted})


@remembering()
def comparisons(
    frame: pd.DataFrame, laws: Sequence[str | Law] | None = None, options: Options | None = None
) -> tuple[Comparison, ...]:
    """:func:`compare_laws` of the laws of rate and, where none are named and the table carries any, of those of steps.

    Raises AnalysisError like it.
    """
    kinds, reasons = _kinds(frame, laws)
    found = [one for one, _ in _compared(kinds, reasons, options or Options())]
    if not found:
        raise together(reasons)
    return (replace(found[0], not_fitted={**reasons, **found[0].not_fitted}), *found[1:])


Kinds = list[list["Candidate"]]


def _kinds(frame: pd.DataFrame, laws: Sequence[str | Law] | None) -> tuple[Kinds, dict[str, str]]:
    """Group the laws that the table supports by the rows that they use, and give the reason for every other law.

    Raises AnalysisError for laws named by the user that use different rows or have different targets."""
    names = [str(name) for name in frame.columns]
    chosen = [get_law(law, names) for law in (COMPARED if laws is None else laws)]
    if len({law.target for law in chosen}) > 1:
        raise AnalysisError(
            f"laws of different targets cannot be compared: {', '.join(sorted({x.target for x in chosen}))}"
        )
    reasons: dict[str, str] = {}
    possible: list[Candidate] = []
    for law in chosen:
        try:
            rows, excluded = law.rows(frame)
            reason = law.reason_not(rows)
        except AnalysisError as error:
            reason = str(error)
        if reason is None:
            possible.append(Candidate(law, rows, excluded))
        else:
            reasons[law.name] = reason
    if not possible:
        raise together(reasons)
    if laws is not None:
        _refuse_other_rows(possible)
        return [possible], reasons
    by_kind = ([one for one in possible if one.law.of_steps == of_steps] for of_steps in (False, True))
    return [kind for kind in by_kind if kind], reasons


def _compared(kinds: Kinds, reasons: dict[str, str], options: Options) -> Iterator[tuple[Comparison, Kinds]]:
    """The comparison of each kind of which a law can be fitted, and the kinds after it; ``reasons`` get those of the
    others."""
    for number, kind in enumerate(kinds):
        same, fewer = _of_most_rows(kind)
        try:
            found = _fitted(same, fewer, options)
        except AnalysisError as error:
            reasons |= {one.law.name: str(error) for one in kind}
            continue
        yield found, kinds[number + 1 :]


@dataclass(frozen=True)
class Candidate:
    """A law and the rows that it uses."""

    law: Law
    rows: pd.DataFrame
    excluded: Excluded

    @property
    def what(self) -> str:
        """Describe the law and its rows in words."""
        which = _which(self.law, self.rows)
        holes = "; ".join(f"{n} {reason}" for reason, n in self.excluded.counts.items() if reason.startswith("without"))
        return f"{self.law.name} takes {which or 'every row'}, {len(self.rows)} in all{f' ({holes})' if holes else ''}"

    def same_rows(self, other: Candidate) -> bool:
        """Whether both use the same rows."""
        if len(self.rows) != len(other.rows):
            return False
        names = [name for name in ("signature", "step", self.law.target) if name in self.rows]
        shared = dict.fromkeys([*names, *(name for name in self.rows if name in other.law.columns)])
        return all(self.rows[name].equals(other.rows[name]) for name in shared)


def _which(law: Law, rows: pd.DataFrame) -> str:
    """Say which rows of a results table a law uses; "" for other tables, of which it uses every row."""
    if not is_results(rows):
        return ""
    return "every evaluation" if law.of_steps else "the last row of each run"


def _refuse_other_rows(laws: Sequence[Candidate]) -> None:
    """Raise AnalysisError if two laws use different rows: their errors and AICc cannot be compared."""
    first = laws[0]
    for other in laws[1:]:
        if not first.same_rows(other):
            kinds = first.law.of_steps != other.law.of_steps
            fix = (
                "compare laws that read step only with each other"
                if kinds
                else "leave one of them out, or drop the rows that lack a column"
            )
            raise AnalysisError(f"laws on different rows cannot be compared: {first.what}; {other.what}: {fix}")


def _of_most_rows(laws: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, str]]:
    """Return the laws that use the most rows, and why the others are not compared with them."""
    first = max(laws, key=lambda one: len(one.rows))
    same = [one for one in laws if one.same_rows(first)]
    return same, {
        one.law.name: f"{one.what}, and is not compared with laws of {len(first.rows)} rows"
        for one in laws
        if not any(one is other for other in same)
    }


def _fitted(laws: Sequence[Candidate], reasons: Mapping[str, str], options: Options) -> Comparison:
    not_fitted, fits = dict(reasons), []
    for one in laws:
        try:
            fits.append(fit_determined(one.rows, one.excluded, one.law, options))
        except AnalysisError as error:
            not_fitted[one.law.name] = str(error)
    if not fits:
        raise together(not_fitted)
    fits.sort(key=lambda one: (np.isnan(one.aicc), one.aicc))
    return Comparison(tuple(fits), tuple(held_out(one) for one in fits), aicc_weights(fits), not_fitted)


def aicc_weights(fits: Sequence[Fit]) -> tuple[float, ...]:
    """exp(-difference of AICc / 2) of fits to the same rows, summing to one; 0 where there is no AICc."""
    values = np.array([one.aicc for one in fits])
    if np.isnan(values).all():
        return (0.0,) * len(fits)
    shares = np.where(np.isnan(values), 0, np.exp(-(np.nan_to_num(values) - np.nanmin(values)) / 2))
    return tuple(float(share / shares.sum()) for share in shares)


def _shown(value: object, name: str = "") -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if name == "aicc" else f"{value:.3g}"
    return str(value)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
