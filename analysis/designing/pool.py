"""Try designs on finished studies: a pool of runs with known outcomes, which are bought one by one.

Each run bought is the one that lowers the mean variance of the predictions at the held-out rows the most for its
cost^cost_exponent, within the next budget: their variance under each rival (V-optimality), and what the rivals, the
laws and their local minima, are expected to disagree about afterwards (:mod:`gsq.analysis.designing.spread`).
Outcomes of runs that are not bought, and those of held-out rows, are never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from gsq.analysis.designing.optima import leading
from gsq.analysis.designing.spread import spread, spread_after
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.options import Residuals
from gsq.analysis.fitting.searching import draw_starts
from gsq.analysis.fitting.solver import Prior, Problem, solve
from gsq.analysis.laws.named import Law
from gsq.analysis.tables.table import Array, Index, numbers

_EARLY = 50  # steps of every start; the best go on
_CARRIED = 8
_FAINT = 0.01  # weight of the prior in a fit: it decides only what the rows leave open
_WIDE = 4.0  # standard deviation of a prior of outcomes, in those of the outcomes seen


@dataclass(frozen=True)
class Settings:
    """Options for choosing and fitting runs; see :func:`analysis.replay_budgets`."""

    residuals: Residuals = "log"
    cost_exponent: float = 0.5
    optima: int = 4
    starts: int = 32
    batch: float = 0.1
    scatter: float = 1.0
    seed: int = 0


@dataclass
class Rival:
    """One minimum of one law: its parameters, and its linear form over the pool and the held-out rows."""

    law: int
    theta: Array
    cost: float
    weight: float
    value: Array = field(default_factory=lambda: np.empty(0))
    """Predictions of the pool's rows, (rows,), in residual units."""
    slopes: Array = field(default_factory=lambda: np.empty(0))
    """Their derivatives by the parameters, (rows, k)."""
    wanted: Array = field(default_factory=lambda: np.empty(0))
    wanted_slopes: Array = field(default_factory=lambda: np.empty(0))
    covariance: Array = field(default_factory=lambda: np.empty(0))
    square: float = 0.0
    """Variance of the rows about the law."""


class Part:
    """Rows of one group that share parameters: those of the pool, which belong to runs, and the held-out ones."""

    def __init__(
        self,
        laws: Sequence[Law],
        pool: pd.DataFrame,
        held_out: pd.DataFrame,
        runs: Index,
        count: int,
        how: Settings,
    ) -> None:
        self.laws, self.how = laws, how
        self.rows = [np.flatnonzero(runs == run) for run in range(count)]
        """Return the rows of each run."""
        self.target = numbers(pool, laws[0].target)
        self.data = [law.values(pool) for law in laws]
        self.far = [law.values(held_out) for law in laws]
        self.goal = np.log(self.target) if how.residuals == "log" else self.target
        self.rivals: list[Rival] = []
        self.rng = np.random.default_rng([how.seed, 8])

    def taken(self, bought: Sequence[int]) -> Index:
        """Return the rows of the runs that were bought."""
        return np.sort(np.concatenate([self.rows[run] for run in bought]))

    def problem(self, law: int, taken: Index) -> Problem:
        one = self.laws[law]
        low, high = one.limits(self.target[taken])
        return Problem(one.form(), self.data[law][:, taken], self.target[taken], self.how.residuals, low, high)

    def fit(self, taken: Index, starts: int, steps: int, most: int) -> None:
        """Fit every law to the rows ``taken``, from its minima so far and from so many random starts, and keep the
        leading minima of each, ``most`` of them."""
        found: list[Rival] = []
        for law, one in enumerate(self.laws):
            problem = self.problem(law, taken)
            form, centre = problem.form, problem.centre
            ranges = [one.starts.get(name, _box(one, name)) for name in one.parameters]
            sizes = np.unique([1.0, *(s for s in np.median(np.abs(problem.data), axis=1) if 0 < s < np.inf)])
            start = draw_starts(
                problem, ranges, sizes, np.ones((1, len(taken))), starts, [int(self.rng.integers(2**31))]
            )
            warm = [form.internal(rival.theta, centre) for rival in self.rivals if rival.law == law]
            even = np.ones(len(taken))
            got = solve(problem, np.concatenate([*(w[None] for w in warm), start]), even, steps=_EARLY)
            good = np.argsort(got.cost)[: max(_CARRIED, most) + len(warm)]
            problem = replace(problem, prior=self._faint(problem, float(got.cost[good[0]])))
            got = solve(problem, got.theta[good], even, steps=steps)
            good = np.flatnonzero(np.isfinite(got.cost))
            if not len(good):
                continue
            theta, cost = got.theta[good], got.cost[good]
            far = self._seen(problem.predict(theta, self.far[law]))
            kept, weights = leading(cost, far, len(taken), float(np.var(self.goal[taken])), most)
            found += [
                Rival(law, form.natural(theta[i], centre), float(cost[i]), float(w))
                for i, w in zip(kept, weights, strict=True)
            ]
        if not found and not self.rivals:
            raise AnalysisError(
                f"{self.laws[0].name}: no start has a finite value at the rows that the replay begins with; give the "
                "parameters ranges of starts or bounds"
            )
        self.rivals = found or self.rivals
        self._weigh(len(taken))

    def _faint(self, problem: Problem, cost: float) -> Prior:
        """The prior of :func:`_prior`, around the middle of each box, at a weight that only decides between parameters
        which suit the rows equally well. Where there are fewer rows than parameters, everything depends on it."""
        low, high, rows = problem.low, problem.high, len(problem.target)
        goal = np.log(problem.target) if self.how.residuals == "log" else problem.target
        least = 1e-4 * max(float(np.var(goal)), 1e-4 * float(np.mean(goal**2)))
        square = (2 * least + cost) / (2 + max(rows - len(low), 0))
        boxed = np.isfinite(low) & np.isfinite(high)
        log = boxed & (low > 0)
        with np.errstate(all="ignore"):
            ends = [np.where(log, np.log(end), end) for end in (low, high)]
            middle = np.where(boxed, (ends[0] + ends[1]) / 2, 0.0)
            precision = np.where(boxed, _FAINT * square / ((ends[1] - ends[0]) / 4) ** 2, 0.0)
        return Prior(middle, precision, log)

    def _weigh(self, rows: int) -> None:
        """Weights of minima within a law times those of the laws, by AICc where the rows allow it, else by fit."""
        best = {law: min(r.cost for r in self.rivals if r.law == law) for law in {r.law for r in self.rivals}}
        least = rows * max(1e-12 * float(np.var(self.goal)), 1e-300)
        score = {}
        for law, cost in best.items():
            k = len(self.laws[law].parameters) + 1
            few = rows - k - 1 <= 0
            score[law] = rows * np.log((cost + least) / rows) + (
                2 * k if few else 2 * k + 2 * k * (k + 1) / (rows - k - 1)
            )
        low = min(score.values())
        for rival in self.rivals:
            rival.weight *= float(np.exp((low - score[rival.law]) / 2))
        total = sum(rival.weight for rival in self.rivals)
        for rival in self.rivals:
            rival.weight /= total

    def _seen(self, value: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.log(value) if self.how.residuals == "log" else value

    def linearise(self, taken: Index) -> None:
        """Slopes of every rival at the pool and at the held-out rows, and its covariance given the rows ``taken``."""
        observed = self.goal[taken]
        for rival in self.rivals:
            law = self.laws[rival.law]
            problem = self.problem(rival.law, taken)
            form, centre = problem.form, problem.centre
            theta = form.internal(rival.theta, centre)
            parts = []
            for data in (self.data[rival.law], self.far[rival.law]):
                value, slope = form.both(theta[None], data, centre)
                with np.errstate(all="ignore"):
                    slopes = slope[:, 0].T / (value[0][:, None] if self.how.residuals == "log" else 1.0)
                parts.append((self._seen(value[0]), np.nan_to_num(slopes, posinf=0, neginf=0)))
            (rival.value, rival.slopes), (rival.wanted, rival.wanted_slopes) = parts
            prior = _prior(law, theta, problem.low, problem.high, rival.slopes)
            few = max(len(taken) - len(theta), 0)
            # Few rows say little of the scatter, and a law's own misfit counts: before any row it is that of the
            # outcomes, worth two rows, as in the published method.
            known = 2 * self.how.scatter * float(np.var(observed)) + 1e-300
            rival.square = (known + rival.cost) / (2 + few)
            near = rival.slopes[taken]
            information = near.T @ near / rival.square + np.diag(prior)
            unit = 1 / np.sqrt(np.diag(information))
            rival.covariance = np.linalg.pinv(information * unit[:, None] * unit, hermitian=True) * unit[:, None] * unit

    def gains(self, runs: Index) -> Array:
        """Return by how much each of ``runs`` lowers the sum of the variances at the held-out rows, (runs,)."""
        width = max(len(self.rows[run]) for run in runs)
        which = np.array([[*self.rows[run], *[-1] * (width - len(self.rows[run]))] for run in runs])
        used = which >= 0
        found = np.zeros(len(runs))
        value, variance, gain = [], [], []
        for rival in self.rivals:
            slopes = np.where(used[:, :, None], rival.slopes[which], 0)  # (runs, width, k)
            along = slopes @ rival.covariance
            noise = along @ slopes.transpose(0, 2, 1) + rival.square * np.eye(width)
            cross = np.einsum("tk,rwk->rtw", rival.wanted_slopes, along)
            scaled = np.linalg.solve(noise, cross.transpose(0, 2, 1))  # (runs, width, t)
            found += rival.weight * np.einsum("rtw,rwt->r", cross, scaled)
            value.append(rival.value[which[:, 0]])
            variance.append(noise[:, 0, 0])
            gain.append(scaled[:, 0].T)
        wanted = np.stack([rival.wanted for rival in self.rivals])
        weights = np.array([rival.weight for rival in self.rivals])
        if width == 1 and len(self.rivals) > 1 and np.isfinite(wanted).all():
            before = spread(weights, wanted)
            after = spread_after(weights, np.stack(value), np.stack(variance), wanted, np.stack(gain))
            found += np.nan_to_num(np.maximum(before - after, 0)) * wanted.shape[1]
        return np.nan_to_num(found, nan=-1.0)

    def add(self, run: int) -> None:
        """Update the covariances as if ``run`` had been bought; its outcome does not matter."""
        for rival in self.rivals:
            for row in self.rows[run]:
                along = rival.covariance @ rival.slopes[row]
                spare = rival.square + rival.slopes[row] @ along
                rival.covariance = rival.covariance - np.outer(along, along) / spare

    def keep(self, most: int) -> None:
        """Keep the ``most`` rivals with the largest weights."""
        self.rivals = sorted(self.rivals, key=lambda one: -one.weight)[:most]
        total = sum(rival.weight for rival in self.rivals)
        for rival in self.rivals:
            rival.weight /= total

    def _variance(self, rival: Rival, rows: int) -> Array:
        """Variance of the held-out predictions. The scatter about the law is what the rows fitted say, where more than
        parameters, and not the wider one that runs are bought by."""
        few = rows - len(rival.theta)
        share = min(rival.cost / few / rival.square, 1.0) if few > 0 else 1.0
        return share * np.einsum("tk,kl,tl->t", rival.wanted_slopes, rival.covariance, rival.wanted_slopes)

    def predictions(self, taken: Index, average: bool) -> Array:
        """Predict the held-out rows, by the weighted median of the rivals or by the best one alone.

        Where rows leave a law undetermined, some of its minima predict values far from anything seen; they must not
        decide. Where all of them do, the median is uncertain: it is drawn towards the mean of the outcomes ``taken``,
        as by a normal prior of outcomes.
        """
        values = np.stack([rival.wanted for rival in self.rivals])
        weights = np.array([rival.weight for rival in self.rivals])
        if average:
            order = np.argsort(values, axis=0)
            below = np.cumsum(weights[order], axis=0)
            at = np.argmax(below >= 0.5 * (1 - 1e-9), axis=0)
            middle = np.take_along_axis(values, np.take_along_axis(order, at[None], axis=0), axis=0)[0]
            mean, before = float(np.mean(self.goal[taken])), _WIDE**2 * float(np.var(self.goal[taken]))
            variance = sum(rival.weight * self._variance(rival, len(taken)) for rival in self.rivals)
            if before > 0:
                apart = np.where(np.isfinite(middle), middle - mean, 0)
                middle = mean + apart * before / (before + variance)
        else:
            middle = values[int(np.argmax(weights))]
        return np.asarray(np.exp(middle) if self.how.residuals == "log" else middle)


def _box(law: Law, name: str) -> tuple[float, float] | None:
    low, high = law.bounds.get(name, (-np.inf, np.inf))
    return None if isinstance(high, str) or not np.isfinite([low, high]).all() else (float(low), float(high))


def _prior(law: Law, theta: Array, low: Array, high: Array, slopes: Array) -> Array:
    """Precision of each parameter before any row, (k,): a normal whose standard deviation is a quarter of its box
    (of its logarithm's, where the box lies above 0), or faint where it has no box."""
    with np.errstate(all="ignore"):
        width = np.where(low > 0, np.log(high / low) * np.abs(theta), high - low) / 4
    faint = 1e-6 * np.mean(slopes**2, axis=0)
    return np.asarray(np.where(np.isfinite(width) & (width > 0), 1 / np.maximum(width, 1e-150) ** 2, faint + 1e-300))
