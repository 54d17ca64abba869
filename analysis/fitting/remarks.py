"""Remarks to read beside a fit: sentences about its search, its parameters and its floors."""

from __future__ import annotations

import numpy as np

from gsq.analysis.fitting.options import Intervals
from gsq.analysis.fitting.result import confounded_text, interval_text
from gsq.analysis.fitting.solver import Problem
from gsq.analysis.laws.named import Law
from gsq.analysis.laws.syntax import index_of
from gsq.analysis.tables.table import Array

FEW_CONFIGURATIONS = 8  # below this a bootstrap by configuration has too few distinct resamples to be trusted


def search_remarks(problem: Problem, starts: int, share: float, converged: bool, confounded: bool) -> list[str]:
    """Say whether the search can be trusted."""
    found = []
    if not converged and not confounded:
        found.append(
            f"the search did not converge: the best of {starts} starts was still falling when it was stopped, and "
            "these are the best values found; try more starts (--starts), or ranges of starts near the answer (--start)"
        )
    elif share < 0.1:
        found.append(f"only {share:.0%} of the starts reach the best optimum: try more starts, or starting ranges")
    if problem.loss == "huber" and problem.residuals == "log" and problem.delta >= 0.5:
        found.append(f"huber with delta {problem.delta:g} on logarithms is plain least squares; replications use 1e-3")
    return found


def confounded_remarks(law: Law, groups: tuple[tuple[str, ...], ...], settings: int) -> list[str]:
    """Say which parameters the rows cannot tell apart, and which rows could."""
    if not groups:
        return []
    if settings < len(law.parameters):
        names = " and ".join(law.columns)
        cure = f"{settings} distinct {names} for {len(law.parameters)} parameters: add cells, or drop a parameter"
    elif len(law.columns) > 1:
        cure = f"vary {' and '.join(law.columns)} independently, or drop a parameter"
    else:
        cure = f"add cells with other {law.columns[0]}, or drop a parameter"
    return [
        f"the law is not determined: {confounded_text(groups)}. Its values at settings like these are, and "
        f"are predicted (with the smallest parameters that fit); {cure}"
    ]


def bound_remarks(at_bound: tuple[str, ...]) -> list[str]:
    """Name the parameters that ended at a bound."""
    if not at_bound:
        return []
    return [
        f"{', '.join(at_bound)} ended at a bound, where {'an interval is' if len(at_bound) == 1 else 'intervals are'} "
        "open: use a simpler law, or other bounds"
    ]


def floor_remarks(
    law: Law,
    problem: Problem,
    natural: Array,
    prediction: Array,
    intervals: dict[str, tuple[float, float]],
    open_: set[str],
) -> list[str]:
    """Whether the data reach the floors of a law; ``open_``: the parameters that they do not determine."""
    if not problem.form.exponents:
        return []
    found = []
    for i in problem.form.constants:
        name, value = law.parameters[i], float(natural[i])
        level = problem.form.levels.get(i)
        here = np.ones(len(prediction), dtype=bool) if level is None else problem.data[level] > 0
        smallest, above = float(np.min(problem.target[here])), float(np.min(prediction[here])) - value
        if smallest <= 0 or above < 0:  # no floor, or a ceiling
            continue
        shown, index = interval_text(intervals[name]), index_of(name)
        target = index[1] if law.outputs and index and index[1] in law.outputs else law.target
        if value < 0:
            found.append(
                f"the floor {name} = {value:.3g} is below 0, where no {target} can be: no value to quote; bound it "
                f"(--bound {name}=0:)"
            )
        elif name in open_:
            found.append(
                f"the data do not reach the floor {name}: the smallest {target} is {smallest:.3g}, and "
                + (f"a floor in [{shown}] fits as well" if shown else "other floors fit as well")
            )
        elif above > value:
            found.append(
                f"the data do not reach the floor {name} = {value:.3g}: the law is {above + value:.3g} at the nearest "
                "row, so that the floor follows from the law's form"
            )
    return found


def interval_remarks(requested: int, failed: int, kind: Intervals, cells: int, left: int) -> list[str]:
    """Say what the intervals are based on."""
    found: list[str] = []
    if kind == "none":
        return found
    if left < 1:
        found.append("no intervals: the law has as many parameters as there are rows")
    elif kind == "bootstrap" and requested == 0:
        found.append("no intervals: bootstrap = 0")
    elif cells < FEW_CONFIGURATIONS:
        found.append(f"intervals from {cells} configurations are rough")
    if failed:
        found.append(f"{failed} of {requested} resamples failed: the bootstrap leaves them out")
    return found
