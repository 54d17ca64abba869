"""Compute what runs are expected to tell: the value that further runs of cells would lower.

Each law is taken as linear around its fit. In the residuals of the fit (logarithms, usually) a configuration of slopes
J with n runs holds the information J J' / (tau^2 + sigma^2 / n): sigma is the noise between seeds, tau the scatter of
configurations about the law, which no further seed averages out. With M the sum over the configurations and P a faint
prior, a millionth of what one run of every cell would tell of each parameter, so that what nothing determines yet is
very uncertain instead of infinitely so, the covariance is C = (M + P)^-1 (Bayesian linear design: Chaloner and
Verdinelli, Statistical Science 10 (1995), 273-304). A run that adds w J J' leaves C - w C J J' C / (1 + w J' C J).

The value that falls, by target:
- a parameter, or the prediction at cells: half of the expected interval, t sqrt(g' C g) with the slopes g of what is
  wanted and Student's t for (configurations - k) degrees of freedom, as the fit's own intervals have it; of several
  cells the widest, of several laws the root of the mean square by their AICc weights.
- with the criterion "average", the root of the mean square of that over all cells (V- or I-optimality), to which what
  the rivals, laws or local minima of a fit, disagree about adds: :mod:`gsq.analysis.designing.spread`.
- the discrimination of laws: the AICc weight that wrong laws are expected to keep. If law i is right, a run at x adds
  g^2 / S to the chi-square against law j, with the gap g between their predictions, once j has followed the runs
  before, and the variance S = 1 / w + J' C J of j's prediction: the part of Box and Hill's criterion (Technometrics 9
  (1967), 57-71) that depends on the predictions, for one run after the other; with C from many runs it is the
  T-criterion of Atkinson and Fedorov (Biometrika 62 (1975), 57-70). Law j then keeps its weight times
  exp(-chi-square / 2).
- the seed noise: half of the interval of ln sigma from the chi-square distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from gsq.analysis.designing.options import Criterion
from gsq.analysis.designing.spread import spread, spread_after
from gsq.analysis.designing.target import Target, cell_text
from gsq.analysis.designing.wanted import wanted_cells
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import chi2_quantile, t_quantile
from gsq.analysis.fitting.noise import pure_error
from gsq.analysis.fitting.result import Fit
from gsq.analysis.tables.table import Array, Index

RIDGE = 1e-6
_WIDEST = 200  # target cells considered at each step; the others are narrower already


@dataclass(frozen=True)
class Cells:
    """Configurations: the measured ones in the order of the fit, then those that only candidates have."""

    frame: pd.DataFrame
    counts: Array
    """Number of measured runs of each, (cells,)."""
    cost: Array
    """Cost of one run of each; NaN where no candidate has this configuration."""
    row: Index
    """Position of the first candidate with each configuration, -1 where there is none."""
    most: Array
    """Largest number of runs that each may have."""


class Rival:
    """A law as linear around its fit, over the configurations and, for a prediction, over the target cells.

    Slopes are divided by their size over all configurations, so that one prior suits every parameter.
    """

    def __init__(self, fit: Fit, target: Target, cells: Cells, wanted: pd.DataFrame | None) -> None:
        self.fit, self.k = fit, len(fit.theta)
        problem, theta = fit.problem, fit.theta
        index = None
        if target.kind == "parameter":
            # With its own amplitude not centred, the parameter of the formula is a coordinate.
            index = fit.law.parameters.index(target.parameter)
            own = replace(problem, form=fit.law.form([target.parameter]))
            problem, theta = own, own.form.internal(problem.form.natural(theta, problem.centre), own.centre)
        self.theta = theta
        log = fit.residuals == "log"

        def linear(frame: pd.DataFrame) -> tuple[Array, Array]:
            value, slope = problem.form.both(theta[None], fit.law.values(frame), problem.centre)
            with np.errstate(all="ignore"):
                value, slopes = value[0], slope[:, 0].T
                if log:
                    value, slopes = np.log(value), slopes / value[:, None]
            if not (np.isfinite(value).all() and np.isfinite(slopes).all()):
                bad = dict(frame.iloc[_first_bad(value, slopes)])
                raise AnalysisError(f"{fit.law.name} has no finite prediction at {cell_text(bad)}")
            return value, slopes

        self.value, slopes = linear(cells.frame)
        size = np.linalg.norm(slopes, axis=0)
        size = np.where(size > 0, size, 1.0)
        self.slopes = slopes / size
        self.sigma2 = self.tau2 = 0.0
        self.noise_source = ""
        """Where sigma comes from; "" where it is unknown and counts as 0."""
        if index is not None:
            self.wanted, self.wanted_value = np.eye(self.k)[[index]] / size, theta[[index]]
        elif wanted is not None:
            self.wanted_value, gradient = linear(wanted)
            self.wanted = gradient / size
        else:
            self.wanted, self.wanted_value = np.empty((0, self.k)), np.empty(0)

    def set_noise(self, noise: float | None) -> None:
        """Set sigma^2 (between seeds) and tau^2 (configurations about the law) from the fit."""
        fit = self.fit
        pure, freedom = pure_error(fit.problem, fit.weights, fit.configurations)
        left = fit.n_configurations - self.k
        if left < 1:
            raise AnalysisError(
                f"{fit.law.name} has as many parameters as there are configurations, so that its scatter is unknown; "
                "measure another one"
            )
        square = max(fit.cost - pure, 0.0) / left
        given = noise if noise is not None else fit.options.noise
        if given is not None:
            self.sigma2, self.noise_source = given**2, "as given"
        elif freedom > 0:
            self.sigma2, self.noise_source = pure / freedom, f"from {freedom} degrees of freedom of seeds"
        self.tau2 = max(0.0, (square - self.sigma2) * fit.n_configurations / fit.n_rows)
        if self.sigma2 + self.tau2 <= 1e-24:
            raise AnalysisError(f"the rows lie on {fit.law.name} exactly; give the noise between seeds (noise)")

    def information(self, counts: Array) -> Array:
        """Return the information of n = ``counts`` runs of each configuration: 1 / (tau^2 + sigma^2 / n), or 0."""
        return np.where(counts > 0, 1 / (self.tau2 + self.sigma2 / np.maximum(counts, 1)), 0.0)

    @property
    def prior(self) -> float:
        """Prior precision of each parameter, where one run of every configuration has precision 1."""
        return RIDGE / (self.sigma2 + self.tau2)


class State:
    """The runs so far, and the parameter covariances given these runs."""

    def __init__(
        self,
        fits: Sequence[Fit],
        weights: Sequence[float],
        target: Target,
        cells: Cells,
        noise: float | None,
        notes: list[str],
        criterion: Criterion = "widest",
    ) -> None:
        self.target, self.cells = target, cells
        self.average = criterion == "average" and target.kind == "predict"
        wanted = wanted_cells(fits, target, cells.frame) if target.kind == "predict" else None
        self.wanted = wanted
        """The cells at which a prediction is wanted."""
        self.weights = np.array(weights) / sum(weights)
        self.rivals = [Rival(fit, target, cells, wanted) for fit in fits]
        for one in self.rivals:
            one.set_noise(noise)
        if target.kind == "discriminate":
            # Whichever law is right, the noise is no larger than the scatter about the one that fits best.
            quiet = min(self.rivals, key=lambda one: one.sigma2 + one.tau2)
            for one in self.rivals:
                one.sigma2, one.tau2 = quiet.sigma2, quiet.tau2
        self.noise_source = self.rivals[0].noise_source
        if not self.noise_source:
            notes.append(
                "the table has no seeds and no noise is given, so all scatter counts as scatter of configurations "
                "about the law, which further seeds do not reduce"
            )
        self.confidence = fits[0].confidence
        self.counts = cells.counts.copy()
        self.covariances = [
            np.linalg.inv(
                np.einsum("c,ci,cj->ij", one.information(self.counts), one.slopes, one.slopes)
                + one.prior * np.eye(one.k)
            )
            for one in self.rivals
        ]
        m = len(self.rivals)
        self.shift = [[np.zeros(other.k) for other in self.rivals] for _ in range(m)]
        """[i][j]: how far law j moves to follow the new runs if law i is right."""
        self.chi2 = np.zeros((m, m))
        self.apart = spread(self.weights, np.stack([one.wanted_value for one in self.rivals])) if self.average else 0.0
        self.left = 1.0
        """Mean spread between the rivals' predictions now, and the expected share of it after the new runs."""

    def copy(self) -> State:
        other = object.__new__(State)
        other.become(self)
        return other

    def become(self, other: State) -> None:
        """Take over the runs of ``other``."""
        self.__dict__.update(other.__dict__)
        self.counts, self.covariances, self.chi2 = other.counts.copy(), list(other.covariances), other.chi2.copy()
        self.shift = [list(row) for row in other.shift]

    def value(self) -> float:
        """Return the value to be lowered, which the module's docstring defines."""
        return float(self.after(np.array([-1]))[0])

    def after(self, which: Index) -> Array:
        """The value after one more run of each configuration in ``which``, (which,); -1 stands for no run."""
        none = which < 0
        cells = np.where(none, 0, which)
        fresh = np.where(none, 0, self.counts[cells] == 0)
        if self.target.kind == "noise":
            return self._noise_width(np.where(none | (fresh > 0), 0, 1))
        gained = [
            np.where(none, 0.0, one.information(self.counts[cells] + 1) - one.information(self.counts[cells]))
            for one in self.rivals
        ]
        if self.target.kind == "discriminate":
            return self._wrong_weight(self.chi2 + self._separation(cells, gained))
        return np.asarray(np.sqrt(self._squares(cells, gained, fresh)))

    def _squares(self, cells: Index, gained: Sequence[Array], fresh: Array) -> Array:
        """The square of the value after one run of each of ``cells``, (cells,)."""
        configurations = int((self.counts > 0).sum())
        top = np.arange(len(self.rivals[0].wanted)) if self.average else self._widest()
        square: Array | float = 0.0
        for one, covariance, w, weight in zip(self.rivals, self.covariances, gained, self.weights, strict=True):
            variance = variances_after(covariance, one.slopes[cells], w, one.wanted[top])
            square = square + weight * (self._t(configurations + fresh - one.k) ** 2)[:, None] * variance
        square = np.asarray(square)
        if not self.average:
            return np.asarray(square.max(axis=1))
        ts = np.stack([self._t(configurations + fresh - one.k) for one in self.rivals])
        return np.asarray(square.mean(axis=1) + self.weights @ ts**2 * self._left_after(cells, gained) * self.apart)

    def _left_after(self, cells: Index, gained: Sequence[Array]) -> Array:
        """Return the share of the rivals' spread expected to remain after one run of each of ``cells``, (cells,).

        Of several runs each leaves the share that it would leave alone.
        """
        if not self.apart > 0:
            return np.ones(len(cells))
        value, variance, gain = [], [], []
        for one, covariance, w in zip(self.rivals, self.covariances, gained, strict=True):
            along = one.slopes[cells] @ covariance
            variance.append(1 / np.maximum(w, 1e-300) + np.einsum("ck,ck->c", along, one.slopes[cells]))
            value.append(one.value[cells])
            gain.append(one.wanted @ along.T / variance[-1])
        wanted = np.stack([one.wanted_value for one in self.rivals])
        found = spread_after(self.weights, np.stack(value), np.stack(variance), wanted, np.stack(gain))
        return self.left * np.where(gained[0] > 0, np.minimum(found / self.apart, 1), 1.0)

    def _widest(self) -> Index:
        """Target cells with the widest intervals."""
        count = len(self.rivals[0].wanted)
        if count <= _WIDEST:
            return np.arange(count)
        return np.argsort(-self.halves())[:_WIDEST]

    def halves(self) -> Array:
        """Return half of the interval of each wanted quantity, (wanted,)."""
        square: Array | float = 0.0
        middle = sum(w * one.wanted_value for w, one in zip(self.weights, self.rivals, strict=True))
        for one, covariance, weight in zip(self.rivals, self.covariances, self.weights, strict=True):
            t = self._t(np.array([int((self.counts > 0).sum()) - one.k]))[0]
            variance = np.einsum("tk,kl,tl->t", one.wanted, covariance, one.wanted)
            if self.apart > 0:
                variance = variance + self.left * (one.wanted_value - middle) ** 2
            square = square + weight * t**2 * variance
        return np.asarray(np.sqrt(square))

    def open(self) -> Array:
        """Whether most of the variance of each wanted quantity comes from the prior alone, (wanted,)."""
        found = np.zeros(len(self.rivals[0].wanted), dtype=bool)
        for one, covariance, weight in zip(self.rivals, self.covariances, self.weights, strict=True):
            along = one.wanted @ covariance
            with np.errstate(all="ignore"):
                share = one.prior * (along**2).sum(1) / np.einsum("tk,tk->t", along, one.wanted)
            found |= (share > 0.5) & (weight > 1e-3)
        return found

    def is_open(self) -> bool:
        """Whether the target as a whole is undetermined."""
        if self.target.kind in ("noise", "discriminate"):
            return not np.isfinite(self.value())
        return bool(self.open()[np.argmax(self.halves())])

    def _t(self, freedom: Array) -> Array:
        return np.asarray(t_quantile((1 + self.confidence) / 2, np.maximum(freedom, 1)))

    def _noise_width(self, more: Array) -> Array:
        """Half of the interval of ln sigma with ``more`` degrees of freedom, infinite without any."""
        freedom = np.maximum(self.counts - 1, 0).sum() + more
        tail = (1 - self.confidence) / 2
        with np.errstate(all="ignore"):
            width = np.log(chi2_quantile(1 - tail, freedom) / chi2_quantile(tail, freedom)) / 4
        return np.asarray(np.where(freedom > 0, width, np.inf))

    def _separation(self, cells: Index, gained: Sequence[Array]) -> Array:
        """Return what a run of each of ``cells`` adds to the chi-square against law j if i is right, (cells, i, j)."""
        m = len(self.rivals)
        found = np.zeros((len(cells), m, m))
        for j, (rival, covariance) in enumerate(zip(self.rivals, self.covariances, strict=True)):
            slopes = rival.slopes[cells]
            spread = gained[j] / (1 + gained[j] * np.einsum("ck,kl,cl->c", slopes, covariance, slopes))
            for i, right in enumerate(self.rivals):
                if i != j:
                    gap = right.value[cells] - rival.value[cells] - slopes @ self.shift[i][j]
                    found[:, i, j] = gap**2 * spread
        return found

    def _wrong_weight(self, chi2: Array) -> Array:
        """Expected weight of wrong laws for chi-squares (..., i, j)."""
        share = self.weights[None, :] * np.exp(-chi2 / 2)
        right = np.einsum("...ii->...i", share) / share.sum(axis=-1)
        return np.atleast_1d(1 - right @ self.weights)

    def add(self, cell: int) -> None:
        """Add one run of this configuration."""
        gained = [
            float(one.information(self.counts[[cell]] + 1)[0] - one.information(self.counts[[cell]])[0])
            for one in self.rivals
        ]
        if self.target.kind == "discriminate":
            self.chi2 = self.chi2 + self._separation(np.array([cell]), [np.array([w]) for w in gained])[0]
        if self.apart > 0:
            self.left = float(self._left_after(np.array([cell]), [np.array([w]) for w in gained])[0])
        for j, (one, w) in enumerate(zip(self.rivals, gained, strict=True)):
            along = self.covariances[j] @ one.slopes[cell]
            spread = 1 + w * one.slopes[cell] @ along
            for i, right in enumerate(self.rivals):
                if i != j:
                    gap = right.value[cell] - one.value[cell] - one.slopes[cell] @ self.shift[i][j]
                    self.shift[i][j] = self.shift[i][j] + along * (w * gap / spread)
            self.covariances[j] = self.covariances[j] - np.outer(along, along) * (w / spread)
        self.counts[cell] += 1


def variances_after(covariance: Array, slopes: Array, information: Array, wanted: Array) -> Array:
    """Variance of each thing wanted (t, k) after one run of slopes (c, k) that adds ``information`` (c,): (c, t)."""
    along = slopes @ covariance
    share = information / (1 + information * np.einsum("ck,ck->c", along, slopes))
    now = np.einsum("tk,kl,tl->t", wanted, covariance, wanted)
    return np.maximum(now - share[:, None] * (along @ wanted.T) ** 2, 0)


def _first_bad(value: Array, slopes: Array) -> int:
    return int(np.argmax(~(np.isfinite(value) & np.isfinite(slopes).all(axis=1))))
