from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError


@pytest.fixture
def gsq(tables, command):
    """Runs ``gsq ARGS`` in a folder with results/small.parquet and results/fig4like.parquet."""
    lost = [tables.missing((4, 16, 8, 4096), "failed", "out_of_memory")]
    tables.write(Path("results/small.parquet"), tables.noisy(tables.QUICKSTART) + lost)
    grid = [(8, d, 1, v) for d in (8, 16) for v in (64, 256, 1024)]
    tables.write(Path("results/fig4like.parquet"), tables.noisy(grid))
    return command


def test_fit_takes_a_name_and_says_why_a_law_is_left_out(gsq) -> None:
    result = gsq("fit", "small", "--bootstrap", "50")
    assert result.exit_code == 0, result.output
    assert "power_law_bpp" in result.output and "95% interval" in result.output
    assert "Not fitted: paper_eq14 holds for groups = 1 only, got groups 1, 2, 4" in result.output
    assert "1 of 15 cells has no value: 1 failed (out_of_memory)" in result.output


def test_fit_json_and_output(gsq) -> None:
    result = gsq("fit", "results/fig4like.parquet", "--bootstrap", "20", "--json", "--output", "fits/a.json")
    printed = json.loads(result.output)
    assert [one["law"] for one in printed["fits"]] == ["power_law_bpp", "paper_eq14"]
    assert printed["not_fitted"] == {}
    assert json.loads(Path("fits/a.json").read_text()) == printed


def test_fit_without_a_law_that_fits_is_an_error(gsq) -> None:
    result = gsq("fit", "small", "--law", "paper_eq14")
    assert isinstance(result.exception, AnalysisError) and "groups = 1 only" in str(result.exception)
    assert isinstance(gsq("fit", "small", "--law", "eq14").exception, AnalysisError)


def test_missing_sweep_names_the_others(gsq) -> None:
    error = gsq("fit", "smal").exception
    assert isinstance(error, AnalysisError) and error.exit_code == 2
    assert "results/smal.parquet: " in str(error) and ": fig4like.parquet, small.parquet" in str(error)


def test_plot_saves_beside_the_table_or_where_told(gsq) -> None:
    assert "Saved results/small.png and results/small.svg." in gsq("plot", "small", "--bootstrap", "20").output
    gsq("plot", "small", "--bootstrap", "0", "--output", "figures/one.svg")
    assert Path("figures/one.png").is_file() and Path("figures/one.svg").is_file()


def test_each_kind_of_figure_is_drawn_or_says_what_it_needs(gsq) -> None:
    for kind, words in {
        "contours": ("--law", "multiplicative", "--x", "latent_dim"),
        "usage": ("--reference",),
        "collapse": ("--x", "bits_per_pixel"),
        "pareto": ("--x", "bits_per_token", "--output", "front.pdf"),
    }.items():
        result = gsq("plot", "fig4like", "--kind", kind, "--bootstrap", "0", *words)
        assert result.exit_code == 0, result.exception
        assert ("front.pdf" if kind == "pareto" else f"results/fig4like-{kind}.svg") in result.output
    for words, message in {
        ("--kind", "groups"): "groups takes one value",
        ("--kind", "steps"): "evaluation.every",
        ("--kind", "contours", "--law", "chinchilla"): "none of the 6 cells",
        ("--kind", "pie"): "kinds: scaling, contours, groups, usage, collapse, pareto, tradeoff, steps, card",
        ("--kind", "pareto", "--reference"): "--reference belongs to --kind scaling, groups, usage; got --kind pareto",
        ("--kind", "usage", "--law", "inverse_bpp"): "--law belongs to --kind scaling, contours, groups, card",
        ("--kind", "pareto", "--x", "seconds"): "column 'seconds' is missing",
    }.items():
        error = gsq("plot", "fig4like", "--bootstrap", "0", *words).exception
        assert isinstance(error, AnalysisError) and message in str(error)
    assert not list(Path("results").glob("*groups*")) and not list(Path("results").glob("*steps*"))


def test_plot_needs_no_law(gsq, tables) -> None:
    tables.write(Path("results/two.parquet"), tables.noisy([(4, 16, 1, 64), (4, 16, 1, 256)]))
    result = gsq("plot", "two")
    assert result.exit_code == 0 and "Not fitted: power_law_bpp has 2 parameters (c, alpha)" in result.output


def test_protocol_selects(gsq, tables) -> None:
    cells = [(4, 16, 1, v) for v in (64, 256, 1024)]
    rows = [tables.row(cell, protocol=name) for cell in cells for name in ("aaaa", "bbbb")]
    tables.write(Path("results/mixed.parquet"), rows)
    assert "--protocol" in str(gsq("fit", "mixed").exception)
    result = gsq("fit", "mixed", "--protocol", "aaaa", "--bootstrap", "20", "--json")
    assert json.loads(result.output)["fits"][0]["protocol"] == "aaaa"


@pytest.mark.parametrize("verb", ["fit", "plot"])
def test_help_teaches_by_example(gsq, verb: str) -> None:
    assert f"Example: gsq {verb} quickstart" in gsq(verb, "--help").output


def test_bad_option_value_is_refused(gsq) -> None:
    assert gsq("fit", "small", "--bootstrap", "-1").exit_code == 2


@pytest.fixture
def runs(gsq) -> Path:
    """A table of somebody else's: runs.csv with N, D and loss."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e7, 1e10, 5)))
    noise = np.exp(np.random.default_rng(0).normal(0, 0.005, 25))
    pd.DataFrame({"N": n, "D": d, "loss": noise * (1.7 + 400 / n**0.34 + 410 / d**0.28)}).to_csv(
        "runs.csv", index=False
    )
    return Path("runs.csv")


CHINCHILLA = ("--law", "loss = E + A / N^a + B / D^b", "--bound", "E=0:", "--bound", "A=0:", "--bound", "B=0:")


def test_any_table_any_formula_with_its_report_card(gsq, runs: Path) -> None:
    result = gsq(
        "fit", "runs.csv", *CHINCHILLA, "--bootstrap", "20", "--card", "--figure", "card", "--output", "a.json"
    )
    assert result.exit_code == 0, result.output
    assert "Report card of E + A / N^a + B / D^b" in result.output and "Saved card.png and card.svg" in result.output
    saved = json.loads(Path("a.json").read_text())
    assert saved["fits"][0]["parameters"]["E"]["low"] < 1.7 < saved["fits"][0]["parameters"]["E"]["high"]
    assert saved["cards"][0]["held_out"]["leave_one_out"]["rows"] == 25


def test_comparison_groups_collapse_and_curves(gsq, tables) -> None:
    result = gsq("fit", "small", "--compare", "--law", "power_law_bpp", "--law", "inverse_bpp", "--bootstrap", "0")
    assert result.exit_code == 0 and "aicc" in result.output and "inverse_bpp" in result.output
    result = gsq("fit", "small", "--by", "latent_dim", "--law", "power_law_bpp", "--bootstrap", "0", "--json")
    assert [one["law"] for one in json.loads(result.output)["fits"]] == [
        "power_law_bpp (latent_dim = 8)",
        "power_law_bpp (latent_dim = 16)",
    ]
    result = gsq("fit", "small", "--collapse")
    assert (
        result.exit_code == 0
        and "bits_per_pixel absorbs downsample, groups, codebook_size, latent_dim" in result.output
    )
    rows = [
        tables.row((4, 16, 1, 64), step=100 * s, rfid=50 * (1 + 4 * math.exp(-s / 4)) * 1.01 ** (s % 3))
        for s in range(1, 21)
    ]
    tables.write(Path("results/curve.parquet"), rows)
    result = gsq("fit", "curve", "--extrapolate")
    assert result.exit_code == 0 and "1 curve fitted" in result.output and "10 later values" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--law", "loss = E + A / M^a"), None),
        (("--law", "loss = E + A / Nx^a"), "unknown name 'Nx'; did you mean N"),
        (("--law", "loss = E + sinh(N)"), "function 'sinh' is not allowed"),
        (("--law", "lss = E + A / N^a"), "column 'lss' is missing"),
        ((*CHINCHILLA, "--bound", "Z=0:1"), "'Z'"),
        ((*CHINCHILLA, "--bound", "E"), "--bound 'E' is not NAME=LOW:HIGH, such as E=0:"),
        ((*CHINCHILLA, "--start", "a=0:"), "both ends must be numbers"),
        ((*CHINCHILLA, "--start", "a=nan:1"), "--start 'a=nan:1'"),
        ((*CHINCHILLA, "--start", "a=2:1"), "--start 'a=2:1'"),
        ((*CHINCHILLA, "--weights", "w"), "column 'w' is missing"),
        (("--law", "power_law_bpp", "--target", "loss"), "column 'bits_per_pixel' is missing"),
        (("--collapse", "--target", "loss"), "nothing to absorb"),
        ((), "column 'rfid' is missing"),
    ],
)
def test_one_clear_error_for_each_mistake(gsq, runs: Path, words: tuple[str, ...], message: str | None) -> None:
    error = gsq("fit", "runs.csv", *words, "--bootstrap", "0").exception
    if message is None:  # M is a letter, so it is a parameter, and the law then reads no column
        message = "reads no column"
    assert isinstance(error, AnalysisError) and message in str(error)
    assert not Path("fits").exists()


def test_the_named_laws_are_listed(gsq) -> None:
    result = gsq("fit", "small", "--laws")
    assert result.exit_code == 0 and "chinchilla" in result.output and "saturating" in result.output


def test_columns_with_other_names_are_fitted_in_backticks(gsq) -> None:
    n = np.geomspace(1e6, 1e9, 8)
    table = pd.DataFrame({"N (1e6)": n / 1e6, "val/loss": 2 + 30 * (n / 1e6) ** -0.4, "state": "finished", "w w": 1.0})
    table.to_csv("wb.tsv", sep="\t", index=False)
    words = ("--bootstrap", "0", "--json")
    asked = gsq("fit", "wb.tsv", "--law", "`val/loss` = E + A / `N (1e6)`^a", "--weights", "w w", *words)
    assert asked.exit_code == 0, asked.exception
    (one,) = json.loads(asked.output)["fits"]
    assert one["target"] == "val/loss" and one["parameters"]["a"]["value"] == pytest.approx(0.4, abs=1e-3)
    for target in ("val/loss", "`val/loss`"):
        again = gsq("fit", "wb.tsv", "--law", "E + A / `N (1e6)`^a", "--target", target, *words)
        assert json.loads(again.output)["fits"][0]["parameters"] == one["parameters"]
    shown = gsq("fit", "wb.tsv", "--law", "`val/loss` = E + A / `N (1e6)`^a", "--bootstrap", "0", "--card").output
    assert "`val/loss` = 2 + 30 / `N (1e6)`^0.4" in shown
    for option, fix in (("--by", "val/loss"), ("--weights", "val/loss"), ("--target", "val/loss")):
        law = "`val/loss` = E + A / `N (1e6)`^a"
        error = gsq("fit", "wb.tsv", "--law", law, option, "val_loss", "--bootstrap", "0").exception
        assert isinstance(error, AnalysisError) and "'val_loss'" in str(error) and fix in str(error), option


def test_a_fit_for_each_checkpoint_and_for_each_long_number(gsq, tables) -> None:
    rows = [one | {"step": step} for one in tables.noisy(tables.QUICKSTART) for step in (500, 1000)]
    tables.write(Path("results/two.parquet"), rows)
    found = json.loads(gsq("fit", "two", "--law", "power_law_bpp", "--by", "step", "--bootstrap", "0", "--json").output)
    assert [(one["law"], one["n_rows"]) for one in found["fits"]] == [
        ("power_law_bpp (step = 500)", 14),
        ("power_law_bpp (step = 1000)", 14),
    ]
    table = pd.DataFrame({"N": [1.0, 2, 4, 8] * 2, "id": [1234567] * 4 + [1234568] * 4, "loss": 3.0})
    table["loss"] = 5 / table["N"] ** 0.5 + 0.01 * table.index
    table.to_csv("ids.csv", index=False)
    found = json.loads(
        gsq("fit", "ids.csv", "--law", "loss = A / N^a", "--by", "id", "--bootstrap", "0", "--json").output
    )
    assert len({*(one["law"] for one in found["fits"]), *found["not_fitted"]}) == 2, "none lost to a rounded name"


def test_comparison_keeps_laws_of_steps_apart(gsq, tables) -> None:
    rows = [
        one | {"step": step, "rfid": one["rfid"] * (1 + 60 / step)}
        for one in tables.noisy(tables.QUICKSTART, noise=0.01)
        for step in (100, 200, 400, 800)
    ]
    tables.write(Path("results/steps.parquet"), rows)
    found = json.loads(gsq("fit", "steps", "--compare", "--bootstrap", "0", "--json").output)
    of_rate, of_steps = found["comparison"], found["comparison_of_steps"]
    assert {one["n_rows"] for one in of_rate["laws"]} == {14} and {one["n_rows"] for one in of_steps["laws"]} == {56}
    assert {one["law"] for one in of_steps["laws"]} == {"step_power", "step_approach"}
    error = gsq("fit", "steps", "--compare", "--law", "power_law_bpp", "--law", "step_power").exception
    assert isinstance(error, AnalysisError) and "14 in all" in str(error) and "56 in all" in str(error)


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "small", "--output"),
        ("fit", "small", "--figure"),
        ("plot", "small", "--output"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_error_before_the_work(gsq, words: tuple[str, ...]) -> None:
    Path("folder").mkdir()
    Path("file").write_text("mine")
    before = sorted(Path().rglob("*"))
    for place in ("folder", "file/below.json", f"{'x' * 300}.json"):
        error = gsq(*words, place).exception
        assert isinstance(error, AnalysisError) and str(error).startswith(f"{words[-1]}: {place[:20]}"), (place, error)
    assert sorted(Path().rglob("*")) == before and Path("file").read_text() == "mine"


def test_a_negative_seed_and_a_sweep_file_are_understood(gsq) -> None:
    for verb in ("fit", "plot"):
        result = gsq(verb, "small", "--seed", "-1")
        assert result.exit_code == 2 and "--seed" in result.output
    Path("mine.yaml").write_text("name: small\nbase: cpu-tiny\n")
    assert gsq("fit", "mine.yaml", "--bootstrap", "0", "--law", "power_law_bpp").exit_code == 0
