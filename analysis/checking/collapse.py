"""Test whether one derived axis, such as bits per pixel, absorbs several axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import f_above, t_quantile
from gsq.analysis.fitting.solver import Bools
from gsq.analysis.jsonable import jsonable
from gsq.analysis.tables.table import Array, configuration_ids, measured, numbers, varying
from gsq.config.axes import DERIVED
from gsq.words import counted

# Learned rates, of one probe protocol.
PRIORS = ("prior_bits_per_token", "prior_bits_per_pixel")
CANDIDATES = (*(axis.name for axis in DERIVED.values() if axis.role == "derived"), "effective_bits", *PRIORS)
# In this order, since the last digits of least squares depend on it.
ABSORBED = ("downsample", "groups", "codebook_size", "latent_dim")


@dataclass(frozen=True)
class Collapse:
    """How well target = c * derived^-a describes rows that differ in several axes."""

    derived: str
    axes: tuple[str, ...]
    """The varying axes that it may absorb; codebook_size enters as its logarithm, the bits of an index."""
    rows: int
    log_rmse: float
    log_rmse_free: float
    """The same error if each axis has an exponent of its own beside the derived axis."""
    p: float
    """p of the F test of these exponents; NaN if no degree of freedom is left."""
    block: float
    """Log-RMSE of levels of an axis, each held out and predicted from the others, over all axes; NaN where without a
    level the free exponents are never determined (every axis has two levels)."""
    block_free: float
    """The same with free exponents, for the same levels."""
    exponents: dict[str, tuple[float, float]]
    """The free law without the derived axis: axis to (exponent, half width of its 95 % interval)."""
    left_over: dict[str, tuple[float, float]]
    """The same for each axis added alone to the derived one: the part that was not absorbed."""

    @property
    def absorbs(self) -> bool:
        """Whether free exponents bring nothing: the F test finds none at 5 %, or levels that were held out are
        predicted as well (within 5 %) without them."""
        return bool(self.p >= 0.05 or self.block <= 1.05 * self.block_free)

    @property
    def text(self) -> str:
        verdict = "absorbs" if self.absorbs else "does not wholly absorb"
        exponents, left = (
            ", ".join(f"{name} {value:.2f} ± {half:.2f}" for name, (value, half) in pairs.items())
            for pairs in (self.exponents, self.left_over)
        )
        blocks = (
            "no level can be held out (two levels an axis)"
            if np.isnan(self.block)
            else f"levels held out are missed by {self.block:.3g}, with free exponents by {self.block_free:.3g}"
        )
        return (
            f"{self.derived} {verdict} {', '.join(self.axes)}: {blocks}; log-RMSE {self.log_rmse:.3g}, with free "
            f"exponents {self.log_rmse_free:.3g} (F test p = {self.p:.2g}); left over: {left}"
            + (f"; free exponents: {exponents}" if exponents else "")
        )

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {**jsonable(self), "absorbs": self.absorbs}


def collapse(
    frame: pd.DataFrame, derived: Sequence[str] | None = None, axes: Sequence[str] = ABSORBED, target: str = "rfid"
) -> tuple[Collapse, ...]:
    """Test each of ``derived`` (default: every derived axis that varies): does it absorb ``axes``?

    Regresses ln target on ln derived alone, and on it with every axis (codebook_size as its log2), seeds averaged, and
    holds out every level of every axis in turn. Returns the best first. Raises AnalysisError where fewer than two axes
    vary, or a column is missing or not positive."""
    rows, _ = measured(frame, target, [name for name in derived or () if name in PRIORS])
    present = varying(rows, axes)
    if len(present) < 2:
        raise AnalysisError(
            f"nothing to absorb: of {', '.join(axes)} only {', '.join(present) or 'none'} vary; a collapse needs two "
            "axes"
        )
    chosen = [name for name in CANDIDATES if name in rows and rows[name].nunique() > 1] if derived is None else derived
    if derived is None and ("probe_protocol" not in frame or frame["probe_protocol"].nunique() != 1):
        chosen = [name for name in chosen if name not in PRIORS]
    values = _positive(rows, target)
    if values.max() - values.min() <= 1e-9 * values.max():
        raise AnalysisError(
            f"{target} is the same in all {len(rows)} rows, {values[0]:.4g}: there is nothing to explain"
        )
    cells = configuration_ids(rows, present)
    first = np.unique(cells, return_index=True)[1]
    goal = np.bincount(cells, np.log(_positive(rows, target))) / np.bincount(cells)
    rows = rows.iloc[first].reset_index(drop=True)
    levels = {name: numbers(rows, name) for name in present}
    logs = [
        np.log(np.log2(_positive(rows, n))) if n == "codebook_size" else np.log(_positive(rows, n)) for n in present
    ]
    one = np.ones(len(rows))
    found = []
    for name in chosen:
        if name in rows and not (np.isfinite(numbers(rows, name)).all() and (numbers(rows, name) > 0).all()):
            if derived is None and (name in PRIORS or not np.isfinite(numbers(rows, name)).all()):
                continue
            if not np.isfinite(numbers(rows, name)).all():
                raise AnalysisError(f"column {name!r} is empty in some rows, so it cannot be tested")
        own = np.log(_positive(rows, name))
        small, free, full = np.stack([one, own], 1), np.stack([one, *logs], 1), np.stack([one, own, *logs], 1)
        rss, rss_full = _rss(small, goal), _rss(full, goal)
        extra = int(np.linalg.matrix_rank(full)) - 2
        left = len(rows) - extra - 2
        p = np.nan
        if left > 0 and extra > 0 and rss_full > 0:
            p = float(f_above((rss - rss_full) / extra / (rss_full / left), extra, left))
        blocks = [(values != level, values == level) for values in levels.values() for level in np.unique(values)]
        rank = np.linalg.matrix_rank(free)
        blocks = [one for one in blocks if np.linalg.matrix_rank(free[one[0]]) == rank]
        found.append(
            Collapse(
                name,
                tuple(present),
                len(rows),
                float(np.sqrt(rss / len(rows))),
                float(np.sqrt(rss_full / len(rows))),
                p,
                _blocks(small, goal, blocks),
                _blocks(free, goal, blocks),
                _exponents(free, goal, present),
                {
                    shown: pair
                    for axis, log in zip(present, logs, strict=True)
                    for shown, pair in list(_exponents(np.stack([one, log, own], 1), goal, [axis, name]).items())[:1]
                },
            )
        )
    return tuple(
        sorted(found, key=lambda one: (one.block, one.log_rmse) if not np.isnan(one.block) else (0, one.log_rmse))
    )


def _positive(rows: pd.DataFrame, name: str) -> Array:
    values = numbers(rows, name)
    if np.isnan(values).any():
        raise AnalysisError(
            f"column {name!r} has no value in {counted(int(np.isnan(values).sum()), 'row')} of {len(rows)}; leave them "
            f'out: --where "{name} > 0"'
        )
    if not (values > 0).all():
        raise AnalysisError(
            f"column {name!r} must be positive (it is log-transformed); the smallest value is {np.nanmin(values):g}"
        )
    return values


def _rss(design: Array, goal: Array) -> float:
    return float(np.sum((goal - design @ np.linalg.lstsq(design, goal)[0]) ** 2))


def _blocks(design: Array, goal: Array, blocks: list[tuple[Bools, Bools]]) -> float:
    """Return the root mean square error of blocks of rows, each predicted from the other rows."""
    errors = [
        goal[outside] - design[outside] @ np.linalg.lstsq(design[inside], goal[inside])[0] for inside, outside in blocks
    ]
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2))) if errors else np.nan


def _exponents(design: Array, goal: Array, names: list[str]) -> dict[str, tuple[float, float]]:
    left = len(goal) - design.shape[1]
    if left < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    found = np.linalg.lstsq(design, goal)[0]
    scatter = np.sum((goal - design @ found) ** 2) / left
    half = t_quantile(0.975, left) * np.sqrt(scatter * np.diag(np.linalg.inv(design.T @ design)))
    shown = [f"log2({name})" if name == "codebook_size" else name for name in names]
    return {name: (float(found[i + 1]), float(half[i + 1])) for i, name in enumerate(shown)}
