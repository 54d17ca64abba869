"""What the rows leave open, at an optimum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsq.analysis.fitting.identify import condition, freedom, least_norm, null_space, opened, unit_columns
from gsq.analysis.fitting.solver import Problem, solve
from gsq.analysis.laws.named import get_law

X = np.array([1.0, 2, 4, 8, 16])


def problem(text: str, y: np.ndarray, **columns: np.ndarray) -> Problem:
    # With starts, a and b cannot be meant as columns that the table lacks.
    starts = {"a": (-1.0, 1.0), "b": (-1.0, 1.0)} if "a + b" in text else {}
    law = get_law(f"y = {text}", [*columns, "y"], starts=starts)
    return Problem(law.form(), law.values(pd.DataFrame(columns)), y, "linear", *law.limits(y))


def test_each_group_of_confounded_parameters_stands_alone() -> None:
    one = problem("a + b + c*u + d*u*2 + f*x", X + 3, x=X, u=np.array([1.0, 0, 1, 0, 1]))
    assert freedom(one, np.ones(5)).groups == ((0, 1), (2, 3)) and freedom(one, np.ones(5)).count == 2


def test_what_nothing_depends_on_is_alone_and_becomes_zero() -> None:
    one = problem("a * max(x, s * u)", 2 * X, x=X, u=np.full(5, 0.1))
    at = solve(one, np.array([[1.0, 3.0]]), np.ones(5))
    assert freedom(one, at.theta[0]).groups == ((1,),)
    assert least_norm(one, at.theta[0], float(at.cost[0]), np.ones(5)) == pytest.approx([2, 0])


def test_least_norm_splits_evenly_and_costs_nothing() -> None:
    one = problem("a + b + c*x", 3 + 2 * X, x=X)
    theta = least_norm(one, np.array([5.0, -2, 2]), 0.0, np.ones(5))
    np.testing.assert_allclose(theta, [1.5, 1.5, 2], rtol=1e-8)


def test_columns_of_any_size_have_a_rank() -> None:
    one = problem("a + b*u + c*x^f", X, x=X, u=1e60 * X)
    theta = np.array([1.0, 1e-60, 1, 0.5])
    jacobian = np.stack([1e-200 * np.ones(5), 1e200 * X, np.zeros(5), 1e-16 * X], axis=1)
    unit, length = unit_columns(one, jacobian, theta)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=0), [1, 1, 0, 0])
    assert length[2] == 1 and len(null_space(unit)) == 2


@pytest.mark.parametrize("size", [1e-60, 1e-14, 1e14, 1e60])
def test_a_line_over_a_column_of_any_size_is_determined(size: float) -> None:
    one = problem("a + b*u", 3 + 2 * X, u=size * X)
    found = solve(one, np.zeros((1, 2)), np.ones(5))
    np.testing.assert_allclose(found.theta[0], [3, 2 / size], rtol=1e-6)
    assert freedom(one, found.theta[0]).count == 0


def test_a_condition_number_cannot_overflow() -> None:
    law = get_law("y = A * exp(k * x) + B", ["x", "y"])
    x = np.linspace(0, 700, 9)
    one = Problem(law.form(), law.values(pd.DataFrame({"x": x})), np.exp(x / 4), "linear", *law.limits(x))
    assert condition(law, one, np.array([1e-150, 1.0, 1.0]))[0] == np.inf


def test_an_end_that_a_bound_has_set_is_open() -> None:
    assert opened((0.0, 2.0), 0.0, np.inf) == (-np.inf, 2.0)
    assert opened((0.1, 2.0), 0.0, 2.0) == (0.1, np.inf)
    assert np.isnan(opened((np.nan, np.nan), 0.0, 2.0)).all()
