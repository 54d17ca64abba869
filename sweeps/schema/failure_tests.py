"""Exact tests of whether failure depends on an axis, over the runs that have ended; analysis uses them on any table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from sys import intern
from typing import TYPE_CHECKING, Any

from gsq.words import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.05
# A numeric axis with more values is split at its median, since a search draws a new number for every cell.
MANY_VALUES = 8
RESAMPLES = 99_999
# Tables drawn at once.
PART = 5_000


@dataclass(frozen=True)
class AxisTest:
    """Test of whether failure depends on one axis, over the cells that have ended (done or failed)."""

    axis: str
    p_value: float
    """Fisher's exact test of the axis' values by failed or done, two-sided."""
    adjusted_p: float
    """The same after Holm's correction for the number of axes."""
    failed: Mapping[str, int]
    """Failed cells by value."""
    done: Mapping[str, int]
    group: str
    """Values with the largest excess of failures: ``codebook_size=65536``, or ``codebook_size>=16384`` if ordered."""
    group_failed: int
    group_done: int

    @property
    def sentence(self) -> str:
        """What a failure that depends on the axis means for a law fitted to the rest."""
        ended = counted(self.group_failed + self.group_done, "cell")
        left = f"rests there on {self.group_done} of {ended}" if self.group_done else f"says nothing about {self.group}"
        return (
            f"of {counted(sum(self.failed.values()), 'failed cell')} {self.group_failed} "
            f"{'has' if self.group_failed == 1 else 'have'} {self.group} "
            f"(p = {self.adjusted_p:.1g}): a law fitted to the rest {left}"
        )


def goes_with(
    axis: str, values: list[Any], failed: list[bool], text: Callable[[Any], str] = lambda value: f"{value:g}"
) -> list[AxisTest]:
    """Test one axis over runs that have ended, without correction. Returns an empty list if the axis does not vary.

    Two values use the hypergeometric distribution. More values use 99,999 tables drawn with the same margins, so the
    smallest p is 1e-5; the seed is fixed. text: formats a value.
    """
    ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if ordered and len(set(values)) > MANY_VALUES:
        middle = sorted(values)[len(values) // 2]
        below, above = (f"{axis}{sign}{text(middle)}" for sign in ("<", ">="))
        names = [above if value >= middle else below for value in values]
        ordered = False
    else:
        if ordered:
            pairs = sorted(zip(values, failed, strict=True))
            values, failed = [value for value, _ in pairs], [has_failed for _, has_failed in pairs]
        names = [intern(f"{axis}={text(value)}") for value in values]
    groups = list(dict.fromkeys(names))
    if len(groups) < 2:
        return []
    lost, total = Counter(name for name, has_failed in zip(names, failed, strict=True) if has_failed), Counter(names)
    observed, sizes = [lost[group] for group in groups], [total[group] for group in groups]
    p_value = _fisher(observed[0], sizes[0], len(names), sum(failed)) if len(groups) == 2 else _drawn(observed, sizes)

    candidates = {group: [group] for group in groups}
    if ordered:
        for i in range(1, len(groups) - 1):
            candidates[groups[i].replace("=", ">=", 1)] = groups[i:]
            candidates[groups[i].replace("=", "<=", 1)] = groups[: i + 1]
    sums = {name: (sum(lost[g] for g in of), sum(total[g] for g in of)) for name, of in candidates.items()}
    # Pick the group whose failures chance explains least; the first of equals is a single value.
    worst = min(sums, key=lambda name: _at_least(*sums[name], len(names), sum(failed)))
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


# scipy.stats has these, and takes 80 MB and a second to import.
@lru_cache(maxsize=4)
def _factorials(count: int) -> NDArray[np.float64]:
    """Logarithms of 0! to ``count``!."""
    import numpy as np

    return np.array([math.lgamma(number + 1) for number in range(count + 1)])


def _chances(size: int, total: int, drawn: int) -> tuple[int, NDArray[np.float64]]:
    """Hypergeometric: the fewest of a group of ``size`` of ``total`` that ``drawn`` can hold, and the probabilities of
    that number and each larger one."""
    import numpy as np

    logs, low = _factorials(total), max(0, drawn - (total - size))
    held = np.arange(low, min(size, drawn) + 1)
    inside = logs[size] - logs[held] - logs[size - held]
    outside = logs[total - size] - logs[drawn - held] - logs[total - size - drawn + held]
    return low, np.exp(inside + outside - (logs[total] - logs[drawn] - logs[total - drawn]))


def _at_least(held: int, size: int, total: int, drawn: int) -> float:
    low, chances = _chances(size, total, drawn)
    return float(chances[held - low :].sum())


def _fisher(held: int, size: int, total: int, drawn: int) -> float:
    """Two-sided: the probability of the numbers that are at most as probable as ``held``, up to rounding."""
    low, chances = _chances(size, total, drawn)
    return min(1.0, float(chances[chances <= chances[held - low] * (1 + 1e-7)].sum()))


def _drawn(held: list[int], sizes: list[int]) -> float:
    """The share of drawn tables that are at most as probable as ``held`` of groups of ``sizes``, up to rounding."""
    import numpy as np

    logs, size = _factorials(sum(sizes)), np.array(sizes)
    # All at once take 60 MB.
    random, parts = np.random.default_rng(0), [min(PART, RESAMPLES - start) for start in range(0, RESAMPLES, PART)]

    def unlikely(tables: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((logs[tables] + logs[size - tables]).sum(-1))

    least = unlikely(np.array(held)) - 1e-9
    drawn = (random.multivariate_hypergeometric(size, sum(held), part, method="marginals") for part in parts)
    rare = sum(int((unlikely(tables) >= least).sum()) for tables in drawn)
    return (1 + rare) / (RESAMPLES + 1)


def corrected(tests: list[AxisTest]) -> list[AxisTest]:
    """Apply Holm's correction for the number of tests, in the same order."""
    adjusted, least = {}, 0.0
    for rank, test in enumerate(sorted(tests, key=lambda test: test.p_value)):
        least = max(least, min(1.0, test.p_value * (len(tests) - rank)))
        adjusted[test.axis] = least
    return [replace(test, adjusted_p=adjusted[test.axis]) for test in tests]
