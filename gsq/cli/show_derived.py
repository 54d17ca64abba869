"""Show keys by formula in ``gsq plan``."""

from __future__ import annotations

from typing import Any

from gsq.sweeps.planning.cells import Plan
from gsq.words import span


def budget_axis(plan: Plan) -> str | None:
    """The axis, no config key, that the number of steps is computed from by the cost of a step."""
    for one in plan.derive:
        axes = [name for name in plan.recorded if name in one.expression.used]
        if one.iterated and len(axes) == 1:
            return axes[0]
    return None


def derived_words(plan: Plan) -> list[str]:
    """A line for each key by formula, with what it is rounded to, and how far the costs are off their budgets."""
    lines = []
    for one in plan.derive:
        rounded = f", rounded to {one.rounding}" if one.rounding else ""
        lines.append(f"derived: {one.text}{rounded}")
    if (axis := budget_axis(plan)) and (off := _off_budget(plan, axis)):
        lines.append(f"train FLOPs of the cells are {span(f'{min(off):+.2g}', f'{max(off):+.2g}')} % off {axis}")
    return lines


def _off_budget(plan: Plan, axis: str) -> list[float]:
    """Per cent between each cell's FLOPs and its budget."""
    budgets = [(cell.cost.train_flops, cell.axes.get(axis)) for cell in plan.cells]
    return [100 * (flops / budget - 1) for flops, budget in budgets if isinstance(budget, int | float) and budget > 0]


def derived_document(plan: Plan) -> list[dict[str, Any]]:
    """``derived_words`` for scripts."""
    return [{"key": one.key, "formula": one.expression.text, "rounded_to": one.rounding or None} for one in plan.derive]
