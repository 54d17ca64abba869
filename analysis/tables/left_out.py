"""Say what a fit leaves out, and whether the failed cells lie where they bias a fit to the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from gsq.analysis.tables.columns import numbers, varying
from gsq.config.axes import AXES
from gsq.sweeps.schema import failure_tests as association
from gsq.words import counted

# Runs die first at the end of an axis that costs more memory and time: the large one (for downsample, the small one).
_DEARER = {axis.name: axis.dearer for axis in AXES if axis.dearer}


# The reason for leaving out a repeat of a run, although it has a value.
REPEATED = "repeated to compare codes"


@dataclass(frozen=True)
class Excluded:
    """What a fit leaves out. Cells are runs: one for each signature."""

    cells: int
    """Cells in the table."""
    used: int
    """Cells with a value."""
    counts: dict[str, int]
    """Reason in words to number of cells."""
    warnings: tuple[str, ...] = ()
    """Where the failed cells sit at the large end of an axis."""

    @classmethod
    def none(cls, rows: pd.DataFrame) -> Excluded:
        """All of ``rows`` are used."""
        return cls(len(rows), len(rows), {})

    @property
    def text(self) -> str:
        """For instance "3 of 12 cells have no value: 2 failed (out_of_memory), 1 queued"; "" if none."""
        if not self.counts:
            return ""
        missing = self.cells - self.used
        parts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
        if REPEATED in self.counts:
            return f"{missing} of {counted(self.cells, 'cell')} {'is' if missing == 1 else 'are'} left out: {parts}"
        return f"{missing} of {counted(self.cells, 'cell')} {'has' if missing == 1 else 'have'} no value: {parts}"


def failure_warnings(
    cells: pd.DataFrame, keep: npt.NDArray[np.bool_], failed: npt.NDArray[np.bool_]
) -> tuple[str, ...]:
    """Warnings about where the failed ones of ``cells`` lie, compared with those to ``keep``, which have a value."""
    return _failures_by_axis(cells, keep, failed) or _large_end_warning(cells, keep, failed)


def without_protocol(frame: pd.DataFrame) -> list[str]:
    """The models of published numbers, each once, of whose protocol the source says nothing."""
    if not {"protocol_known", "model"} <= {*frame.columns}:
        return []
    return [str(name) for name in dict.fromkeys(frame.loc[frame["protocol_known"].isna(), "model"])]


def protocol_warnings(frame: pd.DataFrame) -> tuple[str, ...]:
    """A warning that names published numbers without a protocol."""
    if not (models := without_protocol(frame)):
        return ()
    more = f" and {len(models) - 4} more" if len(models) > 4 else ""
    return (f"the source states no protocol for {', '.join(models[:4])}{more}, so nobody can repeat the measurement",)


def _failures_by_axis(
    cells: pd.DataFrame, keep: npt.NDArray[np.bool_], failed: npt.NDArray[np.bool_]
) -> tuple[str, ...]:
    """A warning for each axis with which failure goes (gsq.sweeps.schema.failure_tests: exact, corrected for the
    number of axes)."""
    ended = cells[keep | failed]
    if not failed.any():
        return ()
    tests = []
    for name in varying(ended):
        values = ended[name].tolist()
        # Columns that are not numeric, or have gaps, are tested as text.
        plain = ended[name].notna().all() and pd.api.types.is_numeric_dtype(ended[name])
        say = (lambda value: f"{value:g}") if plain else str
        tests += association.goes_with(
            name, values if plain else [*map(str, values)], failed[keep | failed].tolist(), say
        )
    return tuple(test.sentence for test in association.corrected(tests) if test.adjusted_p < association.LEVEL)


def _large_end_warning(
    cells: pd.DataFrame, keep: npt.NDArray[np.bool_], failed: npt.NDArray[np.bool_]
) -> tuple[str, ...]:
    """One warning naming the axes on which every failed cell lies beyond the median measured cell."""
    if not failed.any():
        return ()
    beyond = []
    for name, sign in _DEARER.items():
        if name not in cells:
            continue
        values = sign * numbers(cells, name)
        if np.all(values[failed] > np.nanmedian(values[keep])):
            beyond.append(f"{name} {'above' if sign > 0 else 'below'} {abs(np.nanmedian(values[keep])):g}")
    if not beyond:
        return ()
    count = int(failed.sum())
    who = "the failed cell has" if count == 1 else f"all {count} failed cells have"
    return (
        f"{who} {', '.join(beyond)} (the medians of the measured cells): failures at that end are not "
        "missing at random, and a fit over the survivors can be biased there",
    )


def large_end(name: str) -> int:
    """1 where large values of the axis cost more memory and time, -1 where small ones do (downsample)."""
    return _DEARER.get(name, 1)
