"""Fit a law to a table: many starts, exact derivatives, intervals, and remarks in plain words.

See :class:`gsq.analysis.Fit` for what comes out, ``gsq.analysis.laws`` for the forms, ``solver`` for the minimisation
and ``intervals`` for the intervals.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import f_quantile, spearman
from gsq.analysis.fitting.identify import at_bound, condition, freedom, least_norm, opened
from gsq.analysis.fitting.intervals import Draws, bootstrap, percentile_interval, profiles, undetermined
from gsq.analysis.fitting.noise import lack_of_fit, pure_error
from gsq.analysis.fitting.options import SIDED, Intervals, Options, changed
from gsq.analysis.fitting.outputs import output_remarks, weighed
from gsq.analysis.fitting.refusing import check_values, read_weights
from gsq.analysis.fitting.remarks import (
    bound_remarks,
    confounded_remarks,
    floor_remarks,
    interval_remarks,
    search_remarks,
)
from gsq.analysis.fitting.result import Fit, confounded_text
from gsq.analysis.fitting.searching import draw_starts, leading, reached, screened, search
from gsq.analysis.fitting.solver import Problem, Solution
from gsq.analysis.laws.named import Bound, Law, get_law
from gsq.analysis.tables.columns import NUMBER
from gsq.analysis.tables.outputs import OUT
from gsq.analysis.tables.reading import plain_columns
from gsq.analysis.tables.table import (
    Array,
    Excluded,
    configuration_ids,
    labels,
    numbers,
    require_columns,
    single,
    unquoted,
    varying,
    with_derived,
)
from gsq.config.axes import CONFIGURATION, TOKENIZER, modifiers

SCREENED = 8  # starts drawn for each that is carried out: see searching.screened
LARGE, SAMPLE, FINALISTS = 20_000, 4_000, 4  # rows of a large table, of the sample that is searched, and optima kept


def fit(
    frame: pd.DataFrame,
    law: str | Law = "power_law_bpp",
    *,
    target: str | Sequence[str] | None = None,
    bounds: Mapping[str, tuple[float, Bound]] | None = None,
    start_ranges: Mapping[str, tuple[float, float]] | None = None,
    options: Options | None = None,
    **changes: Any,
) -> Fit:
    """Fit ``law``, a named one or a formula such as "rfid = E + A / latent_dim^a", to the measured rows of ``frame``.

    target: the column to predict, in place of the law's own (rfid, if its formula names none). Several columns share
    the parameters of the formula, except those with a value for each output: ``fit(frame, "A[out] * N^(-a)",
    target=["loss", "rfid"])``. Each output is weighted by its own scatter about the law, assumed to be independent of
    the others'; resamples keep the outputs of a run together, so bootstrap intervals need no independence.
    bounds, start_ranges: of parameters, added to the law's own.
    options, changes: :class:`Options`, and values of its fields that differ: ``fit(frame, law, loss="huber")``.

    Raises AnalysisError for a law that is not known or cannot be read, a table that cannot carry it (with the reason),
    mixed protocols, or an option that is unknown or out of range.
    """
    options = changed(options or Options(), changes)
    if not isinstance(frame, pd.DataFrame):
        own = f"{type(frame).__module__.split('.')[0]}.{type(frame).__name__}"
        raise AnalysisError(f"the table must be a pandas DataFrame, got {own}; of polars or Arrow, take .to_pandas()")
    chosen = get_law(law, [str(name) for name in frame.columns], bounds, start_ranges, target)
    rows, excluded = chosen.rows(frame)
    return fit_rows(rows, excluded, chosen, options)


def fit_by(
    frame: pd.DataFrame,
    by: str,
    law: str | Law = "power_law_bpp",
    *,
    target: str | None = None,
    options: Options | None = None,
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Fit each value of column ``by`` on its own: ({"groups = 4": fit, ...}, {"groups = 8": why not, ...}).

    Each fit uses the rows of one value, as if the table had no others: ``by`` = step compares checkpoints.
    Raises AnalysisError where the column is missing or empty, or no group can be fitted.
    """
    chosen = get_law(law, [str(name) for name in frame.columns], target=target)
    by, rows = unquoted(by), plain_columns(with_derived(frame))
    try:
        require_columns(rows, by)
    except AnalysisError as error:
        raise AnalysisError(f"cannot group by {by!r}: {error}") from None
    values = list(rows[by].dropna().unique())
    if not values:
        raise AnalysisError(f"cannot group by {by!r}: the column is empty")
    found, reasons = {}, {}
    for value in sorted(values, key=lambda one: (isinstance(one, str), one if isinstance(one, NUMBER) else str(one))):
        name = f"{by} = {value:.15g}" if isinstance(value, NUMBER) else f"{by} = {value}"
        try:
            part, excluded = chosen.rows(rows[rows[by] == value])
            found[name] = fit_determined(part, excluded, chosen, options or Options())
        except AnalysisError as error:
            reasons[name] = f"{name}: {error}"
    if not found:
        raise AnalysisError("; ".join(reasons.values()))
    return found, reasons


@np.errstate(all="ignore")  # what cannot be computed is refused or marked in words
def fit_rows(rows: pd.DataFrame, excluded: Excluded, law: Law, options: Options, determined: bool = False) -> Fit:
    """:func:`fit` on rows that :func:`analysis.measured` returned; ``determined``: see :func:`fit_determined`."""
    law = law.at_levels(rows)
    if law.outputs and options.noise is not None:
        raise AnalysisError(
            f"noise {options.noise:g} (--noise) is the seed noise of one target, and {', '.join(law.outputs)} have one "
            "each: leave it out, so that seeds in the table measure it, or fit the targets one by one"
        )
    target, data = numbers(rows, law.target), law.values(rows)
    check_values(rows, law, target, data, options.residuals)
    configurations = configuration_ids(rows, [*law.columns, *law.factors])
    cells = int(configurations.max()) + 1
    runs = configuration_ids(rows, [*law.columns, *(name for name in law.factors if name != OUT)])
    weights = read_weights(rows, options.weights)
    low, high = law.limits(target)
    problem = Problem(law.form(), data, target, options.residuals, low, high)
    ranges, scales = [law.starts.get(name) for name in law.parameters], _scales(rows, law)
    if options.loss != "least_squares":
        problem = replace(problem, loss=options.loss, delta=_delta(problem, weights, ranges, scales, options, law))
    problem = replace(problem, quantile=options.share)
    if law.outputs:
        alike = _best(problem, weights, ranges, scales, options, law)[0]
        weights = weighed(problem, alike, weights, law, rows)
    theta, cost, share, converged = _best(problem, weights, ranges, scales, options, law)
    free = freedom(problem, theta)
    if free.count:
        theta = least_norm(problem, theta, cost, weights)
    natural = problem.form.natural(theta, problem.centre)
    for name, value, inner in zip(law.parameters, natural, theta, strict=True):
        if not np.isfinite(value) or (value == 0 and inner != 0):
            raise AnalysisError(
                f"{law.name}: {name} is beyond the numbers that a computer holds (1e-308 to 1e308), because of the "
                f"unit of {' or '.join(law.columns)}; divide that column by a typical value of it and fit again"
            )
    groups = tuple(tuple(law.parameters[i] for i in group) for group in free.groups)
    if determined and groups:
        raise AnalysisError(f"{law.name}: {confounded_text(groups)}")
    rank = len(theta) - free.count
    # Rows of one configuration move together, unless the law needs all of them to leave a degree of freedom.
    units = configurations if cells > rank else np.arange(len(rows))
    together = runs if law.outputs else units
    count = int(units.max()) + 1
    left = count - rank
    draws = Draws(np.empty((0, len(theta))), 0, 0, 0)
    if options.bootstrap and left > 0 and options.kind != "none":
        draws = bootstrap(
            problem,
            theta,
            weights,
            together,
            ranges,
            scales,
            options.bootstrap,
            options.bootstrap_starts,
            options.seed,
        )
    sampled = problem.form.natural(draws.theta, problem.centre)
    ends = percentile_interval(sampled, options.confidence, (count, left), options.loss)
    by_bootstrap = {name: (float(ends[0][i]), float(ends[1][i])) for i, name in enumerate(law.parameters)}
    prediction = problem.predict(theta[None])[0]
    pure = pure_error(problem, weights, configurations)
    by_profile = dict.fromkeys(law.parameters, (np.nan, np.nan))
    # Without a scatter to measure (exact data) a profile has no width.
    room = np.zeros(1)
    if options.kind == "profile" and left > 0:
        room = interval_room(
            np.array([cost]), pure[0] if units is configurations else 0.0, count, rank, options.confidence
        )
        found = Solution(theta[None], np.array([cost]), np.array([True]))
        tied = {name for group in groups for name in group}
        for name, here in zip(law.parameters, map(float, natural), strict=True):
            by_profile[name] = (-np.inf, np.inf) if name in tied else (here, here)
        if room[0] > 0:
            apart = [name for name in law.parameters if name not in tied]
            by_profile |= profiles(law, problem, found, weights, room, apart)
    for kind_of in (by_profile, by_bootstrap):
        for i, name in enumerate(law.parameters):
            kind_of[name] = opened(kind_of[name], low[i], high[i])
    # Without a degree of freedom there are none.
    kind: Intervals = options.kind if left > 0 else "none"
    shown = by_profile if kind == "profile" else by_bootstrap
    ended = tuple(name for i, name in enumerate(law.parameters) if at_bound(theta[i], low[i], high[i]))
    reasons = undetermined(sampled, shown, _certain(law, groups, ended, natural))
    error, log_error = target - prediction, np.log(target) - np.log(prediction)
    first = np.ones(len(rows), dtype=bool) if not law.outputs else labels(rows, OUT) == law.outputs[0]
    best = rows.iloc[[int(np.argmin(np.where(first, prediction, np.inf)))]]
    settings = len(np.unique(data, axis=1).T)
    return Fit(
        law=law,
        options=options,
        parameters=dict(zip(law.parameters, map(float, natural), strict=True)),
        intervals=shown,
        interval_kind=kind,
        profile_intervals=by_profile,
        bootstrap_intervals=by_bootstrap,
        undetermined=reasons,
        confounded=groups,
        room=float(room[0]),
        at_bound=ended,
        residuals=options.residuals,
        confidence=options.confidence,
        cost=cost,
        rmse=float(np.sqrt(np.mean(error**2))),
        log_rmse=float(np.sqrt(np.mean(log_error**2))),
        n_rows=len(rows),
        n_configurations=cells,
        freedom=(count, left),
        converged=converged,
        converged_share=share,
        condition=condition(law, problem, theta),
        lack_of_fit=lack_of_fit(cost, pure, cells - rank, options, bool(law.outputs)),
        spearman=_spearman(rows, law.target),
        bootstrap_requested=draws.requested,
        bootstrap_failed=draws.failed,
        bootstrap_redrawn=draws.redrawn,
        excluded=excluded.text,
        warnings=(
            *_table_warnings(rows, law, excluded),
            *confounded_remarks(law, groups, settings),
            *bound_remarks(ended),
            *floor_remarks(law, problem, natural, prediction, shown, set(reasons)),
            *search_remarks(problem, options.starts, share, converged, bool(groups)),
            *interval_remarks(draws.requested, draws.failed, options.kind, cells, left),
            *output_remarks(law, rows, runs, error if options.residuals == "linear" else log_error, options.kind),
        ),
        protocol=single(rows, "protocol"),
        features=single(rows, "features"),
        best={name: float(numbers(best, name)[0]) for name in law.columns}
        | {name: str(labels(best, name)[0]) for name in law.factors},
        theta=theta,
        draws=draws.theta,
        problem=problem,
        weights=weights,
        configurations=configurations,
        rows=rows,
        ranges=tuple(ranges),
        scales=scales,
    )


def _certain(law: Law, groups: tuple[tuple[str, ...], ...], ended: tuple[str, ...], natural: Array) -> dict[str, str]:
    """Return the parameters that are not determined, whatever their intervals say, and why."""
    found = {}
    for group in groups:
        for name in group:
            others = ", ".join(other for other in group if other != name)
            found[name] = (
                f"these rows cannot tell it from {others}" if others else "nothing in these rows depends on it"
            )
    for name in ended:
        value = natural[law.parameters.index(name)]
        found.setdefault(name, f"it ended at its bound, {value:.4g}, so that its interval is open there")
    return found


def fit_determined(rows: pd.DataFrame, excluded: Excluded, law: Law, options: Options) -> Fit:
    """:func:`fit_rows` for laws that are to be ranked, or were not asked for by name.

    Raises AnalysisError as well where the rows leave parameters of the law undetermined.
    """
    reason = law.reason_not(rows)
    if reason is not None:
        raise AnalysisError(reason)
    return fit_rows(rows, excluded, law, options, determined=True)


def interval_room(cost: Array, pure: float | Array, cells: int, parameters: int, confidence: float) -> Array:
    """Return the rise of the sum of squares at the ends of a profile interval, (m,).

    The F quantile with 1 and cells - k degrees of freedom times the scatter of the configurations about the law:
    ``cost`` without ``pure``, the scatter of seeds about their mean, over cells - k.
    """
    left = cells - parameters
    return np.asarray(np.maximum(cost - pure, 0) / left * f_quantile(confidence, 1, left))


def _best(
    problem: Problem,
    weights: Array,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    options: Options,
    law: Law,
) -> tuple[Array, float, float, bool]:
    """Best theta over the random starts, its cost, the share of starts that reach it, and whether it has converged."""
    if len(weights) > LARGE:
        found, share = _best_of_sample(problem, weights, ranges, scales, options)
    else:
        found = _search(problem, weights, ranges, scales, options)
        share = float(reached(problem, found.cost, weights).mean())
    cost = found.cost
    if not np.isfinite(cost).any():
        raise AnalysisError(
            f"{law.name}: the search failed, because the law has no finite value at all rows from any of "
            f"{options.starts} starts; give the parameters ranges of starts near the answer (--start "
            f"{law.parameters[-1]}=LOW:HIGH), bounds (--bound), or more starts (--starts)"
        )
    first = leading(problem, found, weights)
    return found.theta[first], float(cost[first]), share, bool(found.converged[first])


def _search(
    problem: Problem, weights: Array, ranges: list[tuple[float, float] | None], scales: Array, options: Options
) -> Solution:
    start = draw_starts(problem, ranges, scales, weights[None], SCREENED * options.starts, [options.seed, 0])
    return search(problem, screened(problem, start, weights, options.starts), weights)


def _best_of_sample(
    problem: Problem, weights: Array, ranges: list[tuple[float, float] | None], scales: Array, options: Options
) -> tuple[Solution, float]:
    """Search a large table on a sample of its rows, and refine the best few optima on all rows."""
    rows = np.sort(np.random.default_rng([options.seed, 3]).choice(len(weights), SAMPLE, replace=False))
    part = replace(problem, data=problem.data[:, rows], target=problem.target[rows])
    found = _search(part, weights[rows], ranges, scales, options)
    order = np.argsort(found.cost, kind="stable")
    apart = np.append(True, np.diff(found.cost[order]) > 1e-6 * found.cost[order][:-1])
    chosen = order[apart & np.isfinite(found.cost[order])][:FINALISTS]
    if not len(chosen):
        return found, 0.0
    theta = problem.form.internal(problem.form.natural(found.theta[chosen], part.centre), problem.centre)
    return search(problem, theta, weights), float(reached(part, found.cost, weights[rows]).mean())


def _scales(rows: pd.DataFrame, law: Law) -> Array:
    """Return 1 and the typical sizes of the columns; parameters of unknown size start around these."""
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
    law: Law,
) -> float:
    """Return the default delta of the loss: see :func:`fit`."""
    if options.delta is not None:
        return options.delta
    if options.loss in ("huber", *SIDED):
        return 1e-3 * (1.0 if options.residuals == "log" else float(np.median(np.abs(problem.target))))
    theta = _best(problem, weights, ranges, scales, options, law)[0]
    value = problem.predict(theta[None])[0]
    residual = np.log(value / problem.target) if options.residuals == "log" else value - problem.target
    spread = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    return 2.385 * spread if spread > 0 else 1e-3


def _table_warnings(rows: pd.DataFrame, law: Law, excluded: Excluded) -> tuple[str, ...]:
    warnings = [*([excluded.text] if excluded.text else []), *excluded.warnings]
    read = {*TOKENIZER, law.target, *law.columns, *law.factors}
    read |= {one for name in law.columns for one in modifiers(name)}
    others = varying(rows, [name for name in CONFIGURATION if name not in read])
    if "other_axes" in others:
        # Its keys are columns of their own.
        keys = {key for text in rows["other_axes"].dropna().unique() if text for key in json.loads(text)}
        named = varying(rows, sorted(key for key in keys if key in rows and key not in read))
        others = [name for name in others if name != "other_axes"] + named
    if "images_seen" in law.columns and "batch_size" not in others:
        others = [name for name in others if name != "steps"]  # which the images of a batch make images_seen
    if others:
        vary = "varies" if len(others) == 1 else "vary"
        warnings.append(f"{', '.join(others)} also {vary} in this table, and {law.name} has no term for them")
    if law.target == "rfid" and "rank_deficient" in rows and rows["rank_deficient"].fillna(False).astype(bool).any():
        warnings.append("rfid from fewer images than features is biased upwards: compare its values, do not quote them")
    return tuple(warnings)


def _spearman(rows: pd.DataFrame, target: str) -> float | None:
    if "bits_per_pixel" not in rows or rows["bits_per_pixel"].nunique() < 2 or rows[target].nunique() < 2:
        return None
    return spearman(numbers(rows, "bits_per_pixel"), numbers(rows, target))[0]
