from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from analysis import AnalysisError
from analysis.cli import register


@pytest.fixture
def gsq(tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs ``gsq ARGS`` in a folder with results/small.parquet and results/fig4like.parquet."""
    monkeypatch.chdir(tmp_path)
    lost = [tables.missing((4, 16, 8, 4096), "failed", "out_of_memory")]
    tables.write(Path("results/small.parquet"), tables.noisy(tables.QUICKSTART) + lost)
    grid = [(8, d, 1, v) for d in (8, 16) for v in (64, 256, 1024)]
    tables.write(Path("results/fig4like.parquet"), tables.noisy(grid))
    app = typer.Typer()
    register(app)
    return lambda *args: CliRunner().invoke(app, list(args), env={"COLUMNS": "140"})


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
    assert "results/smal.parquet: no such results table; tables there: fig4like.parquet, small.parquet" in str(error)


def test_plot_saves_beside_the_table_or_where_told(gsq) -> None:
    assert "Saved results/small.png and results/small.svg." in gsq("plot", "small", "--bootstrap", "20").output
    gsq("plot", "small", "--bootstrap", "0", "--output", "figures/one.svg")
    assert Path("figures/one.png").is_file() and Path("figures/one.svg").is_file()


def test_plot_needs_no_law(gsq, tables) -> None:
    tables.write(Path("results/two.parquet"), tables.noisy([(4, 16, 1, 64), (4, 16, 1, 256)]))
    result = gsq("plot", "two")
    assert result.exit_code == 0 and "Not fitted: power_law_bpp needs at least 3 distinct" in result.output


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
