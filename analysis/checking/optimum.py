"""Find the best value of a tuned column, such as the learning rate, at each size, and its law over sizes.

At each size, the target is a quadratic in the logarithm of the column, and its vertex the optimum. The interval is
Fieller's (1954) for the ratio -b / 2c, with the scatter about the quadratics of all sizes, cut where the grid ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import ndtri

from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.distributions import t_quantile
from gsq.analysis.fitting.fit import fit
from gsq.analysis.fitting.options import Options
from gsq.analysis.fitting.result import Fit, interval_text, or_none
from gsq.analysis.jsonable import picked
from gsq.analysis.tables.columns import NUMBER
from gsq.analysis.tables.table import Array, measured, numbers, quoted, require_columns, unquoted, varying
from gsq.config.axes import CONFIGURATION
from gsq.words import counted

LARGEST = ("psnr_db", "ssim", "inception_score", "usage", "perplexity", "effective_bits")
"""Targets for which larger is better."""


@dataclass(frozen=True)
class SizeOptimum:
    """The optimum at one size."""

    size: dict[str, float | str]
    rows: int
    value: float
    """Best value of the column; NaN if the grid does not bracket it."""
    interval: tuple[float, float]
    """Interval; 0 and inf are open ends, and NaN means that there is no scatter to measure."""
    log_error: float
    """Standard error of ln value; NaN where it is not known."""
    best: float
    """Target at the optimum."""
    reason: str
    """Reason why there is no value; "" if there is one."""
    further: float
    """The next value to try, where the grid ends before the optimum (beyond that end) or the quadratic misses the best
    runs (beside these); else NaN."""
    curve: tuple[float, float, float]
    """Coefficients of x^2, x and 1 with x = ln column, of the target or its logarithm."""
    values: Array
    """Values of the column, (rows,)."""
    targets: Array
    """Values of the target, (rows,)."""
    largest: bool
    """Whether larger targets are better."""

    @property
    def name(self) -> str:
        return ", ".join(f"{k} = {v:.6g}" if isinstance(v, NUMBER) else f"{k} = {v}" for k, v in self.size.items())

    @property
    def ends(self) -> str:
        """The interval in words."""
        return interval_text((self.interval[0] or -np.inf, self.interval[1]))

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; open ends and unknown values become None."""
        low, high = self.interval
        return {
            **picked(self, "size", "rows"),
            "optimum": or_none(self.value),
            "interval": [or_none(low) or None, or_none(high)],
            "log_error": or_none(self.log_error),
            "target_there": or_none(self.best),
            "bracketed": not self.reason,
            "reason": self.reason,
            "next": or_none(self.further),
        }


@dataclass(frozen=True)
class Optimum:
    """The optima of all sizes, and their law."""

    column: str
    by: tuple[str, ...]
    target: str
    sizes: tuple[SizeOptimum, ...]
    residuals: str
    scatter: float
    """Standard deviation of the target (or its logarithm) about the quadratics, pooled; NaN if not known."""
    law: Fit | None
    no_law: str
    """Reason why there is no law; "" if there is one or none was requested."""
    excluded: str
    warnings: tuple[str, ...]

    def text(self) -> str:
        """Return a line for each optimum, and what limits them."""
        shown = f"ln {self.target}" if self.residuals == "log" else self.target
        lines = [f"best {self.column}: the vertex of {shown}, a quadratic in ln {self.column}"]
        for one in self.sizes:
            head = f"  {one.name}: " if one.size else "  "
            ends = f"  [{one.ends}]" if one.ends else ""
            said = f"{one.value:.4g}{ends}, {self.target} {one.best:.4g}" if not one.reason else f"{one.reason}{ends}"
            then = f"; try {one.further:.3g} next" if np.isfinite(one.further) else ""
            lines.append(f"{head}{said} ({counted(one.rows, 'row')}){then}")
        if np.isfinite(self.scatter):
            lines.append(f"  scatter about the quadratics {self.scatter:.3g}, taken to be the same at all sizes")
        else:
            lines.append("  no intervals: three values a size leave no scatter to measure; name it with --noise")
        left_out = sum(bool(one.reason) for one in self.sizes)
        if self.law is not None and left_out:
            lines.append(f"  the law leaves out {left_out} of {len(self.sizes)} sizes, whose grid does not bracket one")
        lines += [f"No law over sizes: {self.no_law}."] if self.no_law else []
        lines += [f"  warning: {one}" for one in self.warnings]
        return "\n".join([*lines, *([self.excluded] if self.excluded else [])])

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            **picked(self, "column", "by", "target", "residuals", "scatter"),
            "sizes": [one.to_dict() for one in self.sizes],
            "law": self.law.to_dict() if self.law is not None else None,
            **picked(self, "no_law", "warnings"),
        }


def optimum(
    frame: pd.DataFrame,
    column: str = "learning_rate",
    by: Sequence[str] = (),
    *,
    target: str = "rfid",
    options: Options | None = None,
) -> Optimum:
    """Find the best ``column`` for each combination of the columns ``by``, and its law over them.

    Of ``options``, residuals (log: ln target is the quadratic), confidence and noise count. Raises AnalysisError for a
    missing column, values of ``column`` that are not positive, or ``by`` with a single size.
    """
    options = options or Options()
    column, target = unquoted(column), unquoted(target)
    by = tuple(unquoted(name) for name in by)
    if column in by or target in (column, *by):
        raise AnalysisError(
            f"--optimum {column} --by {' '.join(by)}: one column is named twice, or is the target {target}"
        )
    require_columns(frame, target, column, *by)
    rows, excluded = measured(frame, target, [column])
    rows = rows.dropna(subset=[*by]).reset_index(drop=True)
    x, y = numbers(rows, column), numbers(rows, target)
    if (wrong := x <= 0).any():
        raise AnalysisError(
            f"{column} must be above 0 for its logarithm; {wrong.sum()} rows are not, such as {x[wrong][0]:g}"
        )
    if options.residuals == "log" and (y <= 0).any():
        raise AnalysisError(f"{target} must be above 0 for its logarithm; correct it, or use --residuals linear")
    groups = list(rows.groupby(list(by), sort=True).indices.items()) if by else [((), np.arange(len(rows)))]
    if by and len(groups) < 2:
        raise AnalysisError(
            f"a law over sizes needs two sizes or more, and these rows have only one {', '.join(by)}: name another "
            "column with --by, or leave --by out to get only the optimum"
        )
    y = (-1 if target in LARGEST else 1) * (np.log(y) if options.residuals == "log" else y)
    parts = [_Part.of(x[index], y[index]) for _, index in groups]
    free = sum(one.free for one in parts)
    scatter = options.noise or (np.sqrt(sum(one.squares for one in parts) / free) if free else np.nan)
    quantile = _quantile(options.confidence, np.inf if options.noise else free)
    sizes = tuple(
        _size(_named(by, key), part, numbers(rows, target)[index], float(scatter), quantile, options.residuals, target)
        for (key, index), part in zip(groups, parts, strict=True)
    )
    law, no_law = _law(column, by, sizes, options) if by else (None, "")
    others = [name for name in CONFIGURATION if name not in (column, *by)]
    mixed = {name for _, index in groups for name in varying(rows.iloc[index], others)} - {"other_axes"}
    warnings = tuple(f"{name} varies within a size as well; name it in --by, too" for name in sorted(mixed))
    return Optimum(column, by, target, sizes, options.residuals, float(scatter), law, no_law, excluded.text, warnings)


def _named(by: tuple[str, ...], key: object) -> dict[str, float | str]:
    values = key if isinstance(key, tuple) else (key,)
    return {name: float(v) if isinstance(v, NUMBER) else str(v) for name, v in zip(by, values, strict=True)}


def _quantile(confidence: float, free: float) -> float:
    share = (1 + confidence) / 2
    return float(ndtri(share) if np.isinf(free) else t_quantile(share, free) if free else np.nan)


@dataclass(frozen=True)
class _Part:
    """A quadratic fitted to the rows of one size, in z = ln column - middle."""

    values: Array
    middle: float
    terms: Array
    """Coefficients of z^2, z and 1, (3,); NaN with fewer than three values."""
    inverse: Array
    """Inverse of the normal matrix, (3, 3)."""
    squares: float
    free: int

    @classmethod
    def of(cls, values: Array, y: Array) -> _Part:
        middle = float(np.log(values).mean())
        z = np.log(values) - middle
        if len(np.unique(values)) < 3:
            return cls(values, middle, np.full(3, np.nan), np.full((3, 3), np.nan), 0.0, 0)
        design = np.stack([z**2, z, np.ones_like(z)], axis=1)
        terms = np.linalg.lstsq(design, y, rcond=None)[0]
        squares = float(np.sum((y - design @ terms) ** 2))
        inverse = np.asarray(np.linalg.inv(design.T @ design), float)
        return cls(values, middle, np.asarray(terms, float), inverse, squares, len(y) - 3)

    def interval(self, scatter: float, quantile: float) -> tuple[float, float]:
        """Return Fieller's interval of the vertex z, restricted to quadratics with a minimum."""
        bend, slope, _ = self.terms
        room = (quantile * scatter) ** 2 * self.inverse
        a, b, c = 4 * (bend**2 - room[0, 0]), 4 * (bend * slope - room[0, 1]), slope**2 - room[1, 1]
        inside = b * b - 4 * a * c
        if not np.isfinite(inside):
            return np.nan, np.nan
        if inside <= 0 or a == 0:
            return (-np.inf, np.inf) if a <= 0 else (-slope / (2 * bend),) * 2
        low, high = sorted((-b + sign * np.sqrt(inside)) / (2 * a) for sign in (-1, 1))
        if a > 0:  # where the quadratic has a maximum, nothing is known of a minimum
            return (low, high) if bend > 0 else (-np.inf, np.inf)
        falling = slope + bend * (low + high) < 0  # the slope between both differs from 0
        return (high, np.inf) if falling else (-np.inf, low)


def _size(
    size: dict[str, float | str],
    part: _Part,
    targets: Array,
    scatter: float,
    quantile: float,
    residuals: str,
    target: str,
) -> SizeOptimum:
    values, middle = part.values, part.middle
    grid = np.unique(values)
    bend, slope, height = part.terms
    least, most = np.log(grid[[0, -1]]) - middle
    vertex = -slope / (2 * bend) if bend > 0 else np.inf
    low, high = part.interval(scatter, quantile) if len(grid) > 2 else (-np.inf, np.inf)
    # A quadratic says nothing beyond the values that were tried.
    ends = (
        0.0 if low < least else float(np.exp(min(low, most) + middle)),
        np.inf if high > most else float(np.exp(max(high, least) + middle)),
    )
    reason, further = "", np.nan
    if len(grid) < 3:
        reason = f"{counted(len(grid), 'value')}, of which a quadratic needs three"
    elif not least < vertex < most:
        step = float((grid[-1] / grid[0]) ** (1 / (len(grid) - 1)))
        rising = slope + bend * (least + most) > 0  # from one end to the other
        edge = grid[0] if rising else grid[-1]
        end = f"the {'least' if rising else 'largest'} value tried, {edge:.4g}"
        tried = np.array([targets[values == one].mean() for one in grid]) * (-1 if target in LARGEST else 1)
        place = int(tried.argmin())
        if 0 < place < len(grid) - 1:
            reason = (
                f"the quadratic is best at {end}, but the runs at {grid[place]:.4g}: noise, or a grid too wide for a "
                "quadratic (--where leaves values out)"
            )
            further = float(np.sqrt(grid[place] * grid[place + (1 if tried[place + 1] < tried[place - 1] else -1)]))
        else:
            reason = f"not bracketed by the grid, best at {end}"
            further = float(edge / step if rising else edge * step)
    if reason:
        value = error = best = np.nan
        ends = (0.0, np.inf) if np.isnan(ends).any() else ends
    else:
        value = float(np.exp(vertex + middle))
        gradient = np.array([slope / (2 * bend**2), -1 / (2 * bend)])
        error = float(scatter * np.sqrt(gradient @ part.inverse[:2, :2] @ gradient))
        best = float(height + slope * vertex / 2) * (-1 if target in LARGEST else 1)
        best = float(np.exp(best)) if residuals == "log" else best
    sign = -1 if target in LARGEST else 1
    curve = (bend, slope - 2 * bend * middle, height - slope * middle + bend * middle**2)
    return SizeOptimum(
        size, len(values), value, ends, error, best, reason, further,
        (sign * float(curve[0]), sign * float(curve[1]), sign * float(curve[2])), values, targets, target in LARGEST,
    )  # fmt: skip


def _law(column: str, by: tuple[str, ...], sizes: tuple[SizeOptimum, ...], options: Options) -> tuple[Fit | None, str]:
    """Fit the optima's power law over the varying columns of ``by``, weighted by their errors, or say why not."""
    known = [one for one in sizes if not one.reason]
    if len(known) < 2:
        return None, f"the grid brackets an optimum at {len(known)} of {len(sizes)} sizes, and a law needs two"
    frame = pd.DataFrame([one.size for one in known]).assign(**{column: [one.value for one in known]})
    names = [name for name in by if frame[name].nunique() > 1]
    if not names:
        return None, "nothing varies between the sizes that have an optimum"
    for name in names:
        if not pd.api.types.is_numeric_dtype(frame[name]) or (frame[name] <= 0).any():
            return None, f"{name} is not a positive number everywhere"
    design = np.column_stack([np.ones(len(frame)), *(np.log(frame[name]) for name in names)])
    if np.linalg.matrix_rank(design - design.mean(0) * (np.arange(design.shape[1]) > 0)) < len(names) + 1:
        what = (
            f"{len(known)} sizes do not tell {', '.join(names)} apart"
            if len(names) > 1
            else f"{names[0]} hardly varies"
        )
        return None, what
    letters = [one for one in "abdefghijklmnopqrstuvwxyz" if one not in frame]
    powers = [f"{quoted(name)}^{letter}" for name, letter in zip(names, letters, strict=False)]
    errors = np.array([one.log_error for one in known])
    weighted = bool((np.isfinite(errors) & (errors > 0)).all())
    if weighted:
        frame = frame.assign(weight_of_optimum=errors**-2.0)
    chosen = Options(
        weights="weight_of_optimum" if weighted else None, bootstrap=0, confidence=options.confidence, starts=16
    )
    found = fit(frame, f"{quoted(column)} = c * {' * '.join(powers)}", bounds={"c": (0.0, np.inf)}, options=chosen)
    return replace(found, law=replace(found.law, name=f"best {column}")), ""
