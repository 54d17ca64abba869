"""Several outputs that share parameters: known coefficients, weights by scatter, coverage, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from gsq.analysis import AnalysisError, fit, report_card
from gsq.analysis.fitting.outputs import by_output
from gsq.analysis.fitting.saved import fit_again, read_saved
from gsq.cli.main import app

LAW = "E[out] + A[out] * N^(-a)"
TRUTH = {"E[loss]": 0.5, "E[rfid]": 2.0, "A[loss]": 30.0, "A[rfid]": 4000.0, "a": 0.4}
QUICK = {"bootstrap": 0, "starts": 8}


def study(
    seed: int = 0,
    noise: tuple[float, float] = (0.002, 0.05),
    together: float = 0.0,
    floors: tuple[float, float] = (0.5, 2.0),
) -> pd.DataFrame:
    """24 runs with two outputs, whose errors of logarithms correlate by ``together``."""
    rng = np.random.default_rng(seed)
    size = np.geomspace(1e4, 1e9, 24)
    one, other = rng.standard_normal((2, 24))
    other = together * one + np.sqrt(1 - together**2) * other
    return pd.DataFrame(
        {
            "N": size,
            "loss": (floors[0] + 30 * size**-0.4) * np.exp(noise[0] * one),
            "rfid": (floors[1] + 4000 * size**-0.4) * np.exp(noise[1] * other),
        }
    )


def test_coefficients_and_scatter_of_each_output_are_found() -> None:
    found = fit(study(1), LAW, target=["loss", "rfid"], **QUICK)
    assert found.law.outputs == ("loss", "rfid") and found.n_rows == 48
    for name, value in TRUTH.items():
        low, high = found.intervals[name]
        assert low <= value <= high and high - low < 0.3 * value, name
    outputs = found.to_dict()["outputs"]
    assert outputs["loss"]["scatter"] == pytest.approx(0.002, rel=0.4)  # type: ignore[index]
    assert outputs["rfid"]["scatter"] == pytest.approx(0.05, rel=0.4)  # type: ignore[index]
    assert outputs["rfid"]["rows"] == 24  # type: ignore[index]


def test_seeds_measure_the_noise_of_each_output() -> None:
    frame = pd.concat([study(seed).assign(seed=seed) for seed in range(4)])
    found = fit(frame, LAW, target=["loss", "rfid"], **QUICK)
    outputs = found.to_dict()["outputs"]
    for name, noise in (("loss", 0.002), ("rfid", 0.05)):
        assert outputs[name]["noise"] == pytest.approx(noise, rel=0.2)  # type: ignore[index]
        assert "seed noise" in by_output(found)[name].text
    assert found.lack_of_fit is not None and found.lack_of_fit.freedom == 144 and found.lack_of_fit.pooled
    assert fit(study(), LAW, target=["loss", "rfid"], **QUICK).to_dict()["outputs"]["loss"]["noise"] is None  # type: ignore[index]
    with pytest.raises(AnalysisError, match="loss, rfid"):
        fit(frame, LAW, target=["loss", "rfid"], noise=0.01, **QUICK)


def test_a_precise_output_decides_what_both_share() -> None:
    frame = study(3)
    both, alone = fit(frame, LAW, target=["loss", "rfid"], **QUICK), fit(frame, "rfid = E + A * N^(-a)", **QUICK)
    wide, narrow = (np.ptp(one.intervals["a"]) for one in (alone, both))
    assert narrow < 0.3 * wide


def test_predictions_are_of_the_output_that_is_named() -> None:
    found = fit(study(), LAW, target=["loss", "rfid"], **QUICK)
    where = pd.DataFrame({"N": [1e8, 1e8], "out": ["rfid", "loss"]})
    central, low, high = found.predict(where, single_run=True)
    assert central == pytest.approx([2.0 + 4000 * 1e8**-0.4, 0.5 + 30 * 1e8**-0.4], rel=0.05)
    width = np.log(high / low) / 2
    assert width == pytest.approx([2 * 0.05, 2 * 0.002], rel=0.5)
    with pytest.raises(AnalysisError, match="out"):
        found.predict({"N": 1e12, "out": "psnr"})


def test_errors_that_go_together_are_pointed_out_and_the_bootstrap_holds_them_together() -> None:
    assert not [one for one in fit(study(), LAW, target=["loss", "rfid"], **QUICK).warnings if "together" in one]
    wider = []
    for seed in range(8):
        frame = study(seed, (0.02, 0.02), 0.95, (0.0, 0.0))
        found = fit(frame, "A[out] * N^(-a)", target=["loss", "rfid"], bootstrap=200, bootstrap_starts=1, starts=2)
        assert any("bootstrap" in one and "together" in one for one in found.warnings)
        wider.append(np.ptp(found.bootstrap_intervals["a"]) / np.ptp(found.profile_intervals["a"]))
    assert 1.2 < np.mean(wider) < 1.6


def test_intervals_hold_the_truth() -> None:
    held = []
    for seed in range(60):
        found = fit(study(seed), LAW, target=["loss", "rfid"], bootstrap=0, starts=2, intervals="profile")
        held += [low <= TRUTH[name] <= high for name, (low, high) in found.intervals.items()]
    assert 0.9 <= np.mean(held) <= 0.99


@pytest.mark.parametrize(
    ("law", "target", "named"),
    [
        (LAW, ["loss", "psnr"], "psnr"),
        (LAW, ["loss", "loss"], "once"),
        (LAW, ["loss", "negative"], "negative above 0"),
        (LAW, ["loss", "flat"], "flat is 3"),
        (LAW, ["loss", "rare"], "rare"),
        (LAW, "loss", "several targets"),
        (LAW, ["loss"], "several targets"),
        ("E + A * N^(-a)", ["loss", "rfid"], r"\[out\]"),
        ("power_law_bpp", ["loss", "rfid"], r"\[out\]"),
    ],
)
def test_one_clear_error_for_targets_that_cannot_be(law: str, target: str | list[str], named: str) -> None:
    frame = study().assign(negative=-1.0, flat=3.0, rare=[1.0] + [np.nan] * 23)
    with pytest.raises(AnalysisError, match=named):
        fit(frame, law, target=target, **QUICK)


def test_a_table_with_a_column_out_of_its_own_is_refused() -> None:
    with pytest.raises(AnalysisError, match="'out'"):
        fit(study().assign(out="x"), LAW, target=["loss", "rfid"], **QUICK)


def test_negative_outputs_take_linear_residuals() -> None:
    frame = study().assign(negative=lambda one: -one["rfid"])
    found = fit(frame, LAW, target=["loss", "negative"], residuals="linear", **QUICK)
    assert found.parameters["A[negative]"] < 0 < found.parameters["A[loss]"]


def test_command_line_and_saved_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study().to_csv("runs.csv", index=False)
    asked = ["fit", "runs.csv", "--law", LAW, "--target", "loss", "rfid", "--bootstrap", "0", "--starts", "8"]
    result = CliRunner().invoke(app, [*asked, "--json", "--output", "fit.json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)["fits"][0]
    assert list(shown["outputs"]) == ["loss", "rfid"] and "A[rfid]" in shown["parameters"]
    again = CliRunner().invoke(app, [*asked[:5], "loss", "--target", "rfid", *asked[7:], "--json"])
    assert json.loads(again.stdout)["fits"][0]["cost"] == shown["cost"]
    _, saved = read_saved("fit.json")
    found = fit_again(saved[0], study())
    assert found.law.outputs == ("loss", "rfid")


def test_the_card_speaks_of_each_output() -> None:
    card = report_card(fit(study(), LAW, target=["loss", "rfid"], **QUICK))
    assert {one.column for one in card.trends} == {"N (loss)", "N (rfid)"}
    assert "rfid: 24 rows" in card.text()
