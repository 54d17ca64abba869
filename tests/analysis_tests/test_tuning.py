"""The next values of a tuned column: at open ends of its grids first, then where the optimum is known worst."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from test_optimum import BY, RATES, best_rate, study
from typer.testing import CliRunner

from gsq.analysis import AnalysisError, next_values, optimum
from gsq.cli.main import app
from gsq.errors import UserError
from gsq.sweeps import load_spec, plan


def partly_open(noise: float = 0.03) -> pd.DataFrame:
    """At width 32 and batch 4 the grid ends below the optimum; at width 8 and batch 8 it is half as dense."""
    rows = study(noise, seed=3)
    cut = rows.query("width == 32 and batch_size == 4 and learning_rate > 6e-4")
    eighth = rows.query("width == 8 and batch_size == 8")
    thin = eighth[~eighth["learning_rate"].isin(RATES[[0, 2, 4]])]
    return rows.drop(index=cut.index.union(thin.index)[:]).pipe(
        lambda kept: pd.concat([kept, study(noise, 4, RATES[:3] / 2).query("width == 32 and batch_size == 4")])
    )


def test_open_ends_come_first_and_lie_beyond_the_grid() -> None:
    found = optimum(partly_open(), by=BY, target="loss")
    (unknown,) = [one for one in found.sizes if one.reason]
    proposed = next_values(found)
    first, second = proposed.runs
    assert first.size == unknown.size == {"width": 32, "batch_size": 4}
    assert first.value == pytest.approx(unknown.further, rel=5e-3) and first.value > max(unknown.values)
    assert first.reason == unknown.reason
    assert second.size == {"width": 8, "batch_size": 8}
    errors = {one.name: one.log_error for one in found.sizes if not one.reason}
    assert second.error == pytest.approx(max(errors.values()), rel=1e-6)
    assert second.expected_error < second.error


def test_what_is_expected_comes_true() -> None:
    found = optimum(study(0.05), by=BY, target="loss")
    (run,) = next_values(found).runs
    here = next(one for one in found.sizes if one.size == run.size)
    assert here.value / 2.2 < run.value < here.value * 2.2
    # The row lies on the quadratic itself, so that neither the fit nor its scatter moves much.
    height = float(np.exp(np.polyval(here.curve, np.log(run.value))))
    row = pd.DataFrame([{**run.size, "learning_rate": run.value, "loss": height}])
    after = optimum(pd.concat([study(0.05), row]), by=BY, target="loss")
    again = next(one for one in after.sizes if one.size == run.size)
    assert again.log_error / after.scatter == pytest.approx(run.expected_error / found.scatter, rel=1e-3)


def test_further_runs_go_where_they_help_most_then() -> None:
    found = optimum(study(0.05), by=BY, target="loss")
    many = next_values(found, 12)
    assert len(many.runs) == 12
    errors = [one.error for one in many.runs]
    assert errors == sorted(errors, reverse=True)
    assert len({tuple(one.size.items()) for one in many.runs}) > 1
    configs = [(*one.size.values(), one.value) for one in many.runs]
    assert len(set(configs)) == 12 and not {value for *_, value in configs} & {*RATES}
    assert len(next_values(found, 1).runs) == 1


def test_following_the_proposals_finds_an_optimum_outside_the_grid() -> None:
    rows = study(0.01, rates=RATES[:3] / 4).query("width == 16 and batch_size == 8")
    for turn in range(12):
        found = optimum(rows, target="loss")
        if not found.sizes[0].reason:
            break
        (run,) = next_values(found).runs
        loss = float(np.exp(1 + 0.15 * np.log(run.value / best_rate(16, 8)) ** 2))
        rows = pd.concat([rows, pd.DataFrame([{"learning_rate": run.value, "loss": loss}])])
        assert turn < 11
    assert found.sizes[0].value == pytest.approx(best_rate(16, 8), rel=0.2)


@pytest.mark.parametrize(("sign", "above"), [(1, False), (-1, True)])
def test_too_few_values_go_on_towards_the_better_one(sign: int, above: bool) -> None:
    rows = pd.DataFrame({"learning_rate": [1e-3, 3e-3], "loss": [2.0, 2.0 + 0.5 * sign], "psnr_db": [20.0, 20 - sign]})
    for target in ("loss", "psnr_db"):
        (run,) = next_values(optimum(rows, target=target)).runs
        assert run.value == pytest.approx(9e-3 if above else 1e-3 / 3, rel=5e-3)
        assert "three" in run.reason


def test_without_a_scatter_a_fourth_value_is_proposed() -> None:
    found = optimum(study(0.02, rates=RATES[[0, 3, 5]]), by=BY, target="loss")
    (run,) = next_values(found).runs
    assert "no scatter" in run.reason and run.to_dict()["expected_error"] is None
    with pytest.raises(AnalysisError, match="runs must be at least 1"):
        next_values(found, 0)


def test_warnings_of_the_optima_are_said() -> None:
    proposed = next_values(optimum(study(0.05), by=["width"], target="loss"), 3)
    assert any("batch_size" in one for one in proposed.warnings) and "batch_size" in proposed.text()


# The command

WORDS = ["--optimum", "learning_rate", "--target", "loss", "--by", "width", "batch_size"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    partly_open().to_csv("rates.csv", index=False)
    return tmp_path


def test_the_command_says_why_and_writes_a_sweep(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["design", "rates.csv", *WORDS, "--budget", "3", "--base", "cpu-tiny", "--json"])
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.stdout)
    assert (document["column"], len(document["runs"])) == ("learning_rate", 3)
    assert "not bracketed" in document["runs"][0]["reason"]
    written = ["design", "rates.csv", *WORDS, "--budget", "3", "--base", "cpu-tiny", "--output", "more.yaml"]
    assert CliRunner().invoke(app, written).exit_code == 0
    assert yaml.safe_load(Path("more.yaml").read_text())["cases"][0] == {
        "width": 32,
        "batch_size": 4,
        "learning_rate": document["runs"][0]["value"],
    }
    configs = [cell.config for cell in plan(load_spec("more.yaml")).cells]
    assert [one.optimizer.learning_rate for one in configs] == [one["value"] for one in document["runs"]]
    assert CliRunner().invoke(app, ["design", "rates.csv", *WORDS, "--output", "more.csv"]).exit_code == 0
    assert list(pd.read_csv("more.csv")) == ["width", "batch_size", "learning_rate"]


def test_of_a_sweep_the_runs_have_its_config(folder: Path) -> None:
    sweep = {"name": "rates", "base": "cpu-tiny", "set": {"steps": 40}, "axes": {"width": [8, 16, 32]}}
    Path("rates.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "results").mkdir()
    partly_open().to_parquet(folder / "results" / "rates.parquet")
    done = CliRunner().invoke(app, ["design", "rates.yaml", *WORDS, "--output", "more.yaml"])
    assert done.exit_code == 0, done.output
    assert {cell.config.train.steps for cell in plan(load_spec("more.yaml")).cells} == {40}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--law", "chinchilla"], ("--law", "--optimum")),
        (["--candidates", "rates.csv", "--seeds", "5"], ("--candidates", "--seeds")),
        (["--budget", "1.5"], ("--budget", "whole", "1.5")),
        (["--budget", "1", "--budget", "2"], ("--budget", "one")),
        (["--output", "more.yaml"], ("--base",)),
        (["--output", "more.txt"], (".yaml", ".csv")),
    ],
)
def test_mistakes_are_one_error(folder: Path, more: list[str], words: tuple[str, ...]) -> None:
    error = CliRunner().invoke(app, ["design", "rates.csv", *WORDS, *more]).exception
    assert isinstance(error, AnalysisError | UserError)
    assert [word for word in words if word not in str(error)] == [], error
    assert not Path("more.yaml").exists()


def test_sizes_without_an_optimum_and_cells_without_a_budget(folder: Path) -> None:
    for words, name in ((["--by", "width"], "--optimum"), ([], "--budget")):
        error = CliRunner().invoke(app, ["design", "rates.csv", "--target", "noise", *words]).exception
        assert isinstance(error, UserError) and name in str(error)
