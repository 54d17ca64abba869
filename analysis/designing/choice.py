"""Choose what to run next: the cells, or further seeds of cells, that narrow a target the most for their cost.

Runs are chosen one after the other, each with the largest fall of the logarithm of the target's value for its cost
among those that the rest of the budget affords. What the value is, and the sources:
:mod:`gsq.analysis.designing.information`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from gsq.analysis.checking.compare import Comparison, aicc_weights
from gsq.analysis.designing.greedy import greedy, without_idle, without_tail
from gsq.analysis.designing.information import Cells, State
from gsq.analysis.designing.optima import rival_optima
from gsq.analysis.designing.options import DesignOptions
from gsq.analysis.designing.proposal import Checkpoint, Design, Expectation, Proposal
from gsq.analysis.designing.target import Target, cell_text, plain, read_target
from gsq.analysis.designing.wanted import wanted_cells
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.options import changed
from gsq.analysis.fitting.result import Fit
from gsq.analysis.tables.table import completed, numbers, varying, with_derived
from gsq.config.axes import CONFIGURATION, DERIVED
from gsq.words import counted

_LITTLE = 0.05  # by which a tail of runs worth a remark narrows the target


def design(
    fits: Fit | Comparison | Sequence[Fit],
    candidates: pd.DataFrame,
    budget: float | Sequence[float],
    target: str | Target,
    *,
    options: DesignOptions | None = None,
    **changes: Any,
) -> Design:
    """Choose the runs among ``candidates`` that narrow ``target`` the most for ``budget``.

    fits: a fit, or rival ones to the same rows (:func:`analysis.compare_laws`), weighted by AICc.
    candidates: one row a cell, with the laws' columns (derived axes may follow from others) and a column of costs
    ("cost", if the options name none). A cell of the same configuration as measured rows is a further seed of it; the
    two are compared by the axes that both tables have or, where both have it, by a column ``configuration``.
    budget: what may be spent in all, or several budgets: each adds runs to those of the smaller ones, and
    ``checkpoints`` says what is expected at each.
    target: see :func:`read_target`; the rows of a table: :func:`target_rows`.
    options, changes: :class:`DesignOptions`, and values of its fields that differ: ``design(..., seeds=1)``.

    The criteria and their sources: :mod:`gsq.analysis.designing.information`. Raises AnalysisError for a target that
    the laws do not have, target or candidate cells without a column that a law reads, costs that are missing or not
    above 0, a budget that affords no candidate, or an option that is unknown or out of range.
    """
    options = changed(options or DesignOptions(), changes)
    cost, until = options.cost or "cost", options.until
    wanted = read_target(target) if isinstance(target, str) else target
    rivals = list(fits.fits) if isinstance(fits, Comparison) else [fits] if isinstance(fits, Fit) else list(fits)
    weights = _weights(rivals)
    notes = [one.excluded for one in rivals[:1] if one.excluded]
    if wanted.kind == "parameter":
        rivals, weights = _with_parameter(rivals, wanted.parameter, notes), (1.0,)
    if wanted.kind == "discriminate" and sum(weight > 0 for weight in weights) < 2:
        raise AnalysisError("discriminate needs two laws or more that were fitted to these rows, with an AICc each")
    budgets = sorted({float(one) for one in ([budget] if isinstance(budget, int | float) else budget)})
    if not budgets or not 0 < budgets[0] <= budgets[-1] < np.inf:
        got = ", ".join(f"{one:g}" for one in budgets) or "none"
        raise AnalysisError(f"budget must be a number above 0, got {got}")
    if wanted.kind != "predict" and (options.criterion != "widest" or options.optima > 1):
        raise AnalysisError(
            f"criterion and optima are for predictions, and the target is {wanted.text}; use the target 'predict ...' "
            "or leave them out"
        )
    goal = until
    if until is not None and (wanted.kind == "noise" or (wanted.kind == "predict" and rivals[0].residuals == "log")):
        goal = float(np.log1p(until))
    cells = _cells(rivals, candidates, cost, options.seeds, notes)
    names, shares = tuple(one.law.name for one in rivals), tuple(weights)
    if options.optima > 1:
        rivals, weights = _with_optima(rivals, weights, wanted, cells, options.optima, notes)
    state = State(rivals, weights, wanted, cells, options.noise, notes, options.criterion)
    if wanted.kind == "predict" and len(rivals) > 1 and not state.average:
        notes += _disagreement(state)
    start = state.copy()
    order, ends, stopped = greedy(state, cells, budgets, goal, options.cost_exponent)
    if options.enough is not None:
        order, stopped = without_tail(start, state, order, options.enough, stopped)
    if goal is not None and order and state.value() <= goal:
        order, state = without_idle(start, cells, order, goal)
    if goal is not None and state.value() > goal:
        stopped += "; the target is not met"
    proposals, total, replay = [], 0.0, start.copy()
    axes = _shown_axes(rivals, candidates)
    for cell in order:
        before = int(replay.counts[cell])
        replay.add(cell)
        total += float(cells.cost[cell])
        row = int(cells.row[cell])
        proposals.append(
            Proposal(
                {name: plain(candidates.iloc[row][name]) for name in axes},
                row,
                before,
                float(cells.cost[cell]),
                total,
                float(replay.value()),
            )
        )
    idle = 0 if options.enough is not None else _tail([float(start.value()), *(one.expected for one in proposals)])
    if idle:
        notes.append(
            f"the last {counted(idle, 'run')} would narrow it by less than "
            f"{_LITTLE:.0%}; enough={_LITTLE} (--enough {_LITTLE}) leaves them out"
        )
    best = state.rivals[0]
    return Design(
        target=wanted,
        laws=names,
        weights=shares,
        criterion=options.criterion,
        noise=float(np.sqrt(best.sigma2)) if best.noise_source else None,
        noise_source=state.noise_source,
        scatter=float(np.sqrt(best.tau2)),
        log=rivals[0].residuals == "log",
        measures=rivals[0].target,
        confidence=rivals[0].confidence,
        unit=options.unit or cost.replace("_", " "),
        budget=budgets[-1],
        checkpoints=_checkpoints(budgets, ends, proposals, float(start.value())),
        until=until,
        before=float(start.value()),
        after=float(state.value()),
        open_before=start.is_open(),
        open_after=state.is_open(),
        expectations=_expectations(start, state),
        proposals=tuple(proposals),
        stopped=stopped,
        notes=tuple(notes),
    )


def _weights(fits: Sequence[Fit]) -> tuple[float, ...]:
    if not fits:
        raise AnalysisError("no law was fitted, so there is nothing to design for")
    if len({one.n_rows for one in fits}) > 1 or len({(one.target, one.residuals) for one in fits}) > 1:
        raise AnalysisError(
            "rival laws must be fitted to the same rows, target and residuals; compare_laws(frame, laws) does so"
        )
    for one in fits:
        if one.options.loss != "least_squares":
            raise AnalysisError(f"{one.law.name} was fitted with {one.options.loss}; designs need least_squares")
    if len(fits) == 1:
        return (1.0,)
    found = aicc_weights(fits)
    return found if sum(found) > 0 else (1 / len(fits),) * len(fits)


def _with_parameter(fits: Sequence[Fit], name: str, notes: list[str]) -> list[Fit]:
    having = [one for one in fits if name in one.parameters]
    if not having:
        known = "; ".join(f"{one.law.name} has {', '.join(one.parameters)}" for one in fits)
        near = difflib.get_close_matches(name, [p for one in fits for p in one.parameters], 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise AnalysisError(f"target parameter={name}: no law has a parameter {name!r}{hint}; {known}")
    if len(having) > 1:
        raise AnalysisError(
            f"target parameter={name}: {' and '.join(one.law.name for one in having)} have it; choose one law (--law)"
        )
    if len(fits) > 1:
        notes.append(f"of the laws only {having[0].law.name} has {name}; the others do not count")
    return having


def _cells(fits: Sequence[Fit], candidates: pd.DataFrame, cost: str, seeds: int, notes: list[str]) -> Cells:
    """Return the configurations of the measured rows, and of the candidates to which the laws apply."""
    if candidates.empty:
        raise AnalysisError("there are no candidate cells")
    if cost not in candidates:
        known = [n for n in ("device_hours", "device_seconds", "train_flops", "cost") if n in candidates]
        raise AnalysisError(
            f"the candidates have no column {cost!r} for what a run costs; name it (--cost COLUMN)"
            + (f": there is {', '.join(known)}" if known else ", or add one: every cell needs a cost")
        )
    rows, read = fits[0].rows, [name for one in fits for name in one.law.reads]
    wide = with_derived(completed(candidates, rows, read)).reset_index(drop=True)
    for one in fits:
        missing = [name for name in one.law.reads if name not in wide]
        if missing:
            raise AnalysisError(
                f"the candidates lack {' and '.join(missing)}, which {one.law.name} reads; they have "
                f"{', '.join(map(str, candidates.columns[:12]))}"
            )
    price = numbers(wide, cost)
    wrong = ~(np.isfinite(price) & (price > 0))
    if wrong.any():
        raise AnalysisError(
            f"cost {cost!r} must be a number above 0 for every candidate; {wrong.sum()} of {len(price)} are not, the "
            f"first is {price[wrong][0]:g}"
        )
    keep = np.ones(len(wide), dtype=bool)
    for one in fits:
        for name, only in one.law.holds_for.items():
            if name not in wide:
                continue
            value = only if only is not None else float(numbers(rows, name)[0]) if name in rows else None
            if value is None:
                continue
            out = keep & (numbers(wide, name) != value)
            if out.any():
                notes.append(f"{out.sum()} candidates are left out: {one.law.name} holds for {name} = {value:g} only")
                keep &= ~out
    if not keep.any():
        raise AnalysisError(f"no candidate is left: {'; '.join(notes)}; use another law, or other candidates")
    names = ["configuration"]
    if not all("configuration" in frame for frame in (rows, wide)):
        names = [name for name in dict.fromkeys([*CONFIGURATION, *read]) if name in rows and name in wide]
    known_cells = dict(zip(_keys(rows, names), fits[0].configurations.tolist(), strict=True))
    first = np.unique(fits[0].configurations, return_index=True)[1]
    counts: list[float] = np.bincount(fits[0].configurations).astype(float).tolist()
    of: dict[int, list[int]] = {}
    for position, key in enumerate(_keys(wide, names)):
        if keep[position]:
            cell = known_cells.setdefault(key, len(counts))
            if cell == len(counts):
                counts.append(0.0)
            of.setdefault(cell, []).append(position)
    new = [of[cell][0] for cell in range(len(first), len(counts))]
    columns = list(dict.fromkeys(name for one in fits for name in one.law.reads))
    frame = pd.concat([rows.iloc[first][columns], wide.iloc[new][columns]], ignore_index=True)
    total = len(counts)
    return Cells(
        frame,
        np.array(counts),
        np.array([np.mean(price[of[cell]]) if cell in of else np.nan for cell in range(total)]),
        np.array([of[cell][0] if cell in of else -1 for cell in range(total)]),
        np.array([max(seeds, len(of.get(cell, ()))) for cell in range(total)], dtype=float),
    )


def _keys(frame: pd.DataFrame, names: Sequence[str]) -> list[tuple[object, ...]]:
    """Return a tuple for each row that identifies its configuration: numbers to nine digits, the rest as text."""

    def plain(value: object) -> object:
        if value is None or value is pd.NA or value != value or value == "{}":
            return None
        return float(f"{float(value):.9g}") if isinstance(value, int | float | np.number) else str(value)

    return list(zip(*([plain(value) for value in frame[name]] for name in names), strict=True))


def _with_optima(
    fits: Sequence[Fit], weights: Sequence[float], target: Target, cells: Cells, count: int, notes: list[str]
) -> tuple[list[Fit], tuple[float, ...]]:
    """Return the fits and their rivals at other minima; a weight is the law's times the minimum's."""
    wanted = wanted_cells(fits, target, cells.frame)
    found = [
        (rival, weight * share)
        for fit, weight in zip(fits, weights, strict=True)
        for rival, share in rival_optima(fit, fit.law.values(wanted), count)
    ]
    if len(found) > len(fits):
        notes.append(f"{len(found)} local minima of the fits count, weighted by fit")
    return [rival for rival, _ in found], tuple(weight for _, weight in found)


def _tail(values: Sequence[float]) -> int:
    """Count the last runs that hardly lower the final one of ``values``."""
    return len(values) - 1 - next(i for i, value in enumerate(values) if not value > values[-1] * (1 + _LITTLE))


def _checkpoints(
    budgets: Sequence[float], ends: Sequence[int], proposals: Sequence[Proposal], before: float
) -> tuple[Checkpoint, ...]:
    found = []
    for budget, end in zip(budgets, ends, strict=True):
        runs = min(end, len(proposals))
        last = proposals[runs - 1] if runs else None
        found.append(Checkpoint(budget, runs, last.total if last else 0.0, last.expected if last else before))
    return tuple(found)


def _expectations(start: State, end: State) -> tuple[Expectation, ...]:
    kind, first = start.target.kind, start.rivals[0]
    if kind == "discriminate":
        return ()
    if kind == "noise":
        if not first.noise_source:
            return ()
        sigma = float(np.sqrt(first.sigma2))

        def around(state: State) -> tuple[float, float]:
            width = state.value()
            return (sigma * np.exp(-width), sigma * np.exp(width)) if np.isfinite(width) else (0.0, np.inf)

        return (Expectation("between seeds", sigma, around(start), around(end)),)
    count = len(first.wanted)
    if count > 8:
        return ()
    central = sum(w * one.wanted_value for w, one in zip(start.weights, start.rivals, strict=True))
    fit = first.fit
    log = fit.residuals == "log" and kind == "predict"
    names = [start.target.parameter]
    if start.wanted is not None:
        cells = start.target.cells or start.wanted.to_dict("records")
        names = [f"{fit.target} at {cell_text(cell)}" for cell in cells]  # type: ignore[arg-type]
    found = []
    for i in range(count):
        middle = float(np.asarray(central)[i])
        pairs = []
        for state in (start, end):
            half = float(state.halves()[i])
            if state.open()[i]:
                pairs.append((0.0 if log else -np.inf, np.inf))
            elif log:
                pairs.append((float(np.exp(middle - half)), float(np.exp(middle + half))))
            elif kind == "parameter" and _is_size(fit, start.target.parameter) and middle > 0:
                # A positive quantity gets the interval of its logarithm.
                pairs.append((middle * float(np.exp(-half / middle)), middle * float(np.exp(half / middle))))
            else:
                pairs.append((middle - half, middle + half))
        found.append(Expectation(names[i], float(np.exp(middle)) if log else middle, pairs[0], pairs[1]))
    return tuple(found)


def _is_size(fit: Fit, name: str) -> bool:
    """Whether a parameter's error is relative: it is positive, and no floor, which may be near 0."""
    constants = [fit.law.parameters[i] for i in fit.problem.form.constants]
    return fit.law.bounds.get(name) == (0.0, np.inf) and name not in constants


def _disagreement(state: State) -> list[str]:
    """Return the largest difference between the predictions of the laws."""
    values = np.stack([one.wanted_value for one in state.rivals])
    middle = state.weights @ values
    apart = float(np.sqrt(state.weights @ (values - middle) ** 2).max())
    log = state.rivals[0].fit.residuals == "log"
    shown = f"{np.expm1(apart):.1%}" if log else f"{apart:.3g}"
    if apart < 1e-3 * (1 if log else float(np.abs(middle).max())):
        return []
    return [
        f"the predictions of the laws differ by up to {shown} (weighted root mean square); these intervals leave "
        "that out, and the target discriminate narrows it"
    ]


def _shown_axes(fits: Sequence[Fit], candidates: pd.DataFrame) -> list[str]:
    """Return the columns in which candidates differ, and those that the laws read."""
    read = [name for one in fits for name in one.law.reads]
    names = dict.fromkeys([*varying(candidates), *read])
    found = [name for name in names if name in candidates and not (name in DERIVED and len(names) > 1)]
    return [name for name in CONFIGURATION if name in found] + [n for n in found if n not in CONFIGURATION]
