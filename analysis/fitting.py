"""Fitting a law to a table: many starts, exact derivatives, intervals, and plain words about them.

See :class:`analysis.Fit` for what comes out, ``laws`` and ``formula`` for the forms, ``solver`` for the minimisation
and ``uncertainty`` for the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.laws import Bound, Law, get_law
from analysis.result import Fit, LackOfFit
from analysis.solver import LOSSES, STARTS, Loss, Problem, Residuals, Solution, draw_starts, search
from analysis.table import (
    CONFIGURATION_AXES,
    Array,
    Excluded,
    Index,
    configuration_ids,
    measured,
    numbers,
    single,
    varying,
)
from analysis.uncertainty import Draws, bootstrap, percentile_interval, profile, undetermined

Intervals = Literal["profile", "bootstrap"]
FEW_CONFIGURATIONS = 8  # below this a bootstrap by configuration has too few distinct resamples to be trusted
_TOKENIZER_AXES = ("latent_dim", "groups", "codebook_size", "downsample")


@dataclass(frozen=True)
class Options:
    """How a law is fitted; the defaults are those of :func:`fit`."""

    residuals: Residuals = "log"
    loss: Loss = "least_squares"
    delta: float | None = None
    weights: str | None = None
    noise: float | None = None
    bootstrap: int = 1000
    starts: int = STARTS
    bootstrap_starts: int = 8
    seed: int = 0
    confidence: float = 0.95
    intervals: Intervals | None = None

    def __post_init__(self) -> None:
        if self.residuals not in ("log", "linear"):
            raise AnalysisError(f"residuals must be 'log' or 'linear', got {self.residuals!r}")
        if self.loss not in LOSSES:
            raise AnalysisError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.delta is not None and not 0 < self.delta < np.inf:
            raise AnalysisError(f"delta must be a positive number of residual units, got {self.delta}")
        if self.delta is not None and self.loss == "least_squares":
            raise AnalysisError("delta belongs to the losses huber and cauchy; least_squares has none")
        if self.bootstrap < 0:
            raise AnalysisError(f"bootstrap is a number of resamples, 0 for none; got {self.bootstrap}")
        if self.starts < 1 or self.bootstrap_starts < 1:
            raise AnalysisError(f"starts must be at least 1, got {min(self.starts, self.bootstrap_starts)}")
        if not 0 < self.confidence < 1:
            raise AnalysisError(
                f"confidence must lie between 0 and 1, got {self.confidence}; 0.95 gives 95 % intervals"
            )
        if self.noise is not None and not 0 < self.noise < np.inf:
            raise AnalysisError(f"noise is the standard deviation of a seed, above 0; got {self.noise}")
        if self.intervals not in (None, "profile", "bootstrap"):
            raise AnalysisError(f"intervals must be 'profile' or 'bootstrap', got {self.intervals!r}")
        if self.intervals == "profile" and self.loss != "least_squares":
            raise AnalysisError(f"profile intervals need least_squares; with {self.loss} take intervals='bootstrap'")

    @property
    def kind(self) -> Intervals:
        """The intervals that are shown: profile likelihood for least squares, else bootstrap."""
        return self.intervals or ("profile" if self.loss == "least_squares" else "bootstrap")


def fit(
    frame: pd.DataFrame,
    law: str | Law = "power_law_bpp",
    *,
    target: str | None = None,
    residuals: Residuals = "log",
    loss: Loss = "least_squares",
    delta: float | None = None,
    weights: str | None = None,
    noise: float | None = None,
    bootstrap: int = 1000,
    starts: int = STARTS,
    bootstrap_starts: int = 8,
    seed: int = 0,
    confidence: float = 0.95,
    intervals: Intervals | None = None,
    bounds: Mapping[str, tuple[float, Bound]] | None = None,
    start_ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Fit:
    """Fit ``law``, a named one or a formula such as "rfid = E + A / latent_dim^a", to the measured rows of ``frame``.

    target: the column to predict, in place of the law's own (rfid, if its formula names none).
    residuals: "log" weighs relative errors (rFID spans decades), "linear" absolute ones, as the paper does.
    loss: least_squares, huber or cauchy; ``delta``, in units of the residual, is where the last two leave squares. By
    default huber takes 1e-3 (times the median target in linear residuals), as replications of Chinchilla do, and
    cauchy 2.385 robust standard deviations of the least-squares residuals.
    weights: a column of positive weights, for instance one over a variance.
    noise: standard deviation between seeds, if known (relative for log residuals), for the lack-of-fit test; otherwise
    it is estimated from the seeds in the table.
    bootstrap, bootstrap_starts: resamples by configuration, 0 for none, and starts of each (fewer in tables of more
    than 500 rows).
    starts: random starts of the fit. intervals: the kind shown, profile (default for least squares) or bootstrap.
    bounds, start_ranges: of parameters, added to the law's own.

    The result depends on ``seed`` and nothing else. Raises AnalysisError for a law that is not known or cannot be
    read, a table that cannot carry it (with the reason), mixed protocols, or options out of range.
    """
    options = Options(
        residuals=residuals,
        loss=loss,
        delta=delta,
        weights=weights,
        noise=noise,
        bootstrap=bootstrap,
        starts=starts,
        bootstrap_starts=bootstrap_starts,
        seed=seed,
        confidence=confidence,
        intervals=intervals,
    )
    chosen = get_law(law, [str(name) for name in frame.columns], bounds, start_ranges, target)
    rows, excluded = measured(frame, chosen.target, chosen.columns)
    return fit_rows(rows, excluded, chosen, options)


def fit_by(
    frame: pd.DataFrame,
    by: str,
    law: str | Law = "power_law_bpp",
    *,
    target: str | None = None,
    options: Options | None = None,
) -> tuple[dict[str, Fit], dict[str, str]]:
    """A fit of its own for each value of column ``by``: ({"groups = 4": fit, ...}, {"groups = 8": why not, ...}).

    Raises AnalysisError where the column is missing or empty, or no group can be fitted.
    """
    chosen = get_law(law, [str(name) for name in frame.columns], target=target)
    rows, _ = measured(frame, chosen.target, [name for name in chosen.columns if name == "step"])
    values = list(rows[by].dropna().unique()) if by in rows else []
    if not len(values):
        raise AnalysisError(f"cannot group by {by!r}: the table has no such column, or it is empty")
    found, reasons = {}, {}
    for value in sorted(values):
        name = f"{by} = {value:g}" if isinstance(value, int | float | np.number) else f"{by} = {value}"
        try:
            part, excluded = measured(rows[rows[by] == value], chosen.target, chosen.columns)
            found[name] = fit_rows(part, excluded, chosen, options or Options())
        except AnalysisError as error:
            reasons[name] = f"{name}: {error}"
    if not found:
        raise AnalysisError("; ".join(reasons.values()))
    return found, reasons


def fit_rows(rows: pd.DataFrame, excluded: Excluded, law: Law, options: Options) -> Fit:
    """:func:`fit` on rows that :func:`analysis.measured` returned."""
    target, data = numbers(rows, law.target), law.values(rows)
    if options.residuals == "log" and (target <= 0).any():
        wrong = target <= 0
        raise AnalysisError(
            f"log residuals need {law.target} above 0; {wrong.sum()} of {len(rows)} rows are not, the first is "
            f"{target[wrong][0]:g}. Take residuals='linear' (--residuals linear), or drop those rows"
        )
    reason = law.reason_not(rows)
    if reason is not None:
        raise AnalysisError(reason)
    configurations = configuration_ids(rows, law.columns)
    cells = int(configurations.max()) + 1
    weights = _weights(rows, options.weights)
    low, high = law.limits(target)
    problem = Problem(law.form(), data, target, options.residuals, low, high)
    ranges, scales = [law.starts.get(name) for name in law.parameters], _scales(rows, law)
    if options.loss != "least_squares":
        problem = replace(problem, loss=options.loss, delta=_delta(problem, weights, ranges, scales, options, law.name))
    theta, cost, share = _best(problem, weights, ranges, scales, options, law.name)
    if not _identified(law, problem, theta):
        raise AnalysisError(
            f"{law.name}: these cells cannot tell {', '.join(law.parameters)} apart (the Jacobian at the optimum "
            f"is singular); vary {' and '.join(law.columns)} independently, or drop a parameter"
        )
    natural = problem.form.natural(theta, problem.centre)
    draws = Draws(np.empty((0, len(theta))), 0, 0, 0)
    if options.bootstrap:
        draws = bootstrap(
            problem,
            theta,
            weights,
            configurations,
            ranges,
            scales,
            options.bootstrap,
            options.bootstrap_starts,
            options.seed,
        )
    sampled = problem.form.natural(draws.theta, problem.centre)
    freedom = (cells, cells - len(theta))
    ends = percentile_interval(sampled, options.confidence, freedom)
    by_bootstrap = {name: (float(ends[0][i]), float(ends[1][i])) for i, name in enumerate(law.parameters)}
    prediction = problem.predict(theta[None])[0]
    pure = pure_error(problem, weights, configurations)
    by_profile = dict.fromkeys(law.parameters, (np.nan, np.nan))
    # Without a scatter to measure (exact data) a profile has no width.
    room = np.zeros(1)
    if options.loss == "least_squares" and freedom[1] > 0:
        room = interval_room(np.array([cost]), pure[0], cells, len(theta), options.confidence)
        found = Solution(theta[None], np.array([cost]), np.array([True]))
        for name in law.parameters:
            pair = profile(law, problem, found, weights, room, name)
            here = float(natural[law.parameters.index(name)])
            by_profile[name] = (float(pair[0][0]), float(pair[1][0])) if room[0] > 0 else (here, here)
    shown = by_profile if options.kind == "profile" else by_bootstrap
    kind: Intervals = options.kind
    if kind == "profile" and freedom[1] <= 0:  # without a degree of freedom there is none
        shown, kind = by_bootstrap, "bootstrap"
    with np.errstate(all="ignore"):
        error, log_error = target - prediction, np.log(target) - np.log(prediction)
    best = rows.iloc[[int(np.argmin(prediction))]]
    at_bound = tuple(name for i, name in enumerate(law.parameters) if _at_bound(theta[i], low[i], high[i]))
    return Fit(
        law=law,
        options=options,
        parameters=dict(zip(law.parameters, map(float, natural), strict=True)),
        intervals=shown,
        interval_kind=kind,
        profile_intervals=by_profile,
        bootstrap_intervals=by_bootstrap,
        undetermined=undetermined(sampled, shown),
        room=float(room[0]),
        at_bound=at_bound,
        residuals=options.residuals,
        confidence=options.confidence,
        cost=cost,
        rmse=float(np.sqrt(np.mean(error**2))),
        log_rmse=float(np.sqrt(np.mean(log_error**2))),
        n_rows=len(rows),
        n_configurations=cells,
        converged_share=share,
        condition=_condition(law, problem, theta),
        lack_of_fit=_lack_of_fit(problem, cost, pure, cells, options),
        spearman=_spearman(rows, law.target),
        bootstrap_requested=draws.requested,
        bootstrap_failed=draws.failed,
        bootstrap_redrawn=draws.redrawn,
        excluded=excluded.text,
        warnings=(
            *_table_warnings(rows, law, excluded),
            *_fit_warnings(law, problem, natural, at_bound, draws, kind, cells, share),
        ),
        protocol=single(rows, "protocol"),
        features=single(rows, "features"),
        best={name: float(numbers(best, name)[0]) for name in law.columns},
        theta=theta,
        draws=draws.theta,
        problem=problem,
        weights=weights,
        configurations=configurations,
        rows=rows,
        ranges=tuple(ranges),
        scales=scales,
    )


def interval_room(cost: Array, pure: float | Array, cells: int, parameters: int, confidence: float) -> Array:
    """By how much the sum of squares may rise within a profile interval, (m,).

    The F quantile with 1 and cells - k degrees of freedom times the scatter of the configurations about the law:
    ``cost`` without ``pure``, the scatter of seeds about their mean, over cells - k.
    """
    from scipy.stats import f

    left = cells - parameters
    return np.asarray(np.maximum(cost - pure, 0) / left * f.ppf(confidence, 1, left))


def _best(
    problem: Problem,
    weights: Array,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    options: Options,
    name: str,
) -> tuple[Array, float, float]:
    """Best theta over the random starts, its cost, and the share of starts that reach it."""
    start = draw_starts(problem, ranges, scales, weights[None], options.starts, [options.seed, 0])
    found = search(problem, start, weights)
    cost = found.cost
    if not np.isfinite(cost).any():
        raise AnalysisError(
            f"{name}: none of {options.starts} starts converged; look at the data first (gsq plot TABLE), give the "
            "parameters bounds and starting ranges, or try another law"
        )
    first = int(np.argmin(cost))
    # The absolute term is for data that lie exactly on a law, where every sum of squares is rounding.
    scale = len(weights) if problem.residuals == "log" else float(weights @ problem.target**2)
    reached = cost <= cost[first] * (1 + 1e-6) + 1e-16 * scale
    return found.theta[first], float(cost[first]), float(reached.mean())


def _weights(rows: pd.DataFrame, name: str | None) -> Array:
    if name is None:
        return np.ones(len(rows))
    values = numbers(rows, name)
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        raise AnalysisError(
            f"weights must be finite and above 0; {wrong.sum()} of {len(rows)} rows of {name!r} are not, the first is "
            f"{values[wrong][0]:g}"
        )
    return values / values.mean()


def _scales(rows: pd.DataFrame, law: Law) -> Array:
    """Typical sizes of the columns, and 1: around these are the starts of parameters of unknown size."""
    with np.errstate(all="ignore"):
        sizes = [abs(float(np.median(numbers(rows, name)))) for name in law.columns]
        sizes += [float(np.log2(size)) for size in sizes if size > 2]
    return np.unique([1.0, *(size for size in sizes if 0 < size < np.inf)])


def _delta(
    problem: Problem,
    weights: Array,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    options: Options,
    name: str,
) -> float:
    """The loss's delta where none is given: see :func:`fit`."""
    if options.delta is not None:
        return options.delta
    if options.loss == "huber":
        return 1e-3 * (1.0 if options.residuals == "log" else float(np.median(np.abs(problem.target))))
    theta, _, _ = _best(problem, weights, ranges, scales, options, name)
    value = problem.predict(theta[None])[0]
    residual = np.log(value / problem.target) if options.residuals == "log" else value - problem.target
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    return 2.385 * spread if spread > 0 else 1e-3


def _slopes(problem: Problem, theta: Array) -> Array:
    """Derivatives of the residuals, (m, n, k)."""
    value, slope = problem.form.both(theta, problem.data, problem.centre)
    if problem.residuals == "log":
        slope = slope / value
    return np.moveaxis(slope, 0, -1)


def _identified(law: Law, problem: Problem, theta: Array) -> bool:
    """Whether the Jacobian in the formula's parameters has full rank. Parameters at a bound do not count, nor those of
    a term whose amplitude is there: they are marked as not determined."""
    natural = problem.form.natural(theta, problem.centre)
    slopes = _slopes(replace(problem, form=law.form(law.parameters)), natural[None])[0]
    with np.errstate(over="ignore"):  # not finite below
        size = np.linalg.norm(slopes, axis=0)
    free = (theta > problem.low) & (theta < problem.high)
    used = free & (size > 0) if not free.all() else free
    unit = slopes[:, used] / np.maximum(size[used], 1e-300)
    return bool(np.isfinite(unit).all() and np.linalg.matrix_rank(unit, rtol=1e-10) == used.sum())


def _condition(law: Law, problem: Problem, theta: Array) -> tuple[float, float]:
    """Condition number of the normal matrix in the formula's parameters, and in the internal ones at unit scale."""
    plain = replace(problem, form=law.form(law.parameters))
    natural = problem.form.natural(theta, problem.centre)
    raw, internal = _slopes(plain, natural[None])[0], _slopes(problem, theta[None])[0]
    internal = internal / np.maximum(np.linalg.norm(internal, axis=0), 1e-300)
    with np.errstate(all="ignore"):
        both = [float(np.square(np.linalg.cond(one))) if np.isfinite(one).all() else np.inf for one in (raw, internal)]
    return both[0], both[1]


def pure_error(problem: Problem, weights: Array, configurations: Index) -> tuple[float, int]:
    """Sum of squares of the seeds about the mean of their configuration, and its degrees of freedom."""
    goal = np.log(problem.target) if problem.residuals == "log" else problem.target
    heavy = np.bincount(configurations, weights)
    mean = np.bincount(configurations, weights * goal) / heavy
    return float(np.sum(weights * (goal - mean[configurations]) ** 2)), len(goal) - len(heavy)


def _lack_of_fit(
    problem: Problem, cost: float, pure: tuple[float, int], cells: int, options: Options
) -> LackOfFit | None:
    """Whether the law misses the configurations by more than seeds scatter."""
    from scipy.stats import chi2, f

    left = cells - problem.form.count
    if options.loss != "least_squares" or left < 1:
        return None
    misfit = max(cost - pure[0], 0.0)
    total = left + pure[1]
    # A smaller seed noise than this rejects the law at 5 %.
    least = float(np.sqrt(cost / chi2.ppf(0.95, total)))
    if options.noise is not None:
        return LackOfFit(options.noise, None, float(chi2.sf(cost / options.noise**2, total)), least)
    if pure[1] < 1:
        return LackOfFit(None, None, None, least)
    noise = float(np.sqrt(pure[0] / pure[1]))
    p = float(f.sf(misfit / left / noise**2, left, pure[1])) if noise > 0 else (0.0 if misfit > 1e-20 else 1.0)
    return LackOfFit(noise, pure[1], p, least)


def _at_bound(value: float, low: float, high: float) -> bool:
    """Whether a value lies at a bound, or so close that only the end of a series of steps keeps it from there."""
    ends = [end for end in (low, high) if np.isfinite(end)]
    return any(abs(value - end) <= 1e-9 * max(1e-3, abs(end)) for end in ends)


def _table_warnings(rows: pd.DataFrame, law: Law, excluded: Excluded) -> tuple[str, ...]:
    warnings = [*([excluded.text] if excluded.text else []), *excluded.warnings]
    others = varying(rows, [name for name in CONFIGURATION_AXES if name not in (*_TOKENIZER_AXES, *law.columns)])
    if others:
        warnings.append(f"{', '.join(others)} also vary in this table, and {law.name} has no term for them")
    if law.target == "rfid" and "rank_deficient" in rows and rows["rank_deficient"].fillna(False).astype(bool).any():
        warnings.append("rfid from fewer images than features is biased upwards: compare its values, do not quote them")
    return tuple(warnings)


def _fit_warnings(
    law: Law,
    problem: Problem,
    natural: Array,
    at_bound: tuple[str, ...],
    draws: Draws,
    kind: Intervals,
    cells: int,
    share: float,
) -> tuple[str, ...]:
    warnings = []
    if at_bound:
        warnings.append(
            f"{', '.join(at_bound)} ended at a bound: the data ask for less of the law, or for other bounds"
        )
    for i in problem.form.constants:
        name, smallest = law.parameters[i], float(np.min(problem.target))
        if smallest > 0 and natural[i] < 0 and problem.form.exponents:
            warnings.append(
                f"the floor {name} = {natural[i]:.3g} lies outside 0 to {smallest:.3g}, the smallest {law.target}: "
                "no value "
                f"to quote; bound it (--bound {name}=0:min)"
            )
    if share < 0.1:
        warnings.append(f"only {share:.0%} of the starts reach the best optimum: try more starts, or starting ranges")
    if problem.loss == "huber" and problem.residuals == "log" and problem.delta >= 0.5:
        warnings.append(
            f"huber with delta {problem.delta:g} on logarithms is plain least squares; replications use 1e-3"
        )
    if kind == "bootstrap" and draws.requested == 0:
        warnings.append("no intervals: bootstrap = 0")
    elif cells < FEW_CONFIGURATIONS:
        warnings.append(f"intervals from {cells} configurations are rough")
    if draws.failed:
        warnings.append(f"{draws.failed} of {draws.requested} resamples failed: the bootstrap leaves them out")
    return tuple(warnings)


def _spearman(rows: pd.DataFrame, target: str) -> float | None:
    if "bits_per_pixel" not in rows or rows["bits_per_pixel"].nunique() < 2 or rows[target].nunique() < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(numbers(rows, "bits_per_pixel"), numbers(rows, target)).statistic)
