"""A scaling law: a formula over columns, with bounds and starting ranges where wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from gsq.analysis.errors import AnalysisError
from gsq.analysis.laws.form import Form, compile_form
from gsq.analysis.laws.formula import Formula, read_formula
from gsq.analysis.laws.syntax import index_of
from gsq.analysis.tables.columns import NUMBER
from gsq.analysis.tables.outputs import OUT, stacked
from gsq.analysis.tables.table import Array, Excluded, labels, measured, numbers, with_derived
from gsq.config.axes import DERIVED, TOKENIZER
from gsq.sweeps.schema import columns as schema

if TYPE_CHECKING:
    pass

Bound = float | Literal["min"]
"""A number, or "min": the smallest target in the table. No bound for a floor: noise puts that value below it."""
DEFAULT_TARGET = "rfid"
KNOWN = (*(c.name for c in schema.COLUMNS), *DERIVED)


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
    (0.3, 0.3) starts at 0.3. Parameters that enter linearly need none: they are solved for at each start."""
    holds_for: Mapping[str, float | None] = field(default_factory=dict)
    """Columns without a term here that must have this one value (None: any one value) in the rows, where they have
    it."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """Parameters to plan with before anything is measured (:func:`analysis.power`), from the numbers that the paper
    prints (results/reference): those of figure 4 for laws of one group, else the 41 distinct ones."""
    known: tuple[str, ...] = KNOWN
    """Names that are columns; see :func:`gsq.analysis.laws.formula.read_formula`."""
    simpler: str = ""
    """Name of the law that this one adds to, against which :func:`analysis.nested_test` tests it."""
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The levels of each of ``factors``, once rows have told them: see :meth:`at_levels`."""
    outputs: tuple[str, ...] = ()
    """Columns that are predicted together, where there are several: the levels of ``out``, by which parameters are
    indexed. ``target`` is then the column of all of them (:func:`gsq.analysis.tables.outputs.stacked`)."""

    def __post_init__(self) -> None:
        for what, given in (("bounds", self.bounds), ("starts", self.starts)):
            for name, pair in given.items():
                if not _is_pair(pair, "min" if what == "bounds" else ""):
                    raise AnalysisError(
                        f"{self.name}: the {what} of {name} are two numbers, such as (0, 4); got {pair!r}. An open end "
                        "is infinite: (0, math.inf)"
                    )
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
        """Names in order of appearance. A[quantizer] has one for each level: A[gsq], A[simvq]; before the levels are
        known, it is A[quantizer] itself."""
        return self.read.expanded(self.levels) if self.levels else self.read.parameters

    @property
    def columns(self) -> tuple[str, ...]:
        """Table columns of numbers that the formula reads."""
        return self.read.columns

    @property
    def factors(self) -> tuple[str, ...]:
        """Table columns, of text or numbers, by whose levels parameters are indexed."""
        return self.read.factors

    @property
    def reads(self) -> tuple[str, ...]:
        """Every column that a row needs: ``columns`` and ``factors``."""
        return tuple(dict.fromkeys((*self.columns, *self.factors)))

    @property
    def indexed(self) -> dict[str, tuple[str, str]]:
        """A[quantizer] to ("A", "quantizer"), for each parameter with a value for each level of a column."""
        return {name: index for name in self.read.parameters if (index := index_of(name))}

    def takes(self, name: str) -> bool:
        """Whether bounds or a start may be given to ``name``: a parameter, A of A[quantizer], or A[gsq]."""
        base = (index_of(name) or (name,))[0]
        return name in self.parameters or any(base == one for one, _ in self.indexed.values())

    def at_levels(self, frame: pd.DataFrame) -> Law:
        """This law with the levels that the rows of ``frame`` have, in alphabetical or numerical order. Bounds and
        starts of A hold for all of A[quantizer], those of A[gsq] for that one.

        Raises AnalysisError where a column is missing, or bounds or starts name a level that no row has.
        """
        if not self.factors:
            return self
        levels = {name: _levels(frame, name) for name in self.factors}
        names = self.read.expanded(levels)
        bases = {(index_of(name) or (name,))[0] for name in names}
        wrong = [name for name in (*self.bounds, *self.starts) if name not in names and name not in bases]
        if wrong:
            raise AnalysisError(
                f"{self.name}: {wrong[0]} was given bounds or a start, but no row has that level; parameters: "
                f"{', '.join(names)}"
            )

        def spread(given: Mapping[str, Any]) -> dict[str, Any]:
            found = {name: given.get(name, given.get((index_of(name) or (name,))[0])) for name in names}
            return {name: pair for name, pair in found.items() if pair is not None}

        return replace(self, levels=levels, bounds=spread(self.bounds), starts=spread(self.starts))

    @property
    def target(self) -> str:
        return self.read.target or DEFAULT_TARGET

    def form(self, without: Collection[str] = ()) -> Form:
        """The compiled formula, its amplitudes centred but those in ``without`` and those with bounds other than 0."""
        fixed = {
            name for name, pair in self.bounds.items() if any(end not in (0, -np.inf, np.inf) for end in pair)
        } | set(without)
        centred = tuple(name for name in self.parameters if name not in fixed)
        return compile_form(self.formula, self.columns, self.parameters, centred, tuple(self.levels.items()))

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
        frame = with_derived(frame, names=self.reads)
        columns: dict[str, Any] = {name: numbers(frame, name) for name in self.columns}
        columns |= {f"[{name}]": self._at_known_levels(frame, name) for name in self.factors}
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

    def _at_known_levels(self, frame: pd.DataFrame, name: str) -> npt.NDArray[np.object_]:
        found, known = labels(frame, name), self.levels.get(name, ())
        wrong = [one for one in found if one not in known]
        if wrong:
            raise AnalysisError(
                f"{self.name} cannot predict for {name} = {wrong[0] or 'an empty cell'}: it was fitted to "
                f"{', '.join(known) or 'no rows yet'}; fit it to rows with that level as well"
            )
        return found

    @property
    def of_steps(self) -> bool:
        """Whether the law is about the course of a training: it reads ``step``, and takes every evaluation."""
        return "step" in self.columns

    def rows(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, Excluded]:
        """The rows of ``frame`` that this law is fitted to, and what is left out: :func:`analysis.measured` for its
        target and columns, or of several targets a row for each. Raises AnalysisError like it."""
        if self.outputs:
            return stacked(frame, self.outputs, self.columns, self.factors)
        return measured(frame, self.target, self.columns, self.factors)

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
        if not self.columns and not self.factors:
            return f"{self.name} reads no column: {self.formula}"
        for name in self.factors:
            found, counts = np.unique(labels(frame, name).astype(str), return_counts=True)
            if len(found) == 1:
                return (
                    f"{self.name} has a parameter for each level of {name}, and every row has {name} = {found[0]}; "
                    f"leave out [{name}], or add rows of another level"
                )
            if counts.min() == 1:
                alone = ", ".join(found[counts == 1])
                drop = (
                    "leave it out of the targets"
                    if name == OUT and self.outputs
                    else (f"drop it (--where \"{name} != '{found[counts == 1][0]}'\")")
                )
                return (
                    f"{self.name} has a parameter for each level of {name}, and of {name} = {alone} there is one row, "
                    f"which that parameter would fit whatever it is; add rows of that level, or {drop}"
                )
        values = self._columns(frame)
        if _cells(values) == 1:
            others = [n for n in TOKENIZER if n in frame]
            moving = [name for name in others if name not in values and len(np.unique(numbers(frame, name))) > 1]
            return (
                f"{self.name} reads only {' and '.join(values)}, constant in these rows "
                f"({', '.join(f'{name} = {one[0]:g}' for name, one in values.items())})"
                + (f"; the rows vary in {', '.join(moving)}: use a law with a term for it" if moving else "; add cells")
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
        if self.factors and not self.levels:
            return self.at_levels(frame).reason_not(frame)
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
        codes = {name: np.unique(labels(frame, name).astype(str), return_inverse=True)[1] for name in self.factors}
        columns = {name: numbers(frame, name) for name in self.columns}
        return {**columns, **{f"[{name}]": one.astype(np.float64) for name, one in codes.items()}}

    def settings(self, frame: pd.DataFrame) -> Array:
        """What the law reads of each row as numbers, (columns and factors, n)."""
        return np.stack(list(self._columns(frame).values()))


def _is_pair(pair: Any, word: str) -> bool:
    """Whether this is a pair of numbers, of which the second may be ``word`` ("" for none)."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return False
    return all(isinstance(end, NUMBER) for end in (pair[0], 0 if word and pair[1] == word else pair[1]))


def _cells(values: Mapping[str, Array]) -> int:
    """Distinct settings of the columns, to twelve digits."""
    mantissa, exponent = np.frexp(np.stack(list(values.values())))
    return len(np.unique(np.ldexp(np.round(mantissa, 12), exponent), axis=1).T)


def _levels(frame: pd.DataFrame, name: str) -> tuple[str, ...]:
    found = [one for one in set(labels(frame, name)) if one]
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(sorted(found))


def _listed(found: Array) -> str:
    text = ", ".join(f"{value:g}" for value in found[:6])
    return text + (", ..." if len(found) > 6 else "") if len(found) else "none"
