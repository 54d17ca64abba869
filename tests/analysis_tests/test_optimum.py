"""Optima of a tuned column at each size, and their law."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from gsq.analysis import AnalysisError, optimum, optimum_figure
from gsq.cli.main import app

BY = ("width", "batch_size")
RATES = np.geomspace(2e-4, 8e-3, 6)


def best_rate(width: float, batch: float) -> float:
    return 2e-3 * (width / 16) ** -0.5 * (batch / 8) ** 0.4


def study(noise: float = 0.0, seed: int = 0, rates: object = RATES) -> pd.DataFrame:
    """Losses with a known optimum at three widths and two batches."""
    random = np.random.default_rng(seed)
    rows = [
        {
            "width": width,
            "batch_size": batch,
            "learning_rate": rate,
            "loss": np.exp(1 + 0.15 * np.log(rate / best_rate(width, batch)) ** 2 + random.normal(0, noise)),
        }
        for width in (8, 16, 32)
        for batch in (4, 8)
        for rate in np.asarray(rates)
    ]
    return pd.DataFrame(rows)


def test_known_optima_and_their_law_come_back() -> None:
    found = optimum(study(1e-6), by=BY, target="loss")
    assert len(found.sizes) == 6
    for one in found.sizes:
        assert one.value == pytest.approx(best_rate(*map(float, one.size.values())), rel=1e-4)  # type: ignore[arg-type]
        assert one.best == pytest.approx(np.e, rel=1e-4)
        assert not one.reason
    assert found.law is not None
    assert found.law.parameters == pytest.approx({"c": 2e-3 * 4 / 8**0.4, "a": -0.5, "b": 0.4}, rel=1e-3)
    assert found.law.law.target == "learning_rate"
    assert not any("learning_rate" in warning for warning in found.law.warnings)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    inside, of_law = [], []
    for seed in range(60):
        found = optimum(study(0.1, seed), by=BY, target="loss")
        truth = [best_rate(*map(float, one.size.values())) for one in found.sizes]  # type: ignore[arg-type]
        inside += [one.interval[0] <= best <= one.interval[1] for one, best in zip(found.sizes, truth, strict=True)]
        if found.law is not None:
            of_law.append(found.law.intervals["a"][0] <= -0.5 <= found.law.intervals["a"][1])
    assert 0.90 <= np.mean(inside) <= 0.99
    assert np.mean(of_law) >= 0.80


@pytest.mark.parametrize(("rates", "word", "end"), [(RATES[:3] / 2, "largest", 1), (RATES[3:] * 2.5, "least", 0)])
def test_a_grid_that_ends_before_the_optimum_leaves_it_open(rates: object, word: str, end: int) -> None:
    found = optimum(study(0.01, rates=rates), by=BY, target="loss")
    for one in found.sizes:
        assert word in one.reason
        assert np.isnan(one.value)
        assert one.interval[end] == (np.inf if end else 0)
        # Nor does the other end lie where nothing was tried.
        assert one.interval[1 - end] == pytest.approx(max(one.values) if end else min(one.values))
        assert one.further > max(one.values) if end else one.further < min(one.values)
        assert one.to_dict()["optimum"] is None
    assert found.law is None
    assert "0 of 6" in found.no_law
    assert word in found.text()


def test_a_quadratic_that_misses_the_best_runs_is_said_to() -> None:
    """Far rates that diverge lift one side so much that the quadratic leaves the least of the others behind."""
    losses = [430.0, 380.0, 480.0, 640.0, 650.0, 660.0]
    rows = pd.DataFrame({"learning_rate": np.geomspace(1e-4, 3e-2, 6), "loss": losses})
    (one,) = optimum(rows, target="loss").sizes
    (large,) = optimum(rows.assign(psnr_db=1 / rows["loss"]), target="psnr_db").sizes
    rates = rows["learning_rate"].to_numpy()
    for found in (one, large):
        assert np.isnan(found.value) and f"{rates[1]:.4g}" in found.reason and "--where" in found.reason
        assert rates[0] < found.further < rates[1]
    (near,) = optimum(rows[:4], target="loss").sizes
    assert not near.reason and rates[0] < near.value < rates[2]


def test_a_maximum_within_the_grid_is_no_optimum() -> None:
    frame = study(0.01).assign(loss=lambda rows: 9 / rows["loss"])
    for one in optimum(frame, by=BY, target="loss").sizes:
        assert one.reason
        assert one.interval == (0, np.inf)


def test_without_a_scatter_there_is_no_interval_unless_noise_is_named() -> None:
    frame = study(0.02, rates=RATES[[0, 3, 5]])
    assert all(np.isnan(one.interval).all() for one in optimum(frame, by=BY, target="loss").sizes)
    from gsq.analysis import Options

    named = optimum(frame, by=BY, target="loss", options=Options(noise=0.02))
    assert all(one.interval[0] < one.value < one.interval[1] for one in named.sizes)


def test_of_a_target_that_should_be_large_the_largest_counts() -> None:
    frame = study(1e-6).assign(psnr_db=lambda rows: 30 / rows["loss"])
    found = optimum(frame, by=BY, target="psnr_db")
    assert [one.value for one in found.sizes] == pytest.approx(
        [best_rate(w, b) for w in (8, 16, 32) for b in (4, 8)], rel=1e-3
    )
    assert found.sizes[0].best == pytest.approx(30 / np.e, rel=1e-4)


def test_columns_that_do_not_vary_or_move_together_have_no_exponent() -> None:
    one_batch = optimum(study(0.01).query("batch_size == 8"), by=BY, target="loss")
    assert one_batch.law is not None
    assert list(one_batch.law.parameters) == ["c", "a"]
    together = study(0.01).query("width == 8 and batch_size == 4 or width == 32 and batch_size == 8")
    assert optimum(together, by=BY, target="loss").law is None
    mixed = optimum(study(0.01), by=["width"], target="loss")
    assert any("batch_size" in warning for warning in mixed.warnings)


@pytest.mark.parametrize(
    ("change", "by", "words"),
    [
        ({"width": 8}, ["width"], ("two sizes", "width", "--by")),
        ({}, ["widht"], ("widht", "width")),
        ({"learning_rate": 0.0}, ["width"], ("learning_rate", "above 0")),
        ({"loss": -1.0}, ["width"], ("loss", "linear")),
        ({}, ["learning_rate"], ("learning_rate", "twice")),
    ],
)
def test_mistakes_are_one_error(change: dict[str, float], by: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(AnalysisError) as caught:
        optimum(study().assign(**change), by=by, target="loss")
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_the_command_prints_draws_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study(0.05).to_csv("rates.csv", index=False)
    words = ["fit", "rates.csv", "--optimum", "learning_rate", "--target", "loss", "--by", "width", "batch_size"]
    shown = CliRunner().invoke(app, [*words, "--figure", "rates.png", "--output", "rates.json"])
    assert shown.exit_code == 0, shown.output
    assert "width = 8, batch_size = 4" in shown.output
    assert Path("rates.png").stat().st_size > 10_000
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert document == json.loads(Path("rates.json").read_text())
    assert document["optimum"]["by"] == [*BY]
    assert document["optimum"]["law"]["parameters"].keys() == {"c", "a", "b"}
    for more in (["--law", "chinchilla"], ["--card"]):
        assert isinstance(CliRunner().invoke(app, [*words, *more]).exception, AnalysisError)
    assert isinstance(CliRunner().invoke(app, ["fit", "rates.csv", "width"]).exception, AnalysisError)


def test_one_size_is_drawn_without_a_law() -> None:
    found = optimum(study(0.02).query("width == 8 and batch_size == 8"), target="loss")
    assert (found.law, found.no_law, len(found.sizes)) == (None, "", 1)
    assert len(optimum_figure(found).axes) == 1
