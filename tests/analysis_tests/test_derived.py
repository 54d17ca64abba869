"""Quantities that follow from a fit's parameters, and fits read back from their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from gsq import analysis
from gsq.analysis import AnalysisError
from gsq.analysis.fitting.derived import parameter_expression
from gsq.analysis.fitting.saved import choose_saved, fit_again, read_saved
from gsq.cli.fit import fit_command

POSITIVE = dict.fromkeys(("E", "A", "B"), (0.0, np.inf))
QUICK = {"bootstrap": 60, "bootstrap_starts": 1, "starts": 16}


def runs(noise: float, seed: int = 0, sizes: int = 6) -> pd.DataFrame:
    """Three isoFLOP slices of 6 N D of 1.7 + 400 / N^0.34 + 410 / D^0.28, each over a factor of 36 around its best."""
    rng, rows = np.random.default_rng(seed), []
    for budget in (1e18, 1e19, 1e20):
        middle = 3e8 * (budget / 1e19) ** 0.45
        rows += [(n, budget / 6 / n, budget) for n in middle * np.geomspace(1 / 6, 6, sizes)]
    frame = pd.DataFrame(rows, columns=["N", "D", "budget"])
    exact = 1.7 + 400 / frame["N"] ** 0.34 + 410 / frame["D"] ** 0.28
    return frame.assign(loss=exact * np.exp(rng.normal(0, noise, len(frame))))


@pytest.fixture(scope="module")
def fit() -> analysis.Fit:
    return analysis.fit(runs(0.004), "loss = E + A / N^a + B / D^b", bounds=POSITIVE, **QUICK)


def test_a_parameter_as_a_quantity_has_the_interval_of_the_parameter(fit: analysis.Fit) -> None:
    for name in fit.parameters:
        found = fit.derive(name)
        assert found.value == pytest.approx(fit.parameters[name])
        assert found.bootstrap == pytest.approx(fit.bootstrap_intervals[name], rel=1e-9)
        for mine, theirs in zip(found.profile, fit.profile_intervals[name], strict=True):
            assert mine == pytest.approx(theirs, rel=2e-3) or np.isinf(theirs)


def test_an_exponent_has_the_interval_of_the_law_that_has_it_as_a_parameter(fit: analysis.Fit) -> None:
    other = analysis.fit(
        fit.rows,
        "loss = E + A / N^a + B / D^(q * a / (1 - q))",
        bounds={**POSITIVE, "q": (0.0, 1.0)},
        start_ranges={"a": (0, 1), "q": (0.2, 0.8)},
        **{**QUICK, "bootstrap": 0},
    )
    found = fit.derive("b / (a + b)")
    assert found.value == pytest.approx(other.parameters["q"], rel=1e-6)
    assert found.profile == pytest.approx(other.profile_intervals["q"], rel=1e-3)
    assert found.interval == found.profile


def test_what_the_parameters_leave_open_may_still_be_known() -> None:
    # Nothing tells A from B; their product and the exponent are known.
    frame = pd.DataFrame({"N": np.geomspace(1e6, 1e9, 12)})
    frame["loss"] = 50 / frame["N"] ** 0.3 * np.exp(np.random.default_rng(1).normal(0, 0.02, 12))
    fit = analysis.fit(frame, "loss = A * B / N^a", start_ranges={"A": (1, 9), "B": (1, 9)}, **QUICK)
    assert {"A", "B"} <= set(fit.undetermined)
    plain = analysis.fit(frame, "loss = A / N^a", **QUICK)
    assert fit.derive("A * B").profile == pytest.approx(plain.profile_intervals["A"], rel=2e-3)
    assert fit.derive("A * B").why_not == ""
    assert np.isinf(fit.derive("A / B").profile).all() and "open" in fit.derive("A / B").why_not
    assert fit.derive("A / B").to_dict()["high"] is None


def test_the_exponent_is_known_where_all_parameters_are_not() -> None:
    fit = analysis.fit(runs(0.02, seed=3, sizes=5), "loss = E + A / N^a + B / D^b", bounds=POSITIVE, **QUICK)
    assert len(fit.undetermined) >= 4
    low, high = fit.derive("b / (a + b)").interval
    assert low < 0.45 < high and high - low < 0.35


def test_other_losses_have_bootstrap_intervals_alone() -> None:
    fit = analysis.fit(runs(0.004), "loss = E + A / N^a + B / D^b", bounds=POSITIVE, loss="huber", **QUICK)
    found = fit.derive("b / (a + b)")
    assert np.isnan(found.profile).all() and np.isfinite(found.bootstrap).all()
    assert found.interval == found.bootstrap


def test_exact_data_leave_an_interval_without_width() -> None:
    fit = analysis.fit(runs(0.0), "loss = E + A / N^a + B / D^b", bounds=POSITIVE, **{**QUICK, "starts": 64})
    found = fit.derive("b / (a + b)")
    assert found.profile == pytest.approx((0.28 / 0.62, 0.28 / 0.62), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("b / (a + Q)", ["'Q'", "E, A, a, B, b"]),
        ("b / (a +", ["cannot be read"]),
        ("x = a", ["without '='"]),
        ("3 + 4", ["no name"]),
        ("frobnicate(a)", ["'frobnicate'", "functions: "]),
        ("log(0 * a)", ["not a finite number"]),
        ("__import__('os')", ["not allowed"]),
    ],
)
def test_what_is_no_quantity_is_one_clear_error(fit: analysis.Fit, text: str, words: list[str]) -> None:
    with pytest.raises(AnalysisError) as found:
        fit.derive(text)
    assert all(word in str(found.value) for word in words), found.value


def test_expressions_work_on_many_parameter_vectors(fit: analysis.Fit) -> None:
    natural = np.array([[1.0, 2, 3, 4, 5], [1, 2, 3, 4, 3]])
    assert parameter_expression("b / (a + b)", fit.law)(natural).tolist() == [5 / 8, 1 / 2]


@pytest.fixture
def saved(fit: analysis.Fit, tmp_path: Path) -> Path:
    fit.rows.to_csv(tmp_path / "runs.csv", index=False)
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({"table": "runs.csv", "fits": [fit.to_dict()]}))
    return path


def assert_alike(one: object, other: object) -> None:
    """Equal, but for the last digits of numbers, in which older libraries differ from call to call."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        assert_alike(dict(enumerate(one)), dict(enumerate(other)))
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-12)
    else:
        assert one == other


def test_a_saved_fit_is_made_again_with_the_same_numbers(fit: analysis.Fit, saved: Path) -> None:
    table, fits = read_saved(saved)
    again = fit_again(choose_saved(saved, fits, None), analysis.load_table(saved.parent / table))
    assert_alike(again.to_dict(), fit.to_dict())
    assert again.law.bounds == fit.law.bounds and again.options == fit.options


def test_a_saved_fit_of_another_table_is_refused(fit: analysis.Fit, saved: Path) -> None:
    one = read_saved(saved)[1][0]
    for frame in (fit.rows.iloc[:-1], fit.rows.assign(loss=fit.rows["loss"] * 1.001 ** np.arange(len(fit.rows)))):
        with pytest.raises(AnalysisError, match=r"\d+ rows .* then, .* now.*: fit it again"):
            fit_again(one, frame)


def test_a_file_that_holds_no_fit_says_so(fit: analysis.Fit, saved: Path) -> None:
    whole = json.loads(saved.read_text())
    older = [{name: value for name, value in whole["fits"][0].items() if name != "options"}]
    for document, words in (
        ("{", "cannot be read"),
        ([], "holds no fit"),
        ({"table": "runs.csv", "fits": []}, "holds no fit"),
        ({"fits": whole["fits"]}, "holds no fit"),
        ({**whole, "fits": older}, "older gsq"),
        ({**whole, "by": "budget"}, "--by budget"),
    ):
        saved.write_text(document if isinstance(document, str) else json.dumps(document))
        with pytest.raises(AnalysisError, match=words):
            read_saved(saved)
    with pytest.raises(AnalysisError, match="cannot be read"):
        read_saved(saved.parent / "none.json")
    with pytest.raises(AnalysisError, match="no fit of 'chinchilla'"):
        choose_saved(saved, whole["fits"], "chinchilla")
    with pytest.raises(AnalysisError, match="2 fits; name one"):
        choose_saved(saved, whole["fits"] * 2, None)


def test_the_command_line_prints_and_saves_what_is_derived(fit: analysis.Fit, tmp_path: Path) -> None:
    fit.rows.to_csv(tmp_path / "runs.csv", index=False)
    app = typer.Typer()
    app.command()(fit_command)
    how = [str(tmp_path / "runs.csv"), "--law", "loss = E + A / N^a + B / D^b", "--bootstrap", "20", "--starts", "16"]

    def gsq(*more: str):  # type: ignore[no-untyped-def]
        return CliRunner().invoke(app, [*how, *more], env={"COLUMNS": "140"})

    printed = gsq("--derive", "b / (a + b)")
    assert printed.exit_code == 0 and "b / (a + b)" in printed.output
    (one,) = json.loads(gsq("--derive", "b / (a + b)", "--json").output)["fits"]
    assert one["derived"]["b / (a + b)"]["low"] < one["derived"]["b / (a + b)"]["value"]
    for more, words in (("--derive=Q", "'Q'"), ("--compare", "--derive needs a fit")):
        result = gsq("--derive", "a", more)
        assert isinstance(result.exception, AnalysisError) and words in str(result.exception)
