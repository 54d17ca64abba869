"""Compute what an arm is worth: the factor by which another arm needs more bits, compute or images for the same result.

A law with a value of a parameter for each arm, ``rfid = A[quantizer] * bits_per_pixel^(-alpha)``, says of two arms that
one reaches at x what the other reaches at k x. Where they share the exponent, k is the same at every x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import f_above
from gsq.analysis.fitting.effects import RandomEffects, random_effects
from gsq.analysis.fitting.fit import fit_rows
from gsq.analysis.fitting.result import Fit, confounded_text, interval_text, or_none
from gsq.analysis.jsonable import picked
from gsq.analysis.laws.formula import split_target, with_numbers
from gsq.analysis.laws.syntax import index_of
from gsq.analysis.tables.left_out import Excluded
from gsq.analysis.tables.table import Array, numbers, quoted, unquoted

_FAR = 60.0  # logarithm of the largest factor looked for
_SAME = 1e-6  # relative difference of factors at different settings that counts as none
_SPOTS = 5  # rows at which a factor is compared
_STEPS = 26  # towards a factor


@dataclass(frozen=True)
class Worth:
    """How many times the ``resource`` the ``reference`` needs to reach what ``arm`` reaches."""

    arm: str
    reference: str
    resource: str
    factor: float
    """Infinite or NaN if no amount of the resource lets the reference get there."""
    interval: tuple[float, float]
    """The fit's interval, or that by random effects; an open end is 0 or infinite."""
    profile: tuple[float, float]
    bootstrap: tuple[float, float]
    at: dict[str, float]
    """The setting at which the factor holds; empty if it is the same everywhere."""

    @property
    def text(self) -> str:
        """ "simvq is worth 1.8 [1.5, 2.2] times the bits_per_pixel of vq"."""
        if not np.isfinite(self.factor) or self.factor == 0:
            return f"no amount of {self.resource} brings {self.reference} to what {self.arm} reaches"
        shown = interval_text(self.interval)
        place = ", ".join(f"{name} = {value:.4g}" for name, value in self.at.items())
        return (
            f"{self.arm} is worth {self.factor:.3g}{f' [{shown}]' if shown else ''} times the {self.resource} of "
            f"{self.reference}" + (f" at {place}" if place else "")
        )


@dataclass(frozen=True)
class SharedTest:
    """F test of whether the arms may share the exponents of the law."""

    parameters: tuple[str, ...]
    statistic: float
    freedom: tuple[int, int]
    """Degrees of freedom of numerator and denominator. They count configurations, not seeds."""
    p: float

    @property
    def text(self) -> str:
        names, one = " and ".join(self.parameters), len(self.parameters) == 1
        verdict = (
            f"the arms differ in {names}, so a factor holds at only one setting"
            if self.p < 0.05
            else f"nothing speaks against {'one' if one else 'the same'} {names} for all arms"
        )
        return f"F({self.freedom[0]}, {self.freedom[1]}) = {self.statistic:.3g}, p = {self.p:.2g}: {verdict}"


@dataclass(frozen=True)
class Arms:
    """The arms of a fitted law, compared with one of them."""

    fit: Fit
    column: str
    reference: str
    worths: tuple[Worth, ...]
    shared: SharedTest | None
    untested: str
    """Why there is no test, or ""."""
    effects: RandomEffects | None

    def text(self) -> str:
        """Return a line for each arm and resource, and the test."""
        lines = [f"{self.column} in {self.fit.law.formula}, {self.fit.confidence:.0%} intervals"]
        lines += [f"  {one.text}" for one in self.worths]
        lines.append(f"  shared exponents: {self.shared.text if self.shared else self.untested}")
        if self.effects is not None:
            lines.append(f"  random effects: {self.effects.text}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; open ends become None."""
        shown = ("arm", "resource", "factor", "interval", "profile", "bootstrap", "at")
        test = self.shared
        return {
            **picked(self, "column", "reference"),
            "worths": [picked(one, *shown) for one in self.worths],
            "shared_exponents": test and {"f": or_none(test.statistic), **picked(test, "parameters", "freedom", "p")},
            "untested": self.untested,
            "spreads": self.effects.spreads if self.effects else {},
        }


def arms(
    fit: Fit, column: str, reference: str | None = None, resource: str | None = None, random: str | None = None
) -> Arms:
    """Compare the levels of ``column``, by which a parameter of the law is indexed, with ``reference``.

    reference: the level that all others are measured in; default the first. resource: a column of numbers that the law
    reads; default all of them. random: a column whose values, such as studies, share random effects; the intervals then
    come from generalised least squares (:func:`gsq.analysis.fitting.effects.random_effects`), which also holds an
    effect of each configuration where there are replicates.

    Factors that differ between settings are given at the median of each column over the rows. Raises AnalysisError
    where the law has no such column of levels, there is no such level or resource, or random effects are impossible.
    """
    column = unquoted(column)
    law = fit.law
    if column not in law.factors:
        known = f"it is indexed by {', '.join(law.factors)}" if law.factors else "it has none"
        first = next((name for name in law.read.parameters if index_of(name) is None), "A")
        raise AnalysisError(
            f"{law.name} has no parameter with a value for each {column}; {known}. Write one into the formula, such as "
            f"{first}[{quoted(column)}]"
        )
    levels = law.levels[column]
    reference = levels[0] if reference is None else reference
    if reference not in levels:
        raise AnalysisError(f"{column} has no level {reference!r} to compare with; levels: {', '.join(levels)}")
    resource = None if resource is None else unquoted(resource)
    if resource is not None and resource not in law.columns:
        raise AnalysisError(f"{law.name} does not read {resource!r}; columns: {', '.join(law.columns) or 'none'}")
    if fit.confounded:
        raise AnalysisError(f"{law.name}: {confounded_text(fit.confounded)}, so that no factor follows; add cells")
    effects = random_effects(fit, random) if random is not None else None
    names = [resource] if resource is not None else [name for name in law.columns if numbers(fit.rows, name).min() > 0]
    worths = tuple(
        _worth(fit, column, arm, reference, name, effects) for arm in levels if arm != reference for name in names
    )
    shared, untested = _shared(fit, column)
    return Arms(fit, column, reference, worths, shared, untested, effects)


def log_factor(theta: Array, *, fit: Fit, column: str, arm: str, reference: str, resource: str, at: Row) -> Array:
    """Logarithm of the factor between two arms at the setting ``at``, for each internal theta (m, k): (m,).

    Infinite where no factor does, with the sign of the side to which the curves come closest.
    """
    columns = {name: np.array([float(value)]) for name, value in at.items() if not isinstance(value, str)}
    texts = {f"[{name}]": np.array([str(at[name])], dtype=object) for name in fit.law.factors}
    form, centre = fit.problem.form, fit.problem.centre

    def value(level: str, logs: Array) -> Array:
        """Return the law's value (m, g) with the resource multiplied by exp(logs), (g,) or (m, g)."""
        flat = np.atleast_1d(logs).reshape(-1)
        here = {name: np.repeat(one, len(flat)) for name, one in {**columns, **texts}.items()}
        here[resource] = columns[resource] * np.exp(flat)
        here[f"[{column}]"] = np.repeat(np.array([level], dtype=object), len(flat))
        data = form.table(here).reshape(-1, *logs.shape)
        return form.both(theta, data, centre)[0]

    with np.errstate(all="ignore"):
        goal = value(arm, np.zeros(1))
        steps = np.concatenate([[0.0], np.geomspace(1e-3, _FAR, 120)])
        gap = value(reference, np.concatenate([-steps[:0:-1], steps])) - goal
        middle, logs = len(steps) - 1, np.concatenate([-steps[:0:-1], steps])
        crossing = (np.sign(gap[:, :-1]) != np.sign(gap[:, 1:])) & np.isfinite(gap[:, :-1]) & np.isfinite(gap[:, 1:])
        away = np.abs(np.arange(len(logs) - 1) + 0.5 - middle)
        nearest = np.argmin(np.where(crossing, away, np.inf), axis=1)
        every = np.arange(len(theta))
        low, high, below, above = logs[nearest], logs[nearest + 1], gap[every, nearest], gap[every, nearest + 1]
        for _ in range(_STEPS):  # regula falsi, the end that stays at half its weight (Illinois)
            found = np.where(above == below, low, (low * above - high * below) / (above - below))
            here = value(reference, found[:, None])[:, 0] - goal[:, 0]
            same = np.sign(here) == np.sign(below)
            low, high = np.where(same, found, low), np.where(same, high, found)
            below, above = np.where(same, here, below / 2), np.where(same, above / 2, here)
        found = np.where(gap[:, middle] == 0, 0.0, found)
        # Without a crossing: towards the side on which the reference comes nearer.
        nearer = np.where(np.abs(gap[:, -1]) < np.abs(gap[:, 0]), np.inf, -np.inf)
        return np.where(crossing.any(axis=1) | (gap[:, middle] == 0), found, nearer)


Row = Mapping[str, float | str]


def _worth(fit: Fit, column: str, arm: str, reference: str, resource: str, effects: RandomEffects | None) -> Worth:
    law = fit.law
    middle: dict[str, float | str] = {name: float(np.median(numbers(fit.rows, name))) for name in law.columns}
    middle |= {name: law.levels[name][0] for name in law.factors}
    ask = partial(log_factor, fit=fit, column=column, arm=arm, reference=reference, resource=resource)
    central = float(ask(fit.theta[None], at=middle)[0])
    places = fit.rows.iloc[np.unique(np.linspace(0, fit.n_rows - 1, _SPOTS).astype(int))]
    settings = np.unique(np.stack([numbers(places, name) for name in law.columns], axis=1), axis=0)
    elsewhere = [
        float(ask(fit.theta[None], at={**middle, **dict(zip(law.columns, one, strict=True))})[0]) for one in settings
    ]
    constant = bool(np.isfinite(central) and np.allclose(elsewhere, central, rtol=0, atol=_SAME))
    quantity = partial(ask, at=middle)
    interval = profile = bootstrap = _exponential((central, central))
    if np.isfinite(central):
        form, centre = fit.problem.form, fit.problem.centre
        derived = fit.derive(f"{arm}/{reference}", lambda natural: quantity(form.internal(natural, centre)))
        interval, profile, bootstrap = map(_exponential, (derived.interval, derived.profile, derived.bootstrap))
    if effects is not None:
        central, low, high = effects.interval(quantity, fit.confidence)
        interval = _exponential((low, high))
    read = {name: float(middle[name]) for name in law.columns}
    return Worth(
        arm, reference, resource, float(np.exp(central)), interval, profile, bootstrap, {} if constant else read
    )


@np.errstate(over="ignore")
def _exponential(pair: tuple[float, float]) -> tuple[float, float]:
    return float(np.exp(pair[0])), float(np.exp(pair[1]))


def _shared(fit: Fit, column: str) -> tuple[SharedTest | None, str]:
    """Test whether exponents may be shared; return None and the reason if that is impossible."""
    law = fit.law
    bent = {law.parameters[i] for i in fit.problem.form.exponents}
    split = {name: base for name, (base, of) in law.indexed.items() if of == column}
    own = [name for name, base in split.items() if any(f"{base}[{level}]" in bent for level in law.levels[column])]
    common = [name for name in law.read.parameters if name in bent]
    if not own and not common:
        return None, "the law has no exponent"
    if fit.options.loss != "least_squares":
        return None, f"the test needs the loss least_squares, not {fit.options.loss}"
    right = split_target(law.formula)[1]
    apart = with_numbers(right, {name: f"{name}[{quoted(column)}]" for name in common})
    together = with_numbers(right, {name: split[name] for name in own})
    options = replace(fit.options, bootstrap=0, intervals="bootstrap")
    costs, ranks, pure, cells = [], [], 0.0, fit.n_configurations
    for text in (together, apart):
        rebuilt = replace(law, formula=f"{law.formula[: law.formula.index(right)]}{text}", levels={})
        try:
            found = fit_rows(fit.rows, Excluded.none(fit.rows), rebuilt, options)
        except AnalysisError as error:
            return None, f"not tested ({error})"
        costs.append(found.cost)
        ranks.append(found.rank)
    pure = _pure(fit)
    left, more = cells - ranks[1], ranks[1] - ranks[0]
    if left < 1 or more < 1:
        return None, f"not tested: {cells} configurations leave no degree of freedom beside an exponent for each arm"

    scale = max(costs[1] - pure, 0.0) / left
    statistic = max(costs[0] - costs[1], 0.0) / more / scale if scale > 0 else np.nan
    names = tuple(dict.fromkeys([*common, *(split[name] for name in own)]))
    return SharedTest(names, statistic, (more, left), float(f_above(statistic, more, left))), ""


def _pure(fit: Fit) -> float:
    from gsq.analysis.fitting.noise import pure_error

    return pure_error(fit.problem, fit.weights, fit.configurations)[0]
