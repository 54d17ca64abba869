"""Search from many starts for one optimum: which starts to continue, and how to refit resampled tables.

Shapes: m problems or starts, n rows, k parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np

from gsq.analysis.fitting.identify import slopes, unit_columns
from gsq.analysis.fitting.progress import advance, stage
from gsq.analysis.fitting.solver import (
    BATCH,
    STEPS,
    Bools,
    Problem,
    Solution,
    cholesky_solve,
    cost_of,
    solve,
)
from gsq.analysis.fitting.starts import draw, habits
from gsq.analysis.fitting.trust_region import trust_region
from gsq.analysis.tables.table import Array, Index

_POLISH = 1e-16
_EQUAL = 1e-9
_STEPS_FIRST = 60  # after so many the worse half of the starts is left where it is
CARRIED = 8  # starts that go on, at least
_STEPS_CARRIED = 4000
_FURTHER = ((CARRIED, 1000), (CARRIED // 2, _STEPS_CARRIED))  # of the best that have not arrived, how many, and steps
_FEW = 0.25  # share of the starts that end at the best place, below which a trust region looks at the ends again
_AGAIN = 100  # its evaluations for each of them, and fewer for large tables:
_ENTRIES = 400_000_000  # rows times parameters of all evaluations, some ten seconds
_TRUSTED = ((2 * CARRIED, 100), (CARRIED, 500), (CARRIED // 2, 2000))  # how many it carries on, and its evaluations
_ROUNDS, _AROUND, _LOWER = 16, 32, 1e-8  # of the search past kinks: rounds, points in each, and a gain that counts
_NEAR = 1.5  # standard deviation, in logarithms, of the starts beside one that is given by value
_MEMORY = 8_000_000  # problems times rows that refits keep at once


def screened(problem: Problem, start: Array, weights: Array, count: int) -> Array:
    """``count`` of the starts (m, k): the first ones as drawn, and of the others as many again with the least cost."""
    if len(start) <= count:
        return start
    drawn = (count + 1) // 2
    size = max(1, BATCH // len(weights))
    cost = np.concatenate([cost_of(problem, start[i : i + size], weights) for i in range(0, len(start), size)])
    return np.concatenate([start[:drawn], start[drawn:][np.argsort(cost[drawn:], kind="stable")[: count - drawn]]])


def search(problem: Problem, start: Array, weights: Array) -> Solution:
    """Minimise one problem from each of its ``start`` (m, k), and carry on the best few that have not arrived.

    A start that is still falling after the usual steps is no failure: in nested laws it is often the best of all. Where
    few starts agree on the best place, a trust region looks at all ends again.
    """
    found = solve(problem, start, weights, steps=_STEPS_FIRST)
    found = _carry_on(problem, found, weights, _late(found, max(CARRIED, len(start) // 2)), None)
    at_best = np.mean(reached(problem, found.cost, weights) & found.converged)
    hard = problem.loss == "least_squares" and problem.prior is None and bool(at_best < _FEW)
    if hard:
        ends = _distinct(found)[: len(start) // 2]
        share = _ENTRIES // max(1, len(weights) * problem.form.count * len(ends))
        with stage("search, again from where its starts ended", len(ends) + sum(kept for kept, _ in _TRUSTED)):
            _trust(problem, found, weights, ends, min(_AGAIN, max(10, share)))
            for kept, evaluations in _TRUSTED:
                _trust(problem, found, weights, _late(found, kept), evaluations)
        found = _carry_on(problem, found, weights, _late(found, 1))
    else:
        for kept, steps in _FURTHER:
            found = _carry_on(problem, found, weights, _late(found, kept), steps)
    best = leading(problem, found, weights)
    if problem.form.kinked and np.isfinite(found.cost[best]):
        with stage("search past kinks", _ROUNDS):
            _pass_kinks(problem, found, weights, best, hard)
    return _polished(problem, found, weights, best)


def _late(found: Solution, kept: int) -> Index:
    """Those of the ``kept`` best problems that have not arrived."""
    order = np.argsort(found.cost)[:kept]
    return np.asarray(order[~found.converged[order] & np.isfinite(found.cost[order])])


def _distinct(found: Solution) -> Index:
    """One problem for each cost that was found, the best first.

    A term whose amplitude has gone to its bound no longer says what its exponents should be: most of these ends are
    worse than what lies around them.
    """
    order = np.argsort(found.cost)
    cost = found.cost[order]
    new = np.append(True, cost[1:] > cost[:-1] * (1 + _EQUAL))
    return np.asarray(order[new & np.isfinite(cost)])


def _trust(problem: Problem, found: Solution, weights: Array, which: Index, evaluations: int) -> None:
    """Continue the problems ``which`` of ``found``, whose loss is least squares, in a trust region."""
    for one in which:
        theta, cost, converged = trust_region(problem, found.theta[one], weights, evaluations)
        if cost <= found.cost[one]:
            found.theta[one], found.cost[one], found.converged[one] = theta, cost, converged
        advance()


def _pass_kinks(problem: Problem, found: Solution, weights: Array, best: int, hard: bool) -> None:
    """Continue the problem ``best`` of ``found`` from points around it until none of them ends lower; where the search
    is ``hard``, with the best of them in a trust region.

    Where slopes jump, as those of min and max do, a descent stops at an edge along which it could go on. The points lie
    where a quadratic cost would rise by a share of 1e-8 to 1e-2.
    """
    rng = np.random.default_rng([len(weights), problem.form.count])
    for _ in range(_ROUNDS):
        theta, cost = found.theta[best], found.cost[best]
        slope = np.sqrt(weights)[:, None] * slopes(problem, theta[None])[0]
        if not (cost > 0 and np.isfinite(slope).all()):
            return
        unit, length = unit_columns(problem, slope, theta)
        values, directions = np.linalg.svd(unit, full_matrices=False)[1:]
        drawn = rng.standard_normal((_AROUND, len(values))) / np.maximum(values, 1e-6 * values[0])
        size = np.sqrt(cost * 10 ** rng.uniform(-8, -2, _AROUND))
        start = theta + drawn @ directions / length * size[:, None]
        more = solve(problem, start, weights, steps=_STEPS_FIRST if hard else STEPS)
        least = int(np.argmin(more.cost))
        if hard and np.isfinite(more.cost[least]):
            _trust(problem, more, weights, np.array([least]), _AGAIN)
        if more.cost[least] < cost:
            found.theta[best], found.cost[best] = more.theta[least], more.cost[least]
            found.converged[best] |= more.converged[least]
        if not more.cost[least] < cost * (1 - _LOWER):
            return
        advance()


def reached(problem: Problem, cost: Array, weights: Array, share: float = 1e-6) -> Bools:
    """Return which costs (m,) equal the least one within this share."""
    # The absolute term is for data that lie exactly on a law, where every sum of squares is rounding.
    scale = len(weights) if problem.residuals == "log" else float(weights @ problem.target**2)
    return np.asarray(cost <= cost.min() * (1 + share) + 1e-16 * scale)


def leading(problem: Problem, found: Solution, weights: Array) -> int:
    """The best of the fits of one problem: of equals that with the fewest parameters below 0, such as the width of a
    peak, whose square alone counts."""
    equals = np.flatnonzero(reached(problem, found.cost, weights, _EQUAL))
    negative = (found.theta[equals] < 0).sum(axis=1)
    return int(equals[np.lexsort((found.cost[equals], negative))[0]])


def _polished(problem: Problem, found: Solution, weights: Array, best: int) -> Solution:
    """Refine the problem ``best`` of ``found`` until rounding stops it, so that all digits of its parameters hold."""
    last = solve(problem, found.theta[best : best + 1], weights, steps=STEPS, tolerance=_POLISH)
    if last.cost[0] <= found.cost[best]:
        found.theta[best], found.cost[best] = last.theta[0], last.cost[0]
        found.converged[best] |= last.converged[0]
    return found


def _carry_on(
    problem: Problem, found: Solution, weights: Array, which: Index, steps: int | None = _STEPS_CARRIED
) -> Solution:
    """Continue the problems ``which`` of ``found`` from where they are."""
    if not len(which):
        return found
    target = problem.target if problem.target.ndim == 1 else problem.target[which]
    heavy = weights if weights.ndim == 1 else weights[which]
    more = solve(replace(problem, target=target), found.theta[which], heavy, steps=steps)
    theta, cost, converged = found.theta.copy(), found.cost.copy(), found.converged.copy()
    theta[which], cost[which], converged[which] = more.theta, more.cost, more.converged
    return Solution(theta, cost, converged)


def refit(
    problem: Problem,
    theta: Array,
    weights: Array,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    starts: int,
    seed: list[int],
) -> Solution:
    """Fit each row of ``weights`` (m, n) anew, from ``theta`` (k,) or (m, k) and from ``starts`` - 1 random starts;
    the best."""
    m, n = weights.shape
    size = max(1, _MEMORY // (n * starts))
    if m > size:  # large tables go in parts
        parts = [
            refit(
                replace(problem, target=problem.target[i : i + size]) if problem.target.ndim == 2 else problem,
                theta if theta.ndim == 1 else theta[i : i + size],
                weights[i : i + size],
                ranges,
                scales,
                starts,
                [*seed, i],
            )
            for i in range(0, m, size)
        ]
        return Solution(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Solution)))
    first = np.broadcast_to(theta, (m, problem.form.count))[:, None, :]
    drawn = (
        draw_starts(problem, ranges, scales, weights, starts - 1, seed)
        if starts > 1
        else np.empty((0, theta.shape[-1]))
    )
    start = np.concatenate([first, drawn.reshape(m, starts - 1, problem.form.count)], axis=1).reshape(m * starts, -1)
    wide = problem
    if problem.target.ndim == 2:
        wide = replace(problem, target=np.repeat(problem.target, starts, axis=0))
    heavy = np.repeat(weights, starts, axis=0)
    found = solve(wide, start, heavy, steps=_STEPS_FIRST if starts > 1 else None, tick=_counted(starts))
    pick = np.arange(m) * starts + np.argmin(found.cost.reshape(m, starts), axis=1)
    best = Solution(found.theta[pick], found.cost[pick], found.converged[pick])
    return _carry_on(problem, best, weights, np.flatnonzero(~best.converged & np.isfinite(best.cost)))


def _counted(starts: int) -> Callable[[int], None]:
    """Return what tells of the refits that are done, for a solver that tells of their starts, one after the other."""
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        advance((done + count) // starts - done // starts)
        done += count

    return tick


def draw_starts(
    problem: Problem,
    ranges: list[tuple[float, float] | None],
    scales: Array,
    weights: Array,
    count: int,
    seed: list[int],
) -> Array:
    """Random internal starts (m * count, k) for m rows of ``weights`` (m, n), ``count`` after ``count``.

    Parameters that enter linearly are solved for, unless they have a range: then every second start takes them from it.
    The others are drawn from ``ranges``, or where there is none (None) by :mod:`gsq.analysis.fitting.starts`, which
    ``scales``, typical values of the columns, help.
    """
    form, rng = problem.form, np.random.default_rng(seed)
    m = len(weights) * count
    theta = np.zeros((m, form.count))
    bent = [i for i in range(form.count) if i not in form.amplitudes]
    known = habits(form, problem.data) if any(ranges[i] is None for i in bent) else {}
    for i, pair in enumerate(ranges):
        if pair is None and i in bent:
            theta[:, i] = draw(known.get(i), scales, problem.low[i], problem.high[i], m, rng)
        elif pair is not None:
            low, high = pair
            if low == high:  # half of the starts begin at this value, the others near it
                near = (low or 1.0) * np.exp(_NEAR * rng.standard_normal(m))
                theta[:, i] = np.where(np.arange(m) % count < 2, low, near)
            elif low > 0 and high >= 100 * low:
                theta[:, i] = np.exp(rng.uniform(np.log(low), np.log(high), m))
            else:
                theta[:, i] = rng.uniform(low, high, m)
    given = [i for i in form.amplitudes if ranges[i] is not None]
    inner = form.internal(theta, problem.centre) if given else theta
    theta = np.clip(theta, problem.low, problem.high)
    target = np.repeat(np.broadcast_to(problem.target, weights.shape), count, axis=0)
    found = with_amplitudes(replace(problem, target=target), theta, np.repeat(weights, count, axis=0))
    if given:
        found[::2, given] = np.clip(inner, problem.low, problem.high)[::2, given]
    return found


def with_amplitudes(problem: Problem, theta: Array, weights: Array, kept: int | None = None) -> Array:
    """``theta`` (m, k) with the amplitudes, but for parameter ``kept``, that suit its other parameters: linear least
    squares (of relative errors for log residuals) for weights (n,) or (m, n), or a part of the target where that
    leaves the bounds."""
    form = problem.form
    names = [i for i in form.amplitudes if i != kept]
    if not names:
        return theta
    theta = theta.copy()
    with np.errstate(all="ignore"):
        basis, rest = form.basis(theta, problem.data, problem.centre)
        if kept in form.amplitudes:
            at = form.amplitudes.index(kept)
            rest = rest + basis[at] * theta[:, kept, None]
            basis = np.delete(basis, at, axis=0)
        target = np.broadcast_to(problem.target, rest.shape)
        heavy = np.broadcast_to(weights, rest.shape)
        if problem.residuals == "log":
            heavy = heavy / target**2
        # Each row of the basis at unit scale first: it may be larger than a square of it can be.
        most_of = np.maximum(np.nan_to_num(np.abs(basis), posinf=0).max(axis=2), 1e-300)
        unit = basis / most_of[:, :, None]
        gram = np.einsum("imn,jmn,mn->mij", unit, unit, heavy)
        right = np.einsum("imn,mn,mn->mi", unit, target - rest, heavy)
        size = np.sqrt(np.maximum(np.einsum("mii->mi", gram), 1e-300))
        gram = gram / size[:, :, None] / size[:, None, :]
        for i in range(len(names)):
            gram[:, i, i] += 1e-9
        solved = cholesky_solve(gram, right / size) / size / most_of.T
        # A part of the target for each term: where the solution would be at a bound, or no logarithm exist.
        share = np.mean(target, axis=1)[:, None] / len(names) / np.maximum(np.abs(basis).mean(axis=2).T, 1e-300)
    least, most = problem.low[names], problem.high[names]
    inside = np.isfinite(solved) & (solved > least) & (solved < most)
    # Never at a bound: a term whose amplitude is zero says nothing of its other parameters.
    spare = np.clip(np.where(np.isfinite(share), share, 1.0), least, most)
    theta[:, names] = np.where(inside, solved, np.clip(0.1 * spare, least, most))
    if problem.residuals == "log":
        value = form.both(theta, problem.data, problem.centre)[0]
        wrong = ~(value > 0).all(axis=1)
        theta[np.ix_(np.flatnonzero(wrong), np.array(names))] = spare[wrong]
    return np.where(np.arange(form.count) == kept, theta, np.clip(theta, problem.low, problem.high))
