"""Choose runs one by one, each time the one that helps most for its cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gsq.analysis.designing.information import Cells, State
from gsq.analysis.errors import AnalysisError


def greedy(
    state: State, cells: Cells, budgets: Sequence[float], until: float | None, cost_exponent: float
) -> tuple[list[int], list[int], str]:
    """Return the configurations in the order in which to run them, how many of them each budget pays for, and why the
    order ends. ``state`` is updated to its end."""
    order: list[int] = []
    ends: list[int] = []
    now, spent, stopped = state.value(), 0.0, ""
    while len(ends) < len(budgets) and not stopped:
        left = budgets[len(ends)] * (1 + 1e-9) - spent
        if until is not None and now <= until and not state.is_open():
            stopped = "the target is met" if order else "the target is met already"
            break
        free = np.flatnonzero((cells.row >= 0) & (state.counts < cells.most))
        affordable = free[cells.cost[free] <= left]
        if not len(free):
            stopped = "no candidate is left: every one has as many runs as seeds allows"
            break
        if not len(affordable):
            if not order and len(ends) == len(budgets) - 1:
                raise AnalysisError(
                    f"a budget of {budgets[-1]:g} affords none of {len(free)} candidates; the cheapest costs "
                    f"{np.min(cells.cost[free]):.4g}"
                )
            ends.append(len(order))
            continue
        after = state.after(affordable)
        with np.errstate(all="ignore"):
            fall = np.log(now) - np.log(np.maximum(after, 1e-300))
            # A first interval is worth more than any narrower one.
            fall = np.where(np.isinf(now) & np.isfinite(after), 1e3, np.nan_to_num(fall))
        if fall.max() < 1e-9:
            stopped = "no further run helps" if len(ends) == len(budgets) - 1 else ""
            ends.append(len(order))
            continue
        cell = int(affordable[np.argmax(fall / cells.cost[affordable] ** cost_exponent)])
        state.add(cell)
        order.append(cell)
        spent += float(cells.cost[cell])
        now = state.value()
    ends += [len(order)] * (len(budgets) - len(ends))
    return order, ends, stopped or "what is left of the budget affords no further run"


def without_tail(start: State, state: State, order: list[int], enough: float, stopped: str) -> tuple[list[int], str]:
    """Drop the last runs of ``order`` that together narrow the target by less than the share ``enough``. ``state`` is
    updated to the new end."""
    replay, values = start.copy(), [start.value()]
    for cell in order:
        replay.add(cell)
        values.append(replay.value())
    end = next(i for i, value in enumerate(values) if not value > values[-1] * (1 + enough))
    if end == len(order):
        return order, stopped
    state.become(start)
    for cell in order[:end]:
        state.add(cell)
    return order[:end], f"the rest of the budget would narrow it by less than {enough:.0%}"


def without_idle(start: State, cells: Cells, order: list[int], until: float) -> tuple[list[int], State]:
    """Drop the runs of ``order`` that the target does not need, the most expensive first."""

    def reached(chosen: Sequence[int]) -> State:
        state = start.copy()
        for cell in chosen:
            state.add(cell)
        return state

    for cell in sorted(set(order), key=lambda c: -cells.cost[c]):
        for _ in range(order.count(cell)):
            last = len(order) - 1 - order[::-1].index(cell)
            shorter = order[:last] + order[last + 1 :]
            if reached(shorter).value() > until:
                break
            order = shorter
    return order, reached(order)
