"""What the starts of a search know of a formula and its columns."""

from __future__ import annotations

import numpy as np
import pytest

from gsq.analysis.fitting.starts import Habit, draw, habits
from gsq.analysis.laws.form import Form
from gsq.analysis.laws.formula import read_formula

X = np.linspace(100.0, 500.0, 21)


def found(text: str, **columns: np.ndarray) -> dict[str, Habit]:
    columns = columns or {"x": X}
    formula = read_formula(text, tuple(columns))
    form = Form(formula)
    return {formula.parameters[i]: habit for i, habit in habits(form, form.table(columns)).items()}


@pytest.mark.parametrize(
    ("text", "name", "kind", "low"),
    [
        ("E + A * exp(-x / tau)", "tau", "rate", 400),
        ("E + A * exp(-k * x)", "k", "rate", 1 / 400),
        ("A / (1 + exp(-k * (x - x0)))", "k", "rate", 1 / 400),
        ("A * exp(-0.5 * ((x - x0) / s)^2)", "s", "rate", 400),
        ("A / (1 + x / s)", "s", "size", 300),
        ("A * x / (s + x)", "s", "size", 300),
        ("A * min(x, s * y)", "s", "size", 0.5),
        ("A * (x + x0)^(-a)", "x0", "size", 300),
    ],
)
def test_sizes_follow_from_the_columns(text: str, name: str, kind: str, low: float) -> None:
    habit = found(text, x=X, y=np.full(21, 600.0))[name]
    assert (habit.kind, habit.low) == (kind, pytest.approx(low, rel=0.5))


@pytest.mark.parametrize("text", ["A / (1 + exp(-k * (x - x0)))", "A * exp(-0.5 * ((x0 - x) / s)^2)"])
def test_places_lie_within_the_column(text: str) -> None:
    assert found(text)["x0"] == Habit("place", 100.0, 500.0)


def test_exponents_shrink_where_a_column_spans_hundreds_of_decades() -> None:
    assert found("E + A * x^(-a)")["a"] == Habit("exponent", -1.0, 4.0)
    wide = found("E + A * x^(-a)", x=np.geomspace(1e-300, 1e300, 21))["a"]
    assert wide.high * np.log(1e300) * 2 == pytest.approx(100)


def test_draws_stay_within_bounds_and_reach_all_of_them() -> None:
    rng = np.random.default_rng(0)
    rate = Habit("rate", 1e-3, np.nan)
    free = draw(rate, np.ones(1), -np.inf, np.inf, 400, rng)
    assert 0.1 < (free < 0).mean() < 0.3 and np.median(np.abs(free)) < 0.1
    assert (draw(rate, np.ones(1), 0, np.inf, 400, rng) > 0).all()
    assert (draw(rate, np.ones(1), -np.inf, 0, 400, rng) < 0).all()
    box = draw(Habit("exponent", -1.0, 4.0), np.ones(1), 10.0, 12.0, 400, rng)
    assert box.min() < 10.2 and box.max() > 11.8, "not all at the nearer bound"
