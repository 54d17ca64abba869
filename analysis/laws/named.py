"""Scaling laws: a formula over columns, with bounds and starting ranges where wanted; LAWS holds the named ones.

A new law is one more entry in LAWS, or just its formula: ``fit(frame, "rfid = E + A / N^a", ...)``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.laws.form import Form, compile_form
from gsq.analysis.laws.formula import Formula, read_formula, split_target, with_target
from gsq.analysis.tables.table import Array, Excluded, measured, numbers, unquoted, with_derived
from gsq.config.axes import DERIVED, TOKENIZER
from gsq.sweeps.schema import columns as schema

if TYPE_CHECKING:
    pass

Bound = float | Literal["min"]
"""A number, or "min": the smallest target in the table. No bound for a floor: noise puts that value below it."""
DEFAULT_TARGET = "rfid"
_KNOWN = (*(c.name for c in schema.COLUMNS), *DERIVED)


@dataclass(frozen=True)
class Law:
    """A functional form. ``fit(frame, Law("mine", "rfid = E + A / N^a", known=frame.columns))``."""

    name: str
    formula: str
    source: str = ""
    bounds: Mapping[str, tuple[float, Bound]] = field(default_factory=dict)
    """Parameter to (low, high), where it is not free."""
    starts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Parameter to the range of its random starts: uniform, or uniform in the logarithm where it spans a factor of 100;
    (0.3, 0.3) starts at 0.3.
    Parameters that enter linearly need none: they are solved for at each start."""
    holds_for: Mapping[str, float | None] = field(default_factory=dict)
    """Columns without a term here that must have this one value (None: any one value) in the rows, where they have
    it."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """Parameters to plan with before anything is measured (:func:`analysis.power`), from the numbers that the paper
    prints (results/reference): those of figure 4 for laws of one group, else the 41 distinct ones."""
    known: tuple[str, ...] = _KNOWN
    """Names that are columns; see :func:`gsq.analysis.laws.formula.read_formula`."""

    def __post_init__(self) -> None:
        for name, pair in self.starts.items():
            if not (np.isfinite(pair[0]) and np.isfinite(pair[1]) and pair[0] <= pair[1]):
                raise AnalysisError(
                    f"{self.name}: the starts of {name} are drawn from a range of two finite numbers, the smaller "
                    f"first, or begin at one where both are equal; got {pair[0]:g} to {pair[1]:g}"
                )
        for name, (low, high) in self.bounds.items():
            if np.isnan(low) or (high != "min" and not low < high):
                raise AnalysisError(
                    f"{self.name}: the bounds of {name} leave nothing: {low:g} to {high}; the smaller comes first, and "
                    "an open end is infinite"
                )

    @cached_property
    def read(self) -> Formula:
        """The formula as it was read. Raises AnalysisError where it cannot be."""
        return read_formula(self.formula, self.known, {*self.bounds, *self.starts})

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.read.parameters

    @property
    def columns(self) -> tuple[str, ...]:
        """Table columns that the formula reads."""
        return self.read.columns

    @property
    def target(self) -> str:
        return self.read.target or DEFAULT_TARGET

    def form(self, without: Collection[str] = ()) -> Form:
        """The compiled formula, its amplitudes centred but those in ``without`` and those with bounds other than 0."""
        fixed = {
            name for name, pair in self.bounds.items() if any(end not in (0, -np.inf, np.inf) for end in pair)
        } | set(without)
        centred = tuple(name for name in self.parameters if name not in fixed)
        return compile_form(self.formula, self.columns, self.parameters, centred)

    def limits(self, target: Array) -> tuple[Array, Array]:
        """Lowest and highest value of each parameter, (k,) each; "min" is the least of ``target``."""
        low, high = np.full(len(self.parameters), -np.inf), np.full(len(self.parameters), np.inf)
        for i, name in enumerate(self.parameters):
            if name in self.bounds:
                low[i], end = self.bounds[name]
                high[i] = float(np.min(target)) if end == "min" else end
                if not low[i] < high[i]:
                    raise AnalysisError(f"{self.name}: the bounds of {name} leave nothing: {low[i]:g} to {high[i]:g}")
        return low, high

    def values(self, frame: pd.DataFrame) -> Array:
        """The data of the formula, (q, n). Raises AnalysisError naming a column that is missing, holds no number, or is
        not positive under a logarithm."""
        frame = with_derived(frame)
        columns = {name: numbers(frame, name) for name in self.columns}
        form = self.form()
        data = form.table(columns)
        for datum, row in zip(form.data, data, strict=True):
            wrong = ~np.isfinite(row)
            if not wrong.any():
                continue
            first = int(np.argmax(wrong))
            found = ", ".join(f"{name} = {columns[name][first]:g}" for name in datum.columns)
            why = (
                f"takes the logarithm of {datum.text}, which must be finite and above 0"
                if datum.logarithm
                else f"needs {datum.text}, which must be a finite number"
            )
            raise AnalysisError(
                f"{self.name} {why}; {wrong.sum()} of {len(row)} rows are not, the first has {found}. Drop or correct "
                "those rows"
            )
        return data

    @property
    def of_steps(self) -> bool:
        """Whether the law is about the course of a training: it reads ``step``, and takes every evaluation."""
        return "step" in self.columns

    def rows(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, Excluded]:
        """The rows of ``frame`` that this law is fitted to, and what is left out: :func:`analysis.measured` for its
        target and columns. Raises AnalysisError like it."""
        return measured(frame, self.target, self.columns)

    def obstacle(self, frame: pd.DataFrame) -> str | None:
        """Why nothing of this law can be fitted to the rows of ``frame``, as a sentence; None where it can.

        Every row counts, so pass ``rows(frame)[0]``. Raises AnalysisError where a column is missing.
        """
        frame = with_derived(frame)
        for name, only in self.holds_for.items():
            found = np.unique(numbers(frame, name)) if name in frame else np.array([])
            if only is not None and any(found != only):
                return f"{self.name} holds for {name} = {only:g} only, got {name} {_listed(found)}; select those rows"
            if len(found) > 1:
                return (
                    f"{self.name} has no term for {name} and needs one value of it, got {_listed(found)}; select the "
                    "rows of one"
                )
        if not self.columns:
            return f"{self.name} reads no column: {self.formula}"
        values = self._columns(frame)
        if _cells(values) == 1:
            others = [n for n in TOKENIZER if n in frame]
            moving = [name for name in others if name not in values and len(np.unique(numbers(frame, name))) > 1]
            return (
                f"{self.name} reads {' and '.join(values)} alone, constant in these rows "
                f"({', '.join(f'{name} = {one[0]:g}' for name, one in values.items())})"
                + (f"; what varies is {', '.join(moving)}: take a law with a term for it" if moving else "; add cells")
            )
        return None

    def reason_not(self, frame: pd.DataFrame) -> str | None:
        """Why the rows of ``frame`` cannot determine this law, as a sentence; None where they can.

        It takes as many configurations as the law has parameters, and one row more: replicates count. With fewer, a fit
        still predicts, but its parameters are not determined. Every row counts, so pass ``rows(frame)[0]``. Raises
        AnalysisError where a column is missing.
        """
        reason = self.obstacle(frame)
        if reason is not None:
            return reason
        values = self._columns(with_derived(frame))
        cells, need = _cells(values), len(self.parameters)
        if cells < need or len(frame) <= need:
            names = " and ".join(values)
            shown = f" ({_listed(np.unique(next(iter(values.values()))))})" if len(values) == 1 else ""
            return (
                f"{self.name} has {need} parameter{'s' if need > 1 else ''} ({', '.join(self.parameters)}) and "
                f"needs at least {need + 1} distinct {names} ({need} where there are replicates), got {cells}{shown}; "
                "add cells"
            )
        return None

    def _columns(self, frame: pd.DataFrame) -> dict[str, Array]:
        return {name: numbers(frame, name) for name in self.columns}


def get_law(
    law: str | Law,
    columns: Collection[str] = (),
    bounds: Mapping[str, tuple[float, Bound]] | None = None,
    starts: Mapping[str, tuple[float, float]] | None = None,
    target: str | None = None,
) -> Law:
    """The law called ``law``, or the one whose formula it is.

    ``columns``: the names of a formula that are columns (default: those of a results table); ``bounds`` and ``starts``
    are added to the law's own; ``target`` takes the place of its target. Raises AnalysisError listing the valid names,
    or for a formula that cannot be read.
    """
    if isinstance(law, str):
        if law in LAWS:
            law = LAWS[law]
        elif any(sign in law for sign in "+-*/^=(` "):
            law = Law(split_target(law)[1], law, known=(*columns, *DERIVED) if columns else _KNOWN)
        else:
            listed = "; ".join(f"{one.name} ({one.formula})" for one in LAWS.values())
            raise AnalysisError(f"there is no law {law!r}. Laws: {listed}; or write a formula over columns")
    if bounds or starts:
        law = replace(law, bounds={**law.bounds, **(bounds or {})}, starts={**law.starts, **(starts or {})})
    target = None if target is None else unquoted(target)
    if target is not None and target != law.target:
        law = replace(law, formula=with_target(law.formula, target))
    _ = law.read
    return law


def paper_law_reason(frame: pd.DataFrame) -> str | None:
    """Why the measured rows of ``frame`` cannot carry equation 14 of the paper; None where they can."""
    return LAWS["paper_eq14"].reason_not(measured(frame)[0])


def _cells(values: Mapping[str, Array]) -> int:
    """Distinct settings of the columns, to twelve digits."""
    mantissa, exponent = np.frexp(np.stack(list(values.values())))
    return len(np.unique(np.ldexp(np.round(mantissa, 12), exponent), axis=1).T)


def _listed(found: Array) -> str:
    text = ", ".join(f"{value:g}" for value in found[:6])
    return text + (", ..." if len(found) > 6 else "") if len(found) else "none"


_POSITIVE = (0.0, np.inf)

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "power_law_bpp",
            "rfid = c * bits_per_pixel^(-alpha)",
            "one bit rate for all axes: bits_per_pixel = G log2(V) / f^2",
            bounds={"c": _POSITIVE},
            starts={"alpha": (-1, 4)},
            reference={"c": 0.1681, "alpha": 0.8694},
        ),
        Law(
            "paper_eq14",
            "rfid = B / log2(codebook_size)^alpha + C * latent_dim^beta",
            "arXiv 2412.02632, equation 14",
            bounds={"B": _POSITIVE, "C": _POSITIVE},
            starts={"alpha": (0, 6), "beta": (0, 2)},
            holds_for={"groups": 1, "downsample": None},
            reference={"B": 412.6, "alpha": 2.8387, "C": 0.1599, "beta": 0.1962},
        ),
        Law(
            "inverse_bpp",
            "rfid = c / bits_per_pixel",
            "power_law_bpp with exponent 1",
            bounds={"c": _POSITIVE},
            reference={"c": 0.1386},
        ),
        Law(
            "multiplicative",
            "rfid = A * log2(codebook_size)^(-a) * latent_dim^b",
            "power law in bits an index and channels",
            bounds={"A": _POSITIVE},
            starts={"a": (-1, 4), "b": (-1, 2)},
            holds_for={"groups": 1, "downsample": None},
            reference={"A": 5.357, "a": 1.026, "b": 0.1265},
        ),
        Law(
            "channel_limit",
            "rfid = c / (log2(codebook_size) * (1 + kappa / latent_dim))",
            "few channels help, many no longer hurt",
            bounds={"c": _POSITIVE, "kappa": _POSITIVE},
            starts={"kappa": (0.1, 100)},
            holds_for={"groups": 1, "downsample": None},
            reference={"c": 8.558, "kappa": 2.790},
        ),
        Law(
            "saturating",
            "rfid = c * downsample^2 / (groups * min(log2(codebook_size), s * group_dim))",
            "bits per pixel, of which a dimension carries s at most",
            bounds={"c": _POSITIVE, "s": _POSITIVE},
            starts={"s": (0.3, 30)},
            reference={"c": 0.1191, "s": 3.205},
        ),
        Law(
            "power_law_floor",
            "rfid = E + c * bits_per_pixel^(-alpha)",
            "power_law_bpp above what no rate improves",
            bounds={"E": _POSITIVE, "c": _POSITIVE},
            starts={"alpha": (0, 4)},
        ),
        Law(
            "chinchilla",
            "rfid = E + A / parameters^a + B / images_seen^b",
            "arXiv 2203.15556, equation 2, with images for tokens",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "B": _POSITIVE},
            starts={"a": (0, 2), "b": (0, 2)},
        ),
        Law(
            "step_approach",
            "rfid = E + A * exp(-step / tau)",
            "exponential approach of a learning curve",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "tau": _POSITIVE},
        ),
        Law(
            "step_power",
            "rfid = E + A * step^(-a)",
            "power law of a learning curve",
            bounds={"E": _POSITIVE, "A": _POSITIVE, "a": _POSITIVE},
            starts={"a": (0.05, 3)},
        ),
    )
}
DEFAULT_LAWS = ("power_law_bpp", "paper_eq14")
"""Those that ``gsq fit`` tries where none is named."""
