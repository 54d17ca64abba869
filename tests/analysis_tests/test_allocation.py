"""Allocations against closed forms and other optimisers, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from test_derived import POSITIVE, QUICK, runs

from gsq import analysis
from gsq.analysis import AnalysisError, allocate
from gsq.analysis.allocating.constraint import read_constraint
from gsq.analysis.allocating.parabolas import isoflop_slices, parabolas

LAW = "loss = E + A / N^a + B / D^b"


@pytest.fixture(scope="module")
def fit() -> analysis.Fit:
    return analysis.fit(runs(0.004), LAW, bounds=POSITIVE, **QUICK)


def best_size(p: dict[str, float], budget: float) -> float:
    return (p["a"] * p["A"] / (p["b"] * p["B"])) ** (1 / (p["a"] + p["b"])) * (budget / 6) ** (
        p["b"] / (p["a"] + p["b"])
    )


def test_the_best_point_is_that_of_the_closed_form(fit: analysis.Fit) -> None:
    found = allocate(fit, 1e21)
    (point,) = found.points
    size = best_size(fit.parameters, 1e21)
    assert found.constraint.text == "6 * N * D"
    assert point.columns["N"].value == pytest.approx(size, rel=1e-5)
    assert point.columns["D"].value == pytest.approx(1e21 / 6 / size, rel=1e-5)
    assert point.predicted[0] == pytest.approx(fit.predict({"N": size, "D": 1e21 / 6 / size})[0][0], rel=1e-9)


def test_the_intervals_are_those_of_the_closed_form(fit: analysis.Fit) -> None:
    (point,) = allocate(fit, 1e21).points
    exponent, size = fit.derive("b / (a + b)"), fit.derive(f"(log(a*A/(b*B)) + b*{np.log(1e21 / 6)}) / (a + b)")
    for name, sign in (("N", 1), ("D", -1)):
        power = point.exponents[name]
        known = exponent if sign > 0 else fit.derive("a / (a + b)")
        assert power.value == pytest.approx(known.value, abs=1e-6)
        assert power.profile == pytest.approx(known.profile, abs=1e-4)
        assert power.bootstrap == pytest.approx(known.bootstrap, abs=1e-5)
    assert np.log(point.columns["N"].profile) == pytest.approx(size.profile, abs=1e-3)
    assert np.log(point.columns["N"].bootstrap) == pytest.approx(size.bootstrap, abs=1e-5)


def test_three_columns_and_a_cost_with_two_terms_agree_with_scipy() -> None:
    grid = [(n, d, b) for n in np.geomspace(1e6, 1e9, 4) for d in np.geomspace(1e7, 1e10, 4) for b in (2.0, 5, 16)]
    rows = pd.DataFrame(grid, columns=["N", "D", "bits"])
    rows["loss"] = 0.5 + 400 / rows["N"] ** 0.4 + 300 / rows["D"] ** 0.35 + 0.8 / rows["bits"] ** 0.9
    fit = analysis.fit(rows, "loss = E + A / N^a + B / D^b + C / bits^c", bootstrap=0, bounds={"c": (0, 5)}, starts=32)
    p = fit.parameters
    cost, budget = "6 * N * D * bits / 16 + 1e8 * D", 1e18
    (point,) = allocate(fit, budget, cost=cost).points

    def loss(u: np.ndarray) -> float:
        n, bits = np.exp(u)
        d = budget / (6 * n * bits / 16 + 1e8)
        return float(p["E"] + p["A"] / n ** p["a"] + p["B"] / d ** p["b"] + p["C"] / bits ** p["c"])

    known = minimize(loss, [18.0, 2.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 4000})
    assert [point.columns[name].value for name in ("N", "bits")] == pytest.approx(np.exp(known.x), rel=1e-4)
    assert point.predicted[0] == pytest.approx(known.fun, rel=1e-9)
    held = allocate(fit, budget, cost="6 * N * D", at={"bits": 16}).points[0]
    assert list(held.columns) == ["N", "D"]
    assert held.columns["N"].value == pytest.approx(best_size(p, budget), rel=1e-3)
    limited = allocate(fit, budget, cost=cost, within={"bits": (2, 4)}).points[0]
    assert limited.columns["bits"].value == pytest.approx(4) and "limit" in " ".join(limited.warnings)


def test_reach_is_the_budget_whose_best_point_has_the_value(fit: analysis.Fit) -> None:
    value = allocate(fit, 3e19).points[0].predicted[0]
    found = allocate(fit, reach=value)
    assert found.reach is not None and found.reach[1].value == pytest.approx(3e19, rel=1e-4)
    low, high = found.reach[1].profile
    assert low < 3e19 < high < 1e20
    assert found.points[0].predicted[0] == pytest.approx(value, rel=1e-6)


def test_a_curve_has_its_ends_and_band(fit: analysis.Fit) -> None:
    found = allocate(fit, budgets=(1e19, 1e22))
    assert [point.budget for point in found.points] == [1e19, 1e22]
    budgets = np.array([point.budget for point in found.curve])
    assert budgets[0] == pytest.approx(1e19) and budgets[-1] == pytest.approx(1e22)
    sizes = np.array([point.columns["N"].value for point in found.curve])
    assert np.polyfit(np.log(budgets), np.log(sizes), 1)[0] == pytest.approx(fit.derive("b/(a+b)").value, abs=1e-5)
    ends = np.array([point.columns["N"].interval for point in found.curve])
    assert ((ends[:, 0] < sizes) & (sizes < ends[:, 1])).all()


def test_extrapolation_is_warned_of_and_nothing_else(fit: analysis.Fit) -> None:
    assert allocate(fit, 3e19).points[0].warnings == ()
    warnings = " ".join(allocate(fit, 1e23).points[0].warnings)
    assert "budget is 1e+03 times" in warnings and "N is " in warnings and "D is " in warnings


def test_an_allocation_of_one_of_several_outputs_is_that_of_its_own_terms() -> None:
    frame = (
        runs(0.004).rename(columns={"loss": "one"}).assign(two=lambda f: 2 + 900 / f["N"] ** 0.4 + 90 / f["D"] ** 0.3)
    )
    fit = analysis.fit(frame, "E[out] + A[out] / N^a + B[out] / D^b", target=["one", "two"], **QUICK)
    sizes = {}
    for out in ("one", "two"):
        found = allocate(fit, 1e20, at={"out": out})
        p = {name: fit.parameters.get(f"{name}[{out}]", fit.parameters.get(name, 0.0)) for name in "ABab"}
        (point,) = found.points
        sizes[out] = point.columns["N"].value
        assert sizes[out] == pytest.approx(best_size(p, 1e20), rel=1e-5)
        assert found.to_dict()["target"] == out and found.to_dict()["held"] == {"out": out}
        best = {"N": sizes[out], "D": 1e20 / 6 / sizes[out], "out": out}
        assert point.predicted[0] == pytest.approx(fit.predict(best)[0][0], rel=1e-9)
        low, high = point.columns["N"].profile
        assert low < sizes[out] < high
    assert sizes["one"] != pytest.approx(sizes["two"], rel=0.01)
    for at in ({}, {"out": "three"}):
        with pytest.raises(AnalysisError, match="out=one"):
            allocate(fit, 1e20, at=at)


def test_a_law_without_a_best_point_says_so() -> None:
    frame = runs(0.002).assign(loss=lambda f: 30 / f["N"] ** 0.1)
    fit = analysis.fit(frame, "loss = A / N^a * (1 + 0 * D)", **QUICK)
    (point,) = allocate(fit, 1e19, cost="6*N*D").points
    assert any("no best N" in one and "as much" in one for one in point.warnings)
    assert point.exponents == {} and np.isinf(point.columns["N"].interval[1])


def test_parabolas_find_the_vertices_and_their_bias() -> None:
    frame = runs(0.0)
    size, cost = frame["N"].to_numpy(), 6 * (frame["N"] * frame["D"]).to_numpy()
    assert [len(one.rows) for one in isoflop_slices(size, cost)] == [6, 6, 6]
    target = (np.log(size / 3e8) - 0.4 * np.log(cost / 1e19)) ** 2
    found = parabolas("N", size, cost, target, target)
    assert found is not None and found.exponent == pytest.approx(0.4) and found.of_law == pytest.approx(0.4)
    assert len(found.vertices) == len(found.slices) == 3
    # The law's own values have no noise: what parabolas say of them beside the law is bias.
    drifting = frame.assign(N=lambda f: f["N"] * (f["budget"] / 1e19) ** -0.4, D=lambda f: f["budget"] / 6 / f["N"])
    law = (1.7 + 4e5 / drifting["N"] ** 0.7 + 410 / drifting["D"] ** 0.28).to_numpy()
    biased = parabolas("N", drifting["N"].to_numpy(), drifting["budget"].to_numpy(), law, law)
    assert biased is None or abs(biased.of_law - 0.28 / 0.98) > 0.01
    # A column may name the slices, and rows in a long chain are none.
    assert len(isoflop_slices(size, np.ones(18), frame["budget"].to_numpy())) == 3
    assert isoflop_slices(size, np.geomspace(1, 3, 18)) == ()


def test_the_cost_of_gsqs_own_runs_is_taken_from_them(tables, tmp_path: Path) -> None:
    cells = [(4, 16, 1, 64)]
    rows = [
        {**tables.row(cells[0], seed), "parameters": n, "images_seen": m, "train_flops": 500.0 * n * m,
         "rfid": 1 + 400 / n**0.4 + 300 / m**0.35 + 1e-4 * seed}
        for seed, (n, m) in enumerate((n, m) for n in (10**6, 10**7, 10**8) for m in (10**6, 10**7, 10**8))
    ]  # fmt: skip
    path = tmp_path / "own.parquet"
    tables.write(path, rows)
    fit = analysis.fit(analysis.load_results(path), "chinchilla", **QUICK)
    found = read_constraint(fit, None, {}, {}, None)
    assert found.text == "500 * parameters * images_seen" and "train_flops" in found.source
    assert set(found.free) == {"parameters", "images_seen"}


REFUSED = [
    ({"budget": 1e10}, ["1e+10", "cheapest measured cell", "1e+18"]),
    ({"budget": -3.0}, ["-3", "above 0"]),
    ({"budget": 1e19, "reach": 3.0}, ["--budget", "--reach"]),
    ({}, ["--budget", "--reach"]),
    ({"budgets": (1e20, 1e19)}, ["1e+20", "the smaller first"]),
    ({"budget": 1e19, "cost": "6*N*Q"}, ["'Q'", "N, D"]),
    ({"budget": 1e19, "cost": "6*budget"}, ["none of the columns", "N, D", "--cost"]),
    ({"budget": 1e19, "cost": "6*N*D*budget"}, ["budget", "--at budget="]),
    ({"budget": 1e19, "cost": "6*N/D"}, ["does not rise with D"]),
    ({"budget": 1e19, "cost": "6*N"}, ["D is in the law", "--at D="]),
    ({"budget": 1e19, "at": {"width": 3}}, ["'width'", "N, D"]),
    (
        {"budget": 1e19, "within": {"N": (1e6, 1e7), "D": (1e6, 1e7)}},
        ["no value at any point that costs 1e+19", "--within"],
    ),
    ({"budget": 1e19, "within": {"N": (1e7, 1e6)}}, ["--within N", "the smaller first"]),
    ({"budget": 1e19, "at": {"N": 1e8}, "within": {"N": (1e6, 1e7)}}, ["held at 1e+08"]),
    ({"budget": 1e19, "cost": "6*N*D", "at": {"N": 1e8, "D": 1e9}}, ["--at leaves free"]),
    ({"reach": 1.0}, ["no budget brings loss down to 1", "1.7"]),
    ({"reach": 9.0}, ["below the cheapest measured cell"]),
    ({"reach": 1e4}, ["below the cheapest measured cell"]),
    ({"reach": np.nan}, ["--reach", "finite", "nan"]),
    ({"budget": np.inf}, ["a budget is a finite number", "inf"]),
    ({"budget": 1e19, "at": {"N": -3.0}}, ["'6 * N * D'", "not a positive number", "N=-3", "--at"]),
    ({"budget": 1e19, "at": {"N": np.nan}}, ["--at N=nan", "finite"]),
]


@pytest.mark.parametrize(("asked", "words"), REFUSED)
def test_what_no_point_meets_is_one_clear_error(fit: analysis.Fit, asked: dict, words: list[str]) -> None:
    with pytest.raises(AnalysisError) as found:
        allocate(fit, **asked)
    assert all(word in str(found.value) for word in words), found.value


def test_a_law_of_other_columns_asks_for_a_cost() -> None:
    frame = pd.DataFrame({"width": [8.0, 16, 32, 64], "loss": [4.0, 3, 2.3, 1.9]})
    with pytest.raises(AnalysisError, match='--cost "6 \\* width"'):
        allocate(analysis.fit(frame, "loss = A / width^a", **QUICK), 10)


@pytest.fixture
def gsq(fit: analysis.Fit, command):
    """Runs ``gsq ARGS`` in a folder with runs.csv."""
    fit.rows.to_csv("runs.csv", index=False)
    return command


def test_a_saved_fit_and_its_table_give_the_same(gsq) -> None:
    how = ("--law", LAW, "--bound", "E=0:", "--bound", "A=0:", "--bound", "B=0:", "--bootstrap", "50")
    assert gsq("fit", "runs.csv", *how, "--output", "fit.json").exit_code == 0
    documents = []
    for given in (("fit.json",), ("runs.csv", *how)):
        result = gsq("allocate", *given, "--budget", "1e21", "--json")
        assert result.exit_code == 0, result.output
        documents.append(json.loads(result.output))
    assert documents[0] == documents[1]
    (point,) = documents[0]["points"]
    assert set(point["columns"]) == set(point["exponents"]) == {"N", "D"}
    assert point["exponents"]["N"]["profile"]["low"] < point["exponents"]["N"]["value"]
    assert len(documents[0]["parabolas"]) == 2


def test_the_text_and_the_files(gsq) -> None:
    how = ("--law", LAW, "--bootstrap", "30", "--cost", "6*N*D", "--isoflop", "budget")
    result = gsq("allocate", "runs.csv", *how, "--budgets", "1e19:1e21", "--figure", "a.png", "--output", "a.json")
    assert result.exit_code == 0, result.output
    for words in ("cost: 6*N*D", "budget 1e+19", "budget 1e+21", "N ~ budget^0.", "extrapolates", "parabolas", "bias"):
        assert words in result.output
    assert json.loads(Path("a.json").read_text())["curve"]
    assert Path("a.png").stat().st_size > 20_000 and "<svg" in Path("a.svg").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("runs.csv", "--budget", "1e19"), "--law"),
        (("runs.csv", "--law", LAW, "--budgets", "1e19"), "LOW:HIGH"),
        (("runs.csv", "--law", LAW, "--budget", "1e19", "--at", "N"), "--at 'N'"),
        (("runs.csv", "--law", LAW, "--budget", "1e19", "--within", "N"), "--within 'N'"),
        (("none.json", "--budget", "1e19"), "none.json"),
        (("fit.json", "--budget", "1e19", "--bound", "E=0:"), "are fixed"),
    ],
)
def test_what_the_command_line_refuses(gsq, args: tuple[str, ...], words: str) -> None:
    result = gsq("allocate", *args)
    assert isinstance(result.exception, AnalysisError) and words in str(result.exception)
