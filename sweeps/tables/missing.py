"""Find what is missing from a sweep's results, and test whether that depends on an axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gsq.config.overrides import SHORT_NAMES
from gsq.records.attempt import DONE, FAILED
from gsq.sweeps.planning.cells import title
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder
from gsq.sweeps.planning.names import value_of
from gsq.sweeps.schema.failure_tests import LEVEL, AxisTest, corrected, goes_with
from gsq.sweeps.spec.states import CANCELLED, PLANNED, STATES
from gsq.sweeps.state.reconcile import STOPPED
from gsq.sweeps.state.status import Survey, survey
from gsq.words import counted


@dataclass(frozen=True)
class Coverage:
    """States of a sweep's cells, and tests of their failures."""

    sweep: str
    counts: Mapping[str, int]
    """Cells by state, every state named."""
    failures: Mapping[str, int]
    """Failed cells by failure class."""
    axes: tuple[AxisTest, ...]
    """Empty if nothing failed or nothing is done."""

    @property
    def cells(self) -> int:
        return sum(self.counts.values())

    @property
    def biased(self) -> tuple[str, ...]:
        """A sentence for each axis on which failure depends (adjusted p below 0.05)."""
        return tuple(test.sentence for test in self.axes if test.adjusted_p < LEVEL)

    @property
    def lines(self) -> tuple[str, ...]:
        """Counts in words, and a sentence if failures depend on no axis."""
        stopped = self.failures.get(CANCELLED, 0)
        parts = []
        for state in (DONE, FAILED, *(s for s in STATES if s not in (DONE, FAILED))):
            count = self.counts[state] - (stopped if state == FAILED else 0)
            if count or state == DONE:
                parts.append(f"{count} {'not started' if state == PLANNED else state}")
                if state == FAILED:
                    named = [f"{n} {name}" for name, n in self.failures.items() if name != CANCELLED]
                    parts[-1] += f" ({', '.join(named)})"
        parts += [f"{stopped} {STOPPED}"] if stopped else []
        lines = [f"{counted(self.cells, 'cell')} planned: {', '.join(parts)}"]
        if self.axes and not self.biased:
            least = min(self.axes, key=lambda test: test.adjusted_p)
            lines.append(f"failure depends on no axis (exact tests; least p = {least.adjusted_p:.1g}, {least.axis})")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "planned": self.cells, "biased": list(self.biased)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """Read what to_dict wrote."""
        axes = tuple(AxisTest(**test) for test in values["axes"])
        return cls(values["sweep"], values["counts"], values["failures"], axes)


def missing(sweep: str | SweepFolder, runs: Path | None = None) -> Coverage:
    """Count the cells of a sweep by state, and test whether failure depends on an axis.

    sweep: its name, YAML file or folder. Fisher's exact test of value by failed or done is applied to each axis that
    varies over the ended cells (see ``goes_with``), with Holm's correction for several axes. Raises UserError for an
    unknown sweep.
    """
    folder = sweep_folder(sweep, runs)
    return coverage_of(folder.name, survey(folder))


def coverage_of(name: str, found: Survey) -> Coverage:
    """Like ``missing``, from a survey."""
    states = [found.states[cell.signature] for cell in found.plan.cells]
    counted = Counter(state.state for state in states)
    failures = Counter(state.failure or "error" for state in states if state.state == FAILED)
    ended = [
        (cell, state.state == FAILED)
        for cell, state in zip(found.plan.cells, states, strict=True)
        if state.state in (DONE, FAILED)
    ]
    tests: list[AxisTest] = []
    if counted[FAILED] and counted[DONE]:
        failed = [has_failed for _, has_failed in ended]
        # Cells of an earlier YAML may not set an axis of a later one.
        for axis in dict.fromkeys(axis for cell, _ in ended for axis in cell.axes):
            key = SHORT_NAMES.get(axis, axis)  # of a program, or without a dot, it is known where a cell names it
            values = [
                cell.axes[axis]
                if axis in cell.axes
                else value_of(cell.config, key)
                if "." in key or cell.config.program
                else None
                for cell, _ in ended
            ]
            tests += goes_with(axis, values, failed, _text)
    return Coverage(
        name, {state: counted[state] for state in STATES}, dict(failures.most_common()), tuple(corrected(tests))
    )


def _text(value: Any) -> str:
    return title({"": value}).removeprefix("=")
