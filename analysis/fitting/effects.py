"""Fit random effects: deviations that the rows of one study, or the seeds of one configuration, share.

Rows of one study share an offset that the law knows nothing of, so that they tell less than as many independent rows.
The spread between studies, between configurations and between seeds is estimated by restricted maximum likelihood of
the law linearised at its optimum (closed-form updates that keep every variance at or above 0: Zhou, Hu, Qiao and Cho,
"MM algorithms for variance components models", 2019); the parameters by generalised least squares under it, and degrees
of freedom by Satterthwaite. Shapes: n rows, k parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import t_quantile
from gsq.analysis.fitting.identify import slopes
from gsq.analysis.fitting.result import Fit
from gsq.analysis.fitting.solver import Bools
from gsq.analysis.tables.table import Array, Index, labels, quoted, unquoted

Quantity = Callable[[Array], Array]
"""Internal parameters (m, k) to values (m,)."""
_NUDGE = 1e-5  # relative step of the differences that derivatives of a quantity are taken from
MOST_ROWS = 1500  # each update inverts a matrix of rows by rows
_UPDATES = 400
_ROUNDS = 8
_NOTHING = 1e-6  # of the whole variance


@dataclass(frozen=True)
class RandomEffects:
    """A law fitted by generalised least squares, and the spreads that its weights follow from."""

    spreads: dict[str, float]
    """Standard deviations (relative for log residuals) of the random columns, of "configuration" where the rows hold
    replicates, and of "run", what is left of a single row."""
    theta: Array
    """Internal parameters, (k,)."""
    covariance: Array
    """Covariance of the parameters, (k, k)."""
    _shares: Array
    """Derivatives of ``covariance`` by each variance, (variances, k, k)."""
    _uncertainty: Array
    """Covariance of the variances, (variances, variances)."""

    def interval(self, quantity: Quantity, confidence: float) -> tuple[float, float, float]:
        """Return the value of ``quantity`` and its t interval, as (value, low, high)."""
        value, slope = float(quantity(self.theta[None])[0]), gradient(quantity, self.theta)
        variance = float(slope @ self.covariance @ slope)
        change = np.einsum("i,vij,j->v", slope, self._shares, slope)
        noise = float(change @ self._uncertainty @ change)
        freedom = max(1.0, 2 * variance**2 / noise) if noise > 0 else np.inf
        half = float(t_quantile((1 + confidence) / 2, freedom)) * np.sqrt(variance)
        return value, value - half, value + half

    @property
    def text(self) -> str:
        return "standard deviations " + ", ".join(f"{name} {value:.2g}" for name, value in self.spreads.items())


def random_effects(fit: Fit, column: str | None = None) -> RandomEffects:
    """Refit ``fit`` with a random effect of each value of ``column`` (such as study), if given, and of each
    configuration where the rows hold replicates.

    Raises AnalysisError for other losses than least squares, for a column with fewer than three values or one for each
    row, or for more than 1,500 rows.
    """
    if fit.options.loss != "least_squares":
        raise AnalysisError(f"random effects need the loss least_squares, got {fit.options.loss}")
    if fit.n_rows > MOST_ROWS:
        raise AnalysisError(f"random effects take up to {MOST_ROWS} rows, got {fit.n_rows}; select fewer (--where)")
    groups: dict[str, Index] = {}
    if column is not None:
        column = unquoted(column)
        found = np.unique(labels(fit.rows, column).astype(str), return_inverse=True)[1]
        count = int(found.max()) + 1
        if count < 3 or count == fit.n_rows:
            raise AnalysisError(
                f"a random effect of {column} needs three values or more, with several rows each; got {count} in "
                f"{fit.n_rows} rows. With two, take it into the law: [{quoted(column)}]"
            )
        groups[column] = found
    if fit.n_configurations < fit.n_rows:
        groups["configuration"] = fit.configurations
    names = [*groups, "run"]
    parts = [np.equal.outer(group, group).astype(np.float64) for group in groups.values()]
    parts.append(np.diag(1 / fit.weights))
    problem = fit.problem
    goal = np.log(problem.target) if problem.residuals == "log" else problem.target
    theta = fit.theta
    free = (theta > problem.low) & (theta < problem.high)
    variances = np.full(len(parts), fit.scatter**2 / len(parts))
    for _ in range(_ROUNDS):
        value = problem.predict(theta[None])[0]
        error = goal - (np.log(value) if problem.residuals == "log" else value)
        jacobian = slopes(problem, theta[None])[0][:, free]
        variances = _restricted(error, jacobian, parts, variances)
        covariance, inverse = _generalised(jacobian, parts, variances)
        step = np.zeros_like(theta)
        step[free] = covariance @ (jacobian.T @ (inverse @ error))
        theta = np.clip(theta + step, problem.low, problem.high)
        if np.linalg.norm(jacobian @ step[free]) <= 1e-10 * np.linalg.norm(goal):
            break
    return _summary(theta, free, jacobian, parts, variances, names)


def _summary(
    theta: Array, free: Bools, jacobian: Array, parts: list[Array], variances: Array, names: list[str]
) -> RandomEffects:
    covariance, inverse = _generalised(jacobian, parts, variances)
    projection = inverse - inverse @ jacobian @ covariance @ jacobian.T @ inverse
    known = np.flatnonzero(variances > _NOTHING * variances.sum())
    turned = [projection @ parts[i] for i in known]
    information = np.array([[0.5 * np.sum(a * b.T) for b in turned] for a in turned])
    k = len(theta)
    wide, shares = np.zeros((k, k)), np.zeros((len(known), k, k))
    wide[np.ix_(free, free)] = covariance
    for row, i in enumerate(known):
        middle = jacobian.T @ inverse @ parts[i] @ inverse @ jacobian
        shares[row][np.ix_(free, free)] = covariance @ middle @ covariance
    spreads = dict(zip(names, np.sqrt(variances).tolist(), strict=True))
    return RandomEffects(spreads, theta, wide, shares, np.linalg.pinv(information))


def _generalised(jacobian: Array, parts: list[Array], variances: Array) -> tuple[Array, Array]:
    """Covariance of the parameters (k, k), and the inverse covariance of the rows (n, n)."""
    rows = sum(variance * part for variance, part in zip(variances, parts, strict=True))
    inverse = np.linalg.inv(np.asarray(rows))
    length = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    unit = jacobian / length
    return np.linalg.pinv(unit.T @ inverse @ unit, hermitian=True) / np.outer(length, length), inverse


def _restricted(error: Array, jacobian: Array, parts: list[Array], variances: Array) -> Array:
    """Return the variances (parts,) that maximise the restricted likelihood, starting from ``variances``."""
    for _ in range(_UPDATES):
        covariance, inverse = _generalised(jacobian, parts, variances)
        projection = inverse - inverse @ jacobian @ covariance @ jacobian.T @ inverse
        pulled = projection @ error
        ratio = np.array([(pulled @ part @ pulled) / max(np.sum(projection * part), 1e-300) for part in parts])
        new = np.maximum(variances * np.sqrt(np.maximum(ratio, 0)), 1e-12 * variances.sum())
        if np.abs(new - variances).max() <= 1e-7 * new.sum():
            return np.asarray(new)
        variances = new
    return np.asarray(variances)


@np.errstate(all="ignore")
def gradient(quantity: Quantity, theta: Array) -> Array:
    """Derivatives (k,) of ``quantity`` at ``theta`` (k,), by central differences."""
    step = _NUDGE * np.maximum(np.abs(theta), 1e-3)
    value = quantity(np.concatenate([theta + np.diag(step), theta - np.diag(step)]))
    return np.asarray((value[: len(theta)] - value[len(theta) :]) / (2 * step))
