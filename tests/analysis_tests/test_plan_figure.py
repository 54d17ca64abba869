"""The figure of a plan: its lines of equal compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, plan_figure
from gsq.analysis.figures.plans import compute_plan


def cells(budgets: tuple[float, ...] = (1e12, 4e12), off: float = 1.0) -> pd.DataFrame:
    rows = [
        {"budget": c, "parameters": n, "images_seen": c / (6 * n), "train_flops": c * off}
        for c in budgets
        for n in (4e5, 1e5, 2e5, 8e5)
    ]
    return pd.DataFrame(rows)


def test_each_budget_is_a_line_of_exactly_its_compute() -> None:
    found = compute_plan(cells(off=1.02), "budget")
    assert [one.flops for one in found.lines] == [1e12, 4e12]
    for one in found.lines:
        assert list(one.parameters) == [1e5, 2e5, 4e5, 8e5]
        assert one.exact == pytest.approx(one.images / 1.02)
    assert found.furthest == pytest.approx(0.02)


def test_without_budgets_the_costs_make_the_lines() -> None:
    assert [one.flops for one in compute_plan(cells()).lines] == pytest.approx([1e12, 4e12])
    alike = cells((1e12,)).assign(images_seen=100.0)  # no trade between size and images
    assert compute_plan(alike).lines == ()


def test_a_figure_is_drawn_and_saved(tmp_path: Path) -> None:
    figure = plan_figure(cells(), "budget", tmp_path / "plan.png", "iso")
    assert (tmp_path / "plan.svg").stat().st_size > 1000
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["10¹² FLOPs", "4·10¹² FLOPs"]
    drawn = np.concatenate([np.asarray(line.get_ydata()) for line in axes.get_lines()])
    assert drawn.max() == pytest.approx(4e12 / 6e5)


def test_an_empty_plan_and_a_missing_column_are_errors() -> None:
    with pytest.raises(AnalysisError, match="no cells"):
        compute_plan(cells().iloc[:0], "budget")
    with pytest.raises(AnalysisError, match="budgte"):
        compute_plan(cells(), "budgte")
