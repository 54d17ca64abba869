"""What is missing from a sweep's results, and whether that goes with an axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gsq.config import RunConfig
from gsq.loading import config_key
from gsq.record import DONE, FAILED
from sweeps.folder import SweepFolder, sweep_folder
from sweeps.monitoring import Survey, survey
from sweeps.planning import title
from sweeps.reconcile import PLANNED, STATES

LEVEL = 0.05
# A numeric axis with more values is split at its median: a drawn number is another one in every cell.
MANY_VALUES = 8
RESAMPLES = 99_999


@dataclass(frozen=True)
class AxisTest:
    """Whether failure goes with one axis, over the cells that have ended (done or failed)."""

    axis: str
    p_value: float
    """Fisher's exact test of the axis' values by failed or done, two-sided."""
    adjusted_p: float
    """The same after Holm's correction for the number of axes."""
    failed: Mapping[str, int]
    """Failed cells by value."""
    done: Mapping[str, int]
    group: str
    """Where failures are most in excess: ``codebook_size=65536`` or, of an ordered axis, ``codebook_size>=16384``."""
    group_failed: int
    group_done: int


@dataclass(frozen=True)
class Coverage:
    """What became of the cells of a sweep."""

    sweep: str
    counts: Mapping[str, int]
    """Cells by state, every state named."""
    failures: Mapping[str, int]
    """Failed cells by failure class."""
    axes: tuple[AxisTest, ...]
    """Empty where nothing failed or nothing is done: then there is nothing to compare."""

    @property
    def cells(self) -> int:
        return sum(self.counts.values())

    @property
    def biased(self) -> tuple[str, ...]:
        """A sentence for each axis with which failure goes (adjusted p below 0.05)."""
        failed, sentences = self.counts[FAILED], []
        for test in self.axes:
            if test.adjusted_p >= LEVEL:
                continue
            ended = test.group_failed + test.group_done
            left = (
                f"rests there on {test.group_done} of {ended} cells"
                if test.group_done
                else f"says nothing about {test.group}"
            )
            sentences.append(
                f"of {failed} failed cells {test.group_failed} have {test.group} (p = {test.adjusted_p:.1g}): "
                f"a law fitted to the rest {left}"
            )
        return tuple(sentences)

    @property
    def lines(self) -> tuple[str, ...]:
        """Counts for people and, where something failed without going with an axis, that it does not."""
        parts = []
        for state in (DONE, FAILED, *(s for s in STATES if s not in (DONE, FAILED))):
            count = self.counts[state]
            if count or state == DONE:
                parts.append(f"{count} {'not started' if state == PLANNED else state}")
                if state == FAILED:
                    parts[-1] += f" ({', '.join(f'{n} {name}' for name, n in self.failures.items())})"
        lines = [f"{self.cells} cell{'s' * (self.cells != 1)} planned: {', '.join(parts)}"]
        if self.axes and not self.biased:
            least = min(self.axes, key=lambda test: test.adjusted_p)
            lines.append(f"failure goes with no axis (exact tests; least p = {least.adjusted_p:.1g}, {least.axis})")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "planned": self.cells, "biased": list(self.biased)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """What to_dict wrote."""
        axes = tuple(AxisTest(**test) for test in values["axes"])
        return cls(values["sweep"], values["counts"], values["failures"], axes)


def missing(sweep: str | SweepFolder, runs: Path | None = None) -> Coverage:
    """Count the cells of a sweep by what became of them, and test whether failure goes with an axis.

    sweep: its name, its YAML file or its folder. Each axis that varies over the ended cells is tested by Fisher's exact
    test of value by failed or done: from the hypergeometric distribution for two values, and for more by 99,999 tables
    drawn with the same margins (the least p is then 1e-5, and a repeated call gives the same). Several axes are
    corrected for by Holm's method. Raises UserError for an unknown sweep.
    """
    folder = sweep if isinstance(sweep, SweepFolder) else sweep_folder(sweep, runs)
    return coverage_of(folder.name, survey(folder))


def coverage_of(name: str, found: Survey) -> Coverage:
    """As ``missing``, of what is known already."""
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
        # A cell of an earlier YAML may not have set what a later one varies.
        for axis in dict.fromkeys(axis for cell, _ in ended for axis in cell.axes):
            values = [cell.axes[axis] if axis in cell.axes else _configured(cell.config, axis) for cell, _ in ended]
            tests += _test(axis, values, failed)
    return Coverage(
        name, {state: counted[state] for state in STATES}, dict(failures.most_common()), tuple(_corrected(tests))
    )


def _configured(config: RunConfig, axis: str) -> Any:
    section, key = config_key(axis, "axes").split(".")
    return getattr(getattr(config, section), key)


def _ordered(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _test(axis: str, values: list[Any], failed: list[bool]) -> list[AxisTest]:
    """The test of one axis, without correction; none where it does not vary."""
    from scipy import stats

    ordered = _ordered(values)
    if ordered and len(set(values)) > MANY_VALUES:
        middle = sorted(values)[len(values) // 2]
        names = [f"{axis}{'>=' if value >= middle else '<'}{_text(middle)}" for value in values]
        ordered = False
    else:
        if ordered:
            pairs = sorted(zip(values, failed, strict=True))
            values, failed = [value for value, _ in pairs], [has_failed for _, has_failed in pairs]
        names = [f"{axis}={_text(value)}" for value in values]
    groups = list(dict.fromkeys(names))
    if len(groups) < 2:
        return []
    lost, total = Counter(name for name, has_failed in zip(names, failed, strict=True) if has_failed), Counter(names)
    table = [[lost[group] for group in groups], [total[group] - lost[group] for group in groups]]
    if len(groups) == 2:
        p_value = float(stats.fisher_exact(table).pvalue)
    else:
        margins = stats.random_table([sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)])
        drawn = margins.logpmf(margins.rvs(RESAMPLES, random_state=0))
        # Tables that are as probable as the one seen count, rounding aside.
        p_value = float(1 + (drawn <= margins.logpmf(table) + 1e-9).sum()) / (RESAMPLES + 1)

    candidates = {group: [group] for group in groups}
    if ordered:
        for i in range(1, len(groups) - 1):
            candidates[groups[i].replace("=", ">=", 1)] = groups[i:]
            candidates[groups[i].replace("=", "<=", 1)] = groups[: i + 1]
    sums = {name: (sum(lost[g] for g in of), sum(total[g] for g in of)) for name, of in candidates.items()}
    # The group whose failures chance explains least; of equals the first, which is a single value.
    worst = min(sums, key=lambda name: stats.hypergeom.sf(sums[name][0] - 1, len(names), sum(failed), sums[name][1]))
    return [
        AxisTest(
            axis=axis,
            p_value=p_value,
            adjusted_p=p_value,
            failed={group.removeprefix(f"{axis}="): lost[group] for group in groups},
            done={group.removeprefix(f"{axis}="): total[group] - lost[group] for group in groups},
            group=worst,
            group_failed=sums[worst][0],
            group_done=sums[worst][1] - sums[worst][0],
        )
    ]


def _text(value: Any) -> str:
    return title({"": value}).removeprefix("=")


def _corrected(tests: list[AxisTest]) -> list[AxisTest]:
    """With Holm's correction, in the same order."""
    adjusted, least = {}, 0.0
    for rank, test in enumerate(sorted(tests, key=lambda test: test.p_value)):
        least = max(least, min(1.0, test.p_value * (len(tests) - rank)))
        adjusted[test.axis] = least
    return [replace(test, adjusted_p=adjusted[test.axis]) for test in tests]
