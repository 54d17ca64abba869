"""The search: starts by value, screening, polish, robust losses, large tables, and the functions of formulas."""

import importlib.util
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import fit
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting import progress
from gsq.analysis.fitting.intervals import profile, profiles
from gsq.analysis.fitting.solver import Solution, gradients, rho, solve
from gsq.analysis.laws.formula import read_formula
from gsq.analysis.laws.named import get_law
from gsq.analysis.tables.selecting import select

CHINCHILLA = "loss = E + A / N^a + B / D^b"
# NIST's Misra1a, of 14 rows, and MGH10, of 16: certified values and the far start of the second.
MISRA_X = [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0]
MISRA_Y = [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]
MGH10_Y = [
    34780.0, 28610.0, 23650.0, 19630.0, 16370.0, 13720.0, 11540.0, 9744.0, 8261.0, 7030.0, 6005.0, 5147.0, 4427.0,
    3820.0, 3307.0, 2872.0,
]  # fmt: skip


def budgets(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    sizes, tokens = (np.exp(rng.uniform(*np.log(ends), rows)) for ends in ((4e7, 1.6e10), (3e8, 4e11)))
    exact = 1.82 + 480 / sizes**0.347 + 2090 / tokens**0.366
    return pd.DataFrame({"N": sizes, "D": tokens, "loss": exact * np.exp(0.01 * rng.standard_t(3, rows))})


@pytest.mark.parametrize("start", [{"b1": 500.0, "b2": 0.0001}, {"b1": 250.0, "b2": 0.0005}, {}])
def test_a_certified_regression_is_solved_to_six_digits(start: dict[str, float]) -> None:
    table = pd.DataFrame({"x": MISRA_X, "y": MISRA_Y})
    ranges = {name: (value, value) for name, value in start.items()}
    law = "y = b1 * (1 - exp(-b2 * x))"
    found = fit(table, law, residuals="linear", intervals="none", start_ranges=ranges)
    assert found.parameters == pytest.approx({"b1": 238.94212918, "b2": 5.5015643181e-4}, rel=1e-6)
    assert found.cost == pytest.approx(0.12455138894, rel=1e-9)


def test_a_far_start_by_value_leads_to_the_certified_minimum() -> None:
    table = pd.DataFrame({"x": np.arange(50.0, 126, 5), "y": MGH10_Y})
    start = {name: (value, value) for name, value in {"b1": 0.02, "b2": 4000.0, "b3": 250.0}.items()}
    found = fit(table, "y = b1 * exp(b2 / (x + b3))", residuals="linear", intervals="none", start_ranges=start)
    truth = {"b1": 5.6096364710e-3, "b2": 6181.3463463, "b3": 345.22363462}
    assert found.parameters == pytest.approx(truth, rel=1e-6)


def test_of_equal_widths_the_positive_one_is_given() -> None:
    x = np.linspace(0, 20, 40)
    table = pd.DataFrame({"x": x, "y": 2 + 6 * np.exp(-0.5 * ((x - 8) / 1.5) ** 2)})
    found = fit(table, "y = E + A * exp(-0.5 * ((x - m) / s)^2)", residuals="linear", intervals="none")
    assert found.parameters["s"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("law", "exact"),
    [
        ("y = A * tanh(k * x)", lambda x: 2 * np.tanh(0.7 * x)),
        ("y = E + A * sin(k * x) + B * cos(k * x)", lambda x: 3 + np.sin(1.3 * x) + 0.5 * np.cos(1.3 * x)),
        ("y = A * arctan(x / s)", lambda x: 4 * np.arctan(x / 2)),
        ("y = A * softplus(k * (x - m))", lambda x: 2 * np.logaddexp(0, 1.5 * (x - 4))),
        ("y = logaddexp(a + b * x, c)", lambda x: np.logaddexp(1 + 0.8 * x, 3)),
    ],
)
def test_functions_of_a_formula_are_fitted(law: str, exact: object) -> None:
    x = np.linspace(0.1, 10, 60)
    table = pd.DataFrame({"x": x, "y": exact(x)})  # type: ignore[operator]
    found = fit(table, law, residuals="linear", intervals="none", start_ranges={"k": (0.2, 3)} if "k" in law else None)
    assert found.rmse < 1e-6


@pytest.mark.parametrize("function", ["tanh", "sin", "cos", "arctan", "softplus", "logaddexp"])
def test_functions_and_their_derivatives_agree(function: str) -> None:
    call = f"{function}(a * x, b)" if function == "logaddexp" else f"b * {function}(a * x)"
    law = get_law(f"y = {call} + {function}({'x, ' if function == 'logaddexp' else ''}x)", ["x", "y"])
    data = law.values(pd.DataFrame({"x": np.linspace(-3, 3, 7)}))
    form, at = law.form(law.parameters), np.array([[0.7, 1.2]])
    centre = form.centre(data)
    _, slope = form.both(at, data, centre)
    for i in range(2):
        step = np.eye(2)[i] * 1e-6
        up, down = (form.both(at + sign * step, data, centre)[0] for sign in (1, -1))
        np.testing.assert_allclose(slope[i], (up - down) / 2e-6, atol=1e-7)


def test_huber_reaches_the_minimum_in_few_steps() -> None:
    found = fit(budgets(240), CHINCHILLA, loss="huber", intervals="none", bounds={"E": (0.0, np.inf)})
    heavy = np.random.default_rng(1).multinomial(240, np.full(240, 1 / 240), 20).astype(float)
    start = np.tile(found.theta, (20, 1))
    few, many = solve(found.problem, start, heavy, steps=60), solve(found.problem, start, heavy, steps=4000)
    assert few.converged.mean() > 0.9
    np.testing.assert_allclose(few.cost, many.cost, rtol=1e-6)


def test_240_rows_with_huber_and_1000_resamples_take_seconds() -> None:
    begun = time.process_time()
    found = fit(budgets(240), CHINCHILLA, loss="huber", bounds={"E": (0.0, np.inf)})
    assert time.process_time() - begun < 10  # 0.9 s on an idle core
    assert found.bootstrap_failed == 0
    assert found.intervals["a"][0] < 0.347 < found.intervals["a"][1]


def test_large_tables_are_fitted_in_seconds_and_little_memory() -> None:
    table = budgets(60_000)
    begun = time.process_time()
    found = fit(table, CHINCHILLA, bounds={"E": (0.0, np.inf)})
    assert time.process_time() - begun < 40  # 4 s on an idle core
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2_000_000  # KiB, of all tests so far
    assert found.problem.target.shape == (60_000,)
    for name, truth in {"E": 1.82, "a": 0.347, "b": 0.366}.items():
        low, high = found.profile_intervals[name]
        assert low < truth < high
        # Resamples of one step each say the same as the profiles.
        np.testing.assert_allclose(found.bootstrap_intervals[name], (low, high), atol=0.35 * (high - low))


def test_the_gradient_of_each_row_vanishes_in_sum_at_the_minimum() -> None:
    found = fit(budgets(100), CHINCHILLA, intervals="none")
    first = gradients(found.problem, found.theta, found.weights)[:5]
    assert np.all(np.abs(first.sum(axis=1)) <= 1e-5 * np.abs(first).sum(axis=1))
    assert rho(found.errors(), "least_squares", 1.0)[0].sum() == pytest.approx(found.cost)


def test_profiles_together_are_those_of_each_parameter() -> None:
    found = fit(budgets(60), CHINCHILLA, bootstrap=0)
    law, one = found.law, Solution(found.theta[None], np.array([found.cost]), np.array([True]))
    room = np.array([found.room])
    together = profiles(law, found.problem, one, found.weights, room, law.parameters)
    for name in law.parameters:
        low, high = profile(law, found.problem, one, found.weights, room, name)
        assert together[name] == pytest.approx((low[0], high[0]), rel=1e-6)


def test_without_intervals_there_are_none_and_no_resamples() -> None:
    found = fit(budgets(30), CHINCHILLA, intervals="none")
    assert np.isnan(list(found.intervals.values())).all()
    assert found.bootstrap_requested == 0
    assert found.to_dict()["intervals"] == "none"
    assert np.isnan(found.predict({"N": 1e9, "D": 1e10})[1]).all()


def test_rows_are_selected_by_a_condition() -> None:
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0], "outlier": [False, True, False], "kind": ["a", "b", "b"]})
    assert select(table, "outlier == False")["x"].tolist() == [1, 3]
    assert select(table, "kind in ['b'] and x > 2")["x"].tolist() == [3]
    assert select(table, None) is table
    for text, message in {
        "outlir == False": "did you mean outlier",
        "outlier = False": "is not a condition",
        "x >": "cannot be read",
        "x > 9": "leaves none of 3 rows",
        "x + 1": "is not a condition",
    }.items():
        with pytest.raises(AnalysisError, match=message):
            select(table, text)


def test_the_published_laws_are_formulas_with_a_box_for_each_parameter() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "scalebench_laws.py"
    spec = importlib.util.spec_from_file_location("scalebench_laws", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scalebench_laws"] = module
    spec.loader.exec_module(module)
    laws = [(task, law) for task, found in module.LAWS.items() for law in found]
    assert len(laws) == 65
    columns = {
        "lr_bsz": tuple("uvspUVSP"),
        "domain_mixture": ("x", "q", *(f"{letter}{i}" for letter in "xyqo" for i in range(1, 6))),
    }
    for task, law in laws:
        read = read_formula(law.formula, columns.get(task, tuple(module.COLUMNS[task])), law.box)
        assert set(read.parameters) == set(law.box), law.formula
        assert all(low < high for low, high in law.box.values())


def test_a_published_law_of_repeated_data_is_found_in_its_box() -> None:
    rng = np.random.default_rng(0)
    sizes, tokens = (np.exp(rng.uniform(*np.log(ends), 80)) for ends in ((1e7, 4e9), (1e9, 3e11)))
    unique = tokens / np.exp(rng.uniform(0, 4, 80))
    exact = 2.5 + 4e3 * sizes**-0.55 + 1.2e4 * (tokens / (1 + tokens / (20 * unique))) ** -0.44
    table = pd.DataFrame({"U": unique, "N": sizes, "D": tokens, "y": exact})
    box = {"L": (-3, 8), "A": (1e-3, 1e11), "a": (0.05, 2.5), "B": (1e-3, 1e9), "b": (0.05, 2.5), "s": (1e-5, 1e7)}
    law = "y = L + A*N^(-a) + B*(D/(1 + D/(s*U)))^(-b)"
    found = fit(table, law, residuals="linear", intervals="none", bounds=box)
    assert found.parameters["s"] == pytest.approx(20, rel=1e-3)
    assert found.parameters["b"] == pytest.approx(0.44, rel=1e-4)


def test_a_search_goes_on_where_slopes_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    bits, size = rng.uniform(2, 16, 30), rng.integers(1, 9, 30).astype(float)
    y = 3 + 2 * np.maximum(bits - 1.3 * size, 0) - 1.5 * np.maximum(bits - 2.1 * size, -1)
    frame = pd.DataFrame({"bits": bits, "size": size, "y": y + 0.3 * rng.standard_normal(30)})
    law = "y = E + A * max(bits - k * size, 0) + B * max(bits - l * size, m)"
    ranges = {"k": (0.2, 4.0), "l": (0.2, 4.0), "m": (-3.0, 3.0)}

    def costs() -> np.ndarray:
        words = {"residuals": "linear", "bootstrap": 0, "intervals": "none", "start_ranges": ranges}
        return np.array([fit(frame, law, starts=4, seed=seed, **words).cost for seed in range(8)])  # type: ignore[arg-type]

    past = costs()
    monkeypatch.setattr("gsq.analysis.fitting.searching._pass_kinks", lambda *_: None)
    before = costs()
    assert (past <= before * (1 + 1e-12)).all() and (past < before * (1 - 1e-6)).any()


def test_a_search_with_many_confounded_parameters_in_a_box_ends_where_one_from_the_truth_does() -> None:
    """Two exponentials of quadratic forms, whose parameters are nearly confounded, and some of them at their bounds."""
    u, p = (one.ravel() for one in np.meshgrid(np.linspace(-8, -4, 9), np.linspace(18, 21, 9)))
    y = 1 + np.exp(1 + 0.2 * u - 0.1 * p + 0.02 * u * u) + np.exp(-3 - 0.3 * u + 0.01 * p * u)
    table = pd.DataFrame({"u": u, "p": p, "y": y + 0.01 * np.random.default_rng(1).normal(size=len(u))})
    parts = " + ".join(f"exp({c}0 + {c}1*u + {c}2*p + {c}3*u^2 + {c}4*p^2 + {c}5*(u*p))" for c in "ab")
    box = {f"{c}{i}": ((-15, 15), (-0.35, 0.35), (-0.03, 0.03))[(i > 0) + (i > 2)] for c in "ab" for i in range(6)}
    options = {"residuals": "linear", "bootstrap": 0, "intervals": "none", "bounds": {"E": (0, 2.5), **box}}
    found = fit(table, f"y = E + {parts}", starts=16, **options)
    truth = {"E": 1, "a0": 1, "a1": 0.2, "a2": -0.1, "a3": 0.02, "b0": -3, "b1": -0.3, "b5": 0.01}
    first = {name: (truth.get(name, 0.0),) * 2 for name in found.parameters}
    known = fit(table, f"y = E + {parts}", starts=1, start_ranges=first, **options)
    assert found.converged and found.cost <= known.cost * (1 + 1e-9)


def test_a_fit_tells_whoever_listens_what_it_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: dict[str, list[int]] = {}

    class Counted:
        def __init__(self, what: str, total: int) -> None:
            self.counts = stages.setdefault(what, [total, 0])

        def __enter__(self) -> "Counted":
            return self

        def __exit__(self, *_: object) -> None: ...

        def advance(self, count: int) -> None:
            self.counts[1] += count

    monkeypatch.setattr(progress, "_show", [Counted])
    fit(budgets(40), CHINCHILLA, bootstrap=100)
    (resamples,) = [counts for what, counts in stages.items() if "100 resamples" in what]
    assert resamples[0] == resamples[1] >= 100 and stages["profile intervals"] == [5, 5]
    monkeypatch.setattr(progress, "_show", [])
    before = dict(stages)
    fit(budgets(40), CHINCHILLA, bootstrap=100)
    assert stages == before
