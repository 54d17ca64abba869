"""Measure a law's errors on cells, levels and sizes to which it was not fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gsq.analysis.fitting.result import Fit
from gsq.analysis.fitting.searching import refit
from gsq.analysis.jsonable import jsonable
from gsq.analysis.tables.table import Array, large_end, numbers, varying
from gsq.config.axes import DERIVED, TOKENIZER

_AXES = (*TOKENIZER, "depth", "image_size", "step")
_MOST_PARTS = 400
_MOST_LEVELS = 24
_STARTS = 4  # of each refit: the fit to all rows, and three random ones


@dataclass(frozen=True)
class Errors:
    """Root mean square errors of predictions for rows that were held out."""

    rows: int
    rmse: float
    log_rmse: float
    """The error of logarithms; NaN where a target or a prediction is not positive."""
    skipped: int = 0
    """Number of refits for which the remaining rows were not enough."""

    def of(self, log: bool) -> float:
        """Return the error in the kind of the residuals: logarithmic or absolute."""
        return self.log_rmse if log else self.rmse

    def to_dict(self) -> dict[str, object]:
        return dict(jsonable(self))


@dataclass(frozen=True)
class HeldOut:
    """How well a law predicts rows to which it was not fitted."""

    one_out: Errors
    """The error when each configuration is left out with its seeds (beyond 400 configurations, each of 400 parts)."""
    level_out: dict[str, Errors]
    """For each axis, the error when each of its levels is left out in turn."""
    window: dict[str, Errors]
    """For each axis, the error when each level is predicted from all smaller ones, if these determine the law."""
    largest: dict[str, Errors]
    """For each axis, the error of the largest level, predicted from all others."""

    def to_dict(self) -> dict[str, object]:
        names = ("leave_one_out", "leave_level_out", "expanding_window", "largest")
        return dict(zip(names, jsonable(self).values(), strict=True))


def held_out(fit: Fit) -> HeldOut:
    """Refit ``fit`` without one configuration, without each level of each axis, and on the smaller levels alone.

    The axes are those of the tokenizer and of the law that vary and have at most 24 levels; derived ones are left out.
    A small level is one that needs less memory and time: a small codebook, a large downsampling.
    """
    rows = fit.rows
    cells = fit.n_configurations
    names = [name for name in dict.fromkeys([*_AXES, *fit.law.columns]) if name in rows and name not in DERIVED]
    names = [name for name in varying(rows, names) if rows[name].nunique() <= _MOST_LEVELS]
    blocks: list[tuple[str, Array, Array]] = []  # what, trained on, predicted
    parts = min(cells, _MOST_PARTS)
    for part in range(parts):
        out = fit.configurations % parts == part
        blocks.append(("one", ~out, out))
    for name in names:
        values = large_end(name) * numbers(rows, name)
        levels = np.unique(values)
        blocks += [(f"level {name}", values != level, values == level) for level in levels]
        blocks += [(f"window {name}", values < level, values == level) for level in levels[1:]]
        blocks.append((f"largest {name}", values < levels[-1], values == levels[-1]))
    trained = np.array([block[1] for block in blocks], dtype=np.float64)
    able = carries(fit, trained)
    predicted = np.full(trained.shape, np.nan)
    if able.any():
        found = refit(
            fit.problem,
            fit.theta,
            trained[able] * fit.weights,
            list(fit.ranges),
            fit.scales,
            _STARTS,
            [fit.options.seed, 3],
        )
        predicted[able] = fit.problem.predict(found.theta)
    collected: dict[str, list[tuple[Array, Array]]] = {}
    skipped: dict[str, int] = {}
    for (what, _, out), one, usable in zip(blocks, predicted, able, strict=True):
        collected.setdefault(what, [])
        skipped[what] = skipped.get(what, 0) + (not usable)
        if usable:
            collected[what].append((fit.problem.target[out], one[out]))

    def errors(what: str) -> Errors:
        pairs = collected[what]
        if not pairs:
            return Errors(0, np.nan, np.nan, skipped[what])
        target, value = (np.concatenate([pair[i] for pair in pairs]) for i in range(2))
        with np.errstate(all="ignore"):
            log_rmse = float(np.sqrt(np.mean((np.log(target) - np.log(value)) ** 2)))
        return Errors(len(target), float(np.sqrt(np.mean((target - value) ** 2))), log_rmse, skipped[what])

    def each(kind: str) -> dict[str, Errors]:
        return {name: errors(f"{kind} {name}") for name in names}

    return HeldOut(errors("one"), each("level"), each("window"), each("largest"))


def carries(fit: Fit, trained: Array) -> Array:
    """Whether the rows of each mask (m, n) can tell the parameters apart, and leave a degree of freedom."""
    columns = fit.law.settings(fit.rows).T
    cell = np.unique(np.round(columns, 12), axis=0, return_inverse=True)[1].reshape(-1)
    slopes = fit.problem.form.both(fit.theta[None], fit.problem.data, fit.problem.centre)[1][:, 0].T
    slopes = slopes / np.maximum(np.linalg.norm(slopes, axis=0), 1e-300)
    rank = np.linalg.matrix_rank(slopes)
    enough = np.array([len(np.unique(cell[mask > 0])) >= fit.rank for mask in trained])
    return np.asarray(enough & (np.linalg.matrix_rank(trained[:, :, None] * slopes) >= rank))
