from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from gsq.analysis import LAWS, get_law
from gsq.analysis.fitting import searching
from gsq.analysis.fitting.intervals import profile, resample
from gsq.analysis.fitting.searching import draw_starts, refit
from gsq.analysis.fitting.solver import Problem, cholesky_solve, rho, solve


@pytest.fixture
def problem(fig4: pd.DataFrame) -> Problem:
    law = LAWS["paper_eq14"]
    target = fig4["rfid"].to_numpy(float)
    return Problem(law.form(), law.values(fig4), target, "linear", *law.limits(target))


RANGES: list[tuple[float, float] | None] = [None, (0, 6), None, (0, 2)]


def scipys(problem: Problem, weights: np.ndarray, start: np.ndarray, loss: str) -> tuple[np.ndarray, float]:
    def residual(theta: np.ndarray) -> np.ndarray:
        return problem.predict(theta[None])[0] - problem.target

    name = {"least_squares": "linear", "huber": "huber", "cauchy": "cauchy"}[loss]
    assert (weights == 1).all() or loss == "least_squares"
    found = least_squares(
        lambda t: np.sqrt(weights) * residual(t),
        start,
        loss=name,
        f_scale=problem.delta,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    return found.x, 2 * found.cost


def test_a_batch_finds_what_scipy_finds_one_by_one(problem: Problem) -> None:
    times = resample(np.arange(20), np.random.default_rng(0), 12)
    times[0] = 1
    found = refit(problem, np.array([0.16, 2.8, 0.3, 0.2]), times, RANGES, np.ones(1), 8, [0])
    assert found.converged.all()
    for i, weights in enumerate(times):
        theta, cost = scipys(problem, weights, found.theta[i] * 1.01, "least_squares")
        assert found.cost[i] <= cost * (1 + 1e-8)
        np.testing.assert_allclose(found.theta[i], theta, rtol=1e-3)


@pytest.mark.parametrize(("loss", "delta"), [("huber", 0.01), ("huber", 1e-3), ("cauchy", 0.02)])
def test_robust_losses_reach_scipys_optimum(problem: Problem, loss: str, delta: float) -> None:
    robust = replace(problem, loss=loss, delta=delta)  # type: ignore[arg-type]
    found = refit(robust, np.array([0.16, 2.8, 0.3, 0.2]), np.ones((1, 20)), RANGES, np.ones(1), 16, [0])
    theta, cost = scipys(robust, np.ones(20), found.theta[0], loss)
    assert found.converged[0] and found.cost[0] == pytest.approx(cost, rel=1e-6)
    np.testing.assert_allclose(found.theta[0], theta, rtol=2e-2)


def test_an_outlier_moves_squares_and_leaves_robust_losses(problem: Problem) -> None:
    spoiled = replace(problem, target=np.where(np.arange(20) == 7, 3.0, problem.target))
    at = np.array([0.16, 2.8, 0.3, 0.2])
    clean = refit(problem, at, np.ones((1, 20)), RANGES, np.ones(1), 8, [0]).theta[0]
    moved = {}
    for loss, delta in (("least_squares", 1.0), ("huber", 1e-3), ("cauchy", 0.02)):
        robust = replace(spoiled, loss=loss, delta=delta)  # type: ignore[arg-type]
        theta = refit(robust, at, np.ones((1, 20)), RANGES, np.ones(1), 16, [0]).theta
        moved[loss] = np.abs(robust.predict(theta)[0] - robust.predict(clean[None])[0]).max()
    assert moved["least_squares"] > 0.15 and max(moved["huber"], moved["cauchy"]) < 0.05


def test_weights_are_repetitions(problem: Problem) -> None:
    times = np.random.default_rng(1).integers(1, 4, 20).astype(float)
    rows = np.repeat(np.arange(20), times.astype(int))
    twice = replace(problem, data=problem.data[:, rows], target=problem.target[rows])
    form, start = problem.form, np.array([400.0, 2.8, 0.16, 0.2])
    one = solve(problem, form.internal(start, problem.centre)[None], times)
    two = solve(twice, form.internal(start, twice.centre)[None], np.ones(len(rows)))
    assert one.cost[0] == pytest.approx(two.cost[0], rel=1e-9)
    np.testing.assert_allclose(
        form.natural(one.theta, problem.centre)[0], form.natural(two.theta, twice.centre)[0], rtol=1e-3
    )


def test_bounds_hold_and_the_rest_is_optimal_there() -> None:
    x = np.linspace(1, 5, 9)
    frame = pd.DataFrame({"x": x, "y": 1 + 2 * x})
    law = get_law("y = a + b * x + c * x^2", ["x", "y"], bounds={"c": (0.5, 9.0), "a": (-1.0, 3.0)})
    problem = Problem(law.form(), law.values(frame), frame["y"].to_numpy(), "linear", *law.limits(np.ones(9)))
    found = solve(problem, np.array([[0.0, 0.0, 1.0], [2.9, -3.0, 8.0]]), np.ones(9))
    assert found.converged.all()
    design = np.stack([np.ones(9), x], axis=1)
    best = np.linalg.lstsq(design, frame["y"] - 0.5 * x**2)[0]
    # a = 3 is at its bound too, for best[0] is above it.
    assert best[0] > 3 and found.theta[0, 0] == 3 and found.theta[0, 2] == 0.5
    slope = np.sum(x * (frame["y"] - 3 - 0.5 * x**2)) / np.sum(x**2)
    np.testing.assert_allclose(found.theta[:, 1], slope)


def test_fixed_parameters_stay_and_rows_without_weight_do_not_count(problem: Problem) -> None:
    start = np.array([[0.16, 2.0, 0.3, 0.2]])
    held = solve(problem, start, np.ones(20), np.array([False, True, False, False]))
    assert held.theta[0, 1] == 2.0 and held.converged[0]
    weights = np.ones(20)
    weights[3] = 0
    spoiled = replace(problem, target=np.where(np.arange(20) == 3, np.nan, problem.target))
    assert solve(spoiled, start, weights).cost[0] == pytest.approx(solve(problem, start, weights).cost[0])


def test_a_hopeless_start_is_not_called_converged(problem: Problem) -> None:
    found = solve(problem, np.array([[np.nan, 1, 1, 1], [1e300, -1e6, 1, 1]]), np.ones(20))
    assert not found.converged.any() and np.isinf(found.cost).all()


def test_each_problem_is_solved_as_if_alone(problem: Problem) -> None:
    start = draw_starts(problem, RANGES, np.ones(1), np.ones((1, 20)), 16, [3])
    together = solve(problem, start, np.ones(20))
    for i in (0, 7, 15):
        alone = solve(problem, start[i : i + 1], np.ones(20))
        np.testing.assert_allclose(alone.theta[0], together.theta[i], rtol=1e-6)


def test_losses_are_squares_near_zero() -> None:
    small = np.array([-1e-4, 2e-4])
    for loss in ("least_squares", "huber", "cauchy"):
        np.testing.assert_allclose(rho(small, loss, 0.1)[0], small**2, rtol=1e-5)  # type: ignore[arg-type]


def test_cholesky_solves_every_system_of_a_batch() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(50, 5, 5))
    a, b = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(5), rng.normal(size=(50, 5))
    np.testing.assert_allclose(cholesky_solve(a, b), np.linalg.solve(a, b[..., None])[..., 0])


def test_a_profile_of_a_line_is_students_interval() -> None:
    from scipy.stats import linregress, t

    rng = np.random.default_rng(2)
    x = np.linspace(0, 1, 12)
    y = 3 + 2 * x + rng.normal(0, 0.2, 12)
    law = get_law("y = a + b * x", ["x", "y"])
    problem = Problem(law.form(), x[None] * np.ones((1, 1)), y, "linear", *law.limits(y))
    found = solve(problem, np.zeros((1, 2)), np.ones(12))
    quantile = t.ppf(0.975, 10)
    expected = linregress(x, y)
    low, high = profile(law, problem, found, np.ones(12), found.cost / 10 * quantile**2, "b")
    half = quantile * expected.stderr
    assert (low[0], high[0]) == pytest.approx((expected.slope - half, expected.slope + half), rel=1e-3)


def test_a_profile_may_be_open_or_end_at_a_bound() -> None:
    x = np.linspace(1, 2, 10)
    y = 1 + 0.1 * np.random.default_rng(0).normal(size=10)
    law = get_law("y = E + A * exp(-k * x)", ["x", "y"], bounds={"k": (0, np.inf)})
    problem = Problem(law.form(), law.values(pd.DataFrame({"x": x})), y, "linear", *law.limits(y))
    found = refit(problem, np.array([0.5, 0.5, 1.0]), np.ones((1, 10)), [None] * 3, np.ones(1), 16, [0])
    # A constant fits about as well, so no rate is too fast and none too slow.
    low, high = profile(law, problem, found, np.ones(10), found.cost, "k")
    assert low[0] == 0 and np.isinf(high[0])
    low, high = profile(law, problem, found, np.ones(10), found.cost, "E")
    assert np.isinf(low[0]) and np.isinf(high[0])


def test_large_tables_are_refitted_in_parts(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    times = resample(np.arange(20), np.random.default_rng(0), 9)
    at = np.array([0.16, 2.8, 0.3, 0.2])
    whole = refit(problem, at, times, RANGES, np.ones(1), 8, [0])
    monkeypatch.setattr(searching, "_MEMORY", 20 * 8 * 4)
    parts = refit(problem, at, times, RANGES, np.ones(1), 8, [0])
    np.testing.assert_allclose(parts.cost, whole.cost, rtol=1e-8)
    assert parts.converged.all()
    alone = refit(problem, at, times, RANGES, np.ones(1), 1, [0])
    np.testing.assert_allclose(alone.cost, whole.cost, rtol=1e-8)
