"""The runs that a design proposes, and what to expect from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gsq.analysis.designing.options import Criterion
from gsq.analysis.designing.target import Target, cell_text, interval_text
from gsq.analysis.fitting.result import or_none
from gsq.words import counted


@dataclass(frozen=True)
class Proposal:
    """One run to make."""

    cell: Mapping[str, object]
    """The axes of the configuration."""
    row: int
    """Position in the candidates of the first row with this configuration."""
    runs_before: int
    """Number of runs of this configuration measured or proposed before; from 1 on, this run is a further seed."""
    cost: float
    total: float
    """Cost of this run and all proposed before it."""
    expected: float
    """The expected value of the target after this run."""


@dataclass(frozen=True)
class Checkpoint:
    """What a budget can be expected to achieve."""

    budget: float
    runs: int
    """How many of the proposed runs it pays for, counted from the first."""
    cost: float
    expected: float
    """The expected value of the target after these runs."""


@dataclass(frozen=True)
class Expectation:
    """The target's interval now, and the one expected after the proposed runs."""

    name: str
    central: float
    before: tuple[float, float]
    """95 % interval (or the confidence of the fits); infinite where the runs so far do not determine it."""
    after: tuple[float, float]


@dataclass(frozen=True)
class Design:
    """The runs to make next, in order."""

    target: Target
    laws: tuple[str, ...]
    weights: tuple[float, ...]
    """AICc weights of the laws."""
    criterion: Criterion
    noise: float | None
    """Standard deviation between seeds, relative for log residuals; None where it is not known."""
    noise_source: str
    scatter: float
    """Standard deviation of configurations about the (best) law, beyond seeds."""
    log: bool
    """Whether residuals are logarithms, so that errors are relative."""
    measures: str
    """The column that the laws predict."""
    confidence: float
    unit: str
    """Unit of the costs and of the budget."""
    budget: float
    """The budget; the largest if there are several."""
    checkpoints: tuple[Checkpoint, ...]
    """A checkpoint for each budget."""
    until: float | None
    before: float
    """The value to be lowered: half an interval, or the weight of wrong laws."""
    after: float
    open_before: bool
    """Whether the runs so far leave the target undetermined; ``before`` then only says that it is large."""
    open_after: bool
    expectations: tuple[Expectation, ...]
    """Expected intervals of the parameter, of each target cell (at most eight), or of the seed noise."""
    proposals: tuple[Proposal, ...]
    stopped: str
    """Why the design ends here."""
    notes: tuple[str, ...]

    @property
    def cost(self) -> float:
        return self.proposals[-1].total if self.proposals else 0.0

    @property
    def relative(self) -> bool:
        """Whether the value is the logarithm of a factor, so that it is shown in percent."""
        return self.target.kind == "noise" or (self.target.kind == "predict" and self.log)

    def as_shown(self, value: float) -> float:
        """Return a value of the target in the units of ``until``: 0.05 for 5 %."""
        return float(np.expm1(value)) if self.relative else value

    def show(self, value: float, is_open: bool = False) -> str:
        """A value of the target in words: "+-4.1%"."""
        if is_open or not np.isfinite(value):
            return "open"
        return self._shown(self.as_shown(value))

    def _shown(self, value: float) -> str:
        if self.target.kind == "discriminate":
            return f"{value:.2%} of the weight on wrong laws"
        return f"+-{value:.2%}" if self.relative else f"+-{value:.3g}"

    @property
    def _after_text(self) -> str:
        count = len(self.proposals)
        if not count:
            return "no run is proposed"
        runs = f"{count} run{'s' * (count > 1)} of {self.cost:.4g} {self.unit} in all"
        return f"expected after {runs}: {self.show(self.after, self.open_after)}"

    @property
    def value_name(self) -> str:
        """Return the label of the value on a figure's axis."""
        if self.target.kind == "discriminate":
            return "expected weight of wrong laws"
        what = self.measures if self.target.kind == "predict" else self.target.parameter or "seed noise"
        mean = ", root mean square" if self.criterion == "average" else ""
        return f"half of the {self.confidence:.0%} interval of {what}{mean}"

    @property
    def curve(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the cumulative cost and the target's value, before the first run and after each."""
        return (0.0, *(one.total for one in self.proposals)), (self.before, *(one.expected for one in self.proposals))

    @property
    def table(self) -> pd.DataFrame:
        """One row for each proposed run: its axes, run (1: the first of its configuration), cost, total, expected."""
        return pd.DataFrame(
            [
                {**one.cell, "run": one.runs_before + 1, "cost": one.cost, "total": one.total, "expected": one.expected}
                for one in self.proposals
            ]
        )

    def text(self) -> str:
        """Return the target, what to expect, a line for each run, and why the design ends."""
        laws = ", ".join(
            name + (f" (weight {weight:.2f})" if len(self.laws) > 1 else "")
            for name, weight in zip(self.laws, self.weights, strict=True)
        )
        unit = " (relative)" if self.log else ""
        lines = [
            f"Target: {self.target.text}" + (f", until {self._shown(self.until)}" if self.until is not None else ""),
            f"Laws: {laws}" if len(self.laws) > 1 else f"Law: {laws}",
            (
                "Seed noise not known"
                if self.noise is None
                else f"Seed noise {self.noise:.3g}{unit}, {self.noise_source}"
            )
            + f"; scatter of configurations about the law {self.scatter:.3g}{unit}",
            "",
            f"Now {self.show(self.before, self.open_before)}; " + self._after_text,
        ]
        level = f"{self.confidence:.0%} interval"
        for one in self.expectations:
            now, then = (interval_text(pair) for pair in (one.before, one.after))
            lines.append(f"  {one.name} {one.central:.4g}, {level} now {now}, then {then}")
        if len(self.checkpoints) > 1:
            lines += [
                f"  within {one.budget:.4g} {self.unit}: {counted(one.runs, 'run')}, {one.cost:.4g} in all, expected "
                f"{self.show(one.expected, self.open_after)}"
                for one in self.checkpoints
            ]
        if self.proposals:
            rows = [["run", self.unit, "in all", "expected", "cell"]]
            for number, run in enumerate(self.proposals, 1):
                seed = f"  (run {run.runs_before + 1} of it)" if run.runs_before else ""
                expected = self.show(run.expected, self.open_after and number == len(self.proposals)).split(" of ")[0]
                rows.append([str(number), f"{run.cost:.4g}", f"{run.total:.4g}", expected, cell_text(run.cell) + seed])
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            lines += [
                "",
                *("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows),
            ]
        return "\n".join([*lines, "", f"Stopped: {self.stopped}.", *(f"Note: {note}." for note in self.notes)])

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, values in the units of ``until``; open ends become None."""
        return {
            "target": {
                "kind": self.target.kind,
                "parameter": self.target.parameter or None,
                "cells": [dict(cell) for cell in self.target.cells],
                "rows": None if self.target.rows is None else len(self.target.rows),
            },
            "criterion": self.criterion,
            "laws": [{"law": name, "weight": w} for name, w in zip(self.laws, self.weights, strict=True)],
            "noise": {"between_seeds": self.noise, "source": self.noise_source, "about_the_law": self.scatter},
            "budget": self.budget,
            "checkpoints": [
                {
                    "budget": one.budget,
                    "runs": one.runs,
                    "cost": one.cost,
                    "expected": None if self.open_after else or_none(self.as_shown(one.expected)),
                }
                for one in self.checkpoints
            ],
            "unit": self.unit,
            "until": self.until,
            "before": None if self.open_before else or_none(self.as_shown(self.before)),
            "after": None if self.open_after else or_none(self.as_shown(self.after)),
            "confidence": self.confidence,
            "expectations": [
                {
                    "name": one.name,
                    "central": or_none(one.central),
                    "before": [or_none(end) for end in one.before],
                    "after": [or_none(end) for end in one.after],
                }
                for one in self.expectations
            ],
            "runs": [
                {
                    "cell": dict(one.cell),
                    "run": one.runs_before + 1,
                    "cost": one.cost,
                    "total": one.total,
                    "expected": or_none(self.as_shown(one.expected)),
                }
                for one in self.proposals
            ],
            "cost": self.cost,
            "stopped": self.stopped,
            "notes": list(self.notes),
        }
