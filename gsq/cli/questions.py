"""Answer further questions of ``gsq fit``: arms, a test against a simpler law, a roll-out over sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gsq import analysis
from gsq.analysis.errors import AnalysisError


@dataclass(frozen=True)
class Questions:
    """The options; None where a question is not asked."""

    arms: str | None
    random: str | None
    against: str | None
    rollout: str | None

    def answer(
        self, fits: list[analysis.Fit], lines: list[str], document: dict[str, object]
    ) -> Callable[[Path], object] | None:
        """Add what is found of each fit to ``lines`` and ``document``; returns what draws the arms of the first.

        Raises AnalysisError where a question cannot be answered.
        """
        if self.random is not None and self.arms is None:
            raise AnalysisError("--random sets how the intervals of --arms are computed; add --arms COLUMN")
        if not fits and any((self.arms, self.against, self.rollout)):
            raise AnalysisError("--arms, --against and --rollout need a fit; leave out --collapse or --extrapolate")
        drawing = None
        for one in fits:
            if self.arms is not None:
                column, _, level = self.arms.partition("=")
                found = analysis.arms(one, column, level or None, random=self.random)
                _add(document, "arms", found.to_dict())
                lines.append(found.text())
                drawing = drawing or partial(analysis.arms_figure, found)
            if self.against is not None:
                test = analysis.nested_test(one, self.against)
                _add(document, "tests", test.to_dict())
                lines.append(test.text)
            if self.rollout is not None:
                rolled = analysis.rollout(one, self.rollout)
                _add(document, "rollouts", rolled.to_dict())
                lines.append(rolled.text)
        return drawing


def _add(document: dict[str, object], key: str, found: dict[str, object]) -> None:
    kept = document.setdefault(key, [])
    assert isinstance(kept, list)
    kept.append(found)
