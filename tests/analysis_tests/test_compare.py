"""Comparison of laws, the report card, the collapse test and learning curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import (
    AnalysisError,
    Options,
    card_figure,
    collapse,
    compare_laws,
    comparisons,
    extrapolate,
    fit,
    held_out,
    report_card,
)

QUICK = Options(bootstrap=0, starts=16)


def grid(noise: float = 0.02, drift: float = 0.0) -> pd.DataFrame:
    """3 x 3 x 3 cells of rfid = 0.12 (f^2 / (G L))^1 D^drift with two seeds."""
    rng = np.random.default_rng(4)
    rows = [
        {"downsample": f, "groups": g, "codebook_size": v, "latent_dim": d, "seed": seed}
        for i, f in enumerate((4, 8, 16))
        for j, g in enumerate((1, 2, 4))
        for k, v in enumerate((2**6, 2**10, 2**14))
        for d in ((16, 32, 64)[(i + j + k) % 3],)
        for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows)
    bits = frame["groups"] * np.log2(frame["codebook_size"]) / frame["downsample"] ** 2
    frame["rfid"] = 0.12 / bits * (frame["latent_dim"] / 32) ** drift * np.exp(rng.normal(0, noise, len(frame)))
    return frame


def test_the_law_that_made_the_data_wins() -> None:
    found = compare_laws(
        grid(), ["power_law_bpp", "inverse_bpp", "power_law_floor", "A * downsample^a", "chinchilla"], QUICK
    )
    order = [one.law.name for one in found.fits]
    assert order[0] == "inverse_bpp" and order[-1] == "A * downsample^a"
    assert "column 'parameters' is missing" in found.not_fitted["chinchilla"]
    assert sum(found.weights) == pytest.approx(1) and found.weights[0] > 0.5 and found.weights[-1] < 1e-6
    table = found.table.set_index("law")
    assert table.loc["inverse_bpp", "loo"] == pytest.approx(0.02, abs=0.01)
    assert table.loc["A * downsample^a", "p"] < 1e-6 < table.loc["inverse_bpp", "p"]
    text = found.text()
    assert "inverse_bpp" in text and "Not fitted: column 'parameters'" in text and "downsample" in text
    assert json.loads(json.dumps(found.to_dict()))["laws"][0]["law"] == "inverse_bpp"
    where = {"bits_per_pixel": [0.1, 1.0]}
    two = compare_laws(grid(), ["power_law_bpp", "inverse_bpp"], QUICK)
    alone, together = found.fits[0].predict(where), two.predict(where)
    np.testing.assert_allclose(together[0], alone[0], rtol=0.05)
    assert ((together[1] < together[0]) & (together[0] < together[2])).all()
    assert (together[2] - together[1] > alone[2] - alone[1]).all(), "the band holds the laws' disagreement"
    new_run = two.predict(where, single_run=True)
    np.testing.assert_array_equal(new_run[0], together[0])
    assert (np.log(new_run[2] / new_run[0]) > 1.8 * 0.02).all(), "two standard deviations of a seed, 0.02"
    far = compare_laws(grid(noise=0.6), ["power_law_floor", "power_law_bpp"], QUICK)
    assert (far.predict({"bits_per_pixel": [0.001, 1000]}, single_run=True)[1] > 0).all(), "relative bands stay above 0"


def test_all_named_laws_by_default_and_none_is_an_error() -> None:
    found = compare_laws(grid(), None, QUICK)
    assert {"power_law_bpp", "inverse_bpp", "power_law_floor"} == {one.law.name for one in found.fits}
    assert {"paper_eq14", "step_power"} <= set(found.not_fitted)
    assert "depends on s" in found.not_fitted["saturating"], "no cell reaches its limit"
    with pytest.raises(AnalysisError, match="groups = 1 only"):
        compare_laws(grid(), ["paper_eq14"], QUICK)
    with pytest.raises(AnalysisError, match="different targets"):
        compare_laws(grid(), ["a / latent_dim", "seed = a / latent_dim"], QUICK)


def test_held_out_errors_are_those_of_refits_by_hand() -> None:
    frame = grid(noise=0.1)
    whole = fit(frame, bootstrap=0)
    held = held_out(whole)
    errors = []
    for cell in range(whole.n_configurations):
        out = whole.configurations == cell
        part = fit(frame[~out].reset_index(drop=True), bootstrap=0)
        errors += list(np.log(frame.loc[out, "rfid"]) - np.log(part.predict(frame[out])[0]))
    assert held.one_out.log_rmse == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-6)
    assert held.one_out.rows == len(frame), "all seeds of a configuration are out at once"
    small = frame["downsample"] > 4
    part = fit(frame[small].reset_index(drop=True), bootstrap=0)
    miss = np.log(frame.loc[~small, "rfid"]) - np.log(part.predict(frame[~small])[0])
    assert held.largest["downsample"].log_rmse == pytest.approx(np.sqrt(np.mean(miss**2)), rel=1e-6), "small f is large"
    assert set(held.level_out) == {"downsample", "groups", "codebook_size", "latent_dim"}
    assert held.window["groups"].rows == 36 and held.level_out["groups"].rows == 54


def test_card_says_what_is_wrong(fig4: pd.DataFrame, tables, tmp_path: Path) -> None:
    card = report_card(fit(fig4, "paper_eq14", residuals="linear", bootstrap=100))
    text = card.text()
    assert "B, alpha, C, beta: quote predictions" in text
    assert (
        "condition number 4.2e+11" in text and "profile [15.66, " in text and "a configuration left out: 0.0206" in text
    )
    card.save(tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text())["findings"] == list(card.findings)
    drifting = report_card(fit(grid(drift=0.5), "inverse_bpp", bootstrap=0))
    assert any("residuals go with latent_dim (rank correlation +" in one for one in drifting.findings)
    assert any("lack of fit: seed noise" in one for one in drifting.findings)
    lost = [tables.missing((4, 16, 8, v), "failed", "out_of_memory") for v in (4096, 8192)]
    biased = report_card(fit(tables.load(tables.noisy(tables.QUICKSTART) + lost), bootstrap=0))
    assert any("of 2 failed cells 2 have" in one and "codebook_size>=4096" in one for one in biased.findings)
    clean = report_card(fit(grid(), "inverse_bpp", bootstrap=0))
    assert "nothing speaks against it" in clean.text()


def test_card_is_drawn(fig4: pd.DataFrame, tmp_path: Path) -> None:
    card = report_card(fit(fig4, "paper_eq14", residuals="linear", bootstrap=50))
    figure = card_figure(card, tmp_path / "card")
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels[:2] == ["predicted rfid", "(end of the interval - value) / |value|"]
    assert {"codebook size V", "latent channels D", "bits per pixel"} <= set(labels)
    assert (tmp_path / "card.png").stat().st_size > 10_000 and (tmp_path / "card.svg").is_file()


def test_collapse_finds_what_is_absorbed_and_what_is_left() -> None:
    best, *others = collapse(grid())
    assert best.derived == "bits_per_pixel" and best.absorbs and best.p > 0.01
    assert not any(one.absorbs for one in others)
    assert best.exponents["downsample"][0] == pytest.approx(2, abs=0.1)
    assert best.block == pytest.approx(0.02, abs=0.01)
    drifting = collapse(grid(drift=0.5))[0]
    assert drifting.derived == "bits_per_pixel" and not drifting.absorbs and drifting.p < 1e-6
    value, half = drifting.left_over["latent_dim"]
    assert value == pytest.approx(0.5, abs=max(half, 0.05)) and "does not wholly absorb" in drifting.text
    assert json.loads(json.dumps(drifting.to_dict()))["left_over"]["latent_dim"][0] == value
    with pytest.raises(AnalysisError, match=r"only latent_dim .*two axes"):
        collapse(grid(), axes=["latent_dim", "width"])
    with pytest.raises(AnalysisError, match="column 'colour' is missing"):
        collapse(grid(), ["colour"])


def curves(noise: float = 0.01, points: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        {
            "signature": f"run{i}",
            "step": 60 * s,
            "rfid": (40 + 9 * i) * (1 + 4 * np.exp(-s / 5)) * np.exp(rng.normal(0, noise)),
        }
        for i in range(3)
        for s in range(1, points + 1)
    ]
    return pd.DataFrame(rows)


def test_learning_curves_are_predicted_from_their_first_half() -> None:
    found = extrapolate(curves())
    assert found.table["signature"].nunique() == 3 and len(found.table) == 30
    assert found.table["step"].min() > 600 and set(found.table["law"]) <= {"step_approach", "step_power"}
    assert found.error < 0.1 and found.inside >= 0.7
    assert found.text.startswith("3 curves") and "50%" in found.text and "30 later values of rfid" in found.text
    short = pd.concat([curves(), curves(points=4).assign(signature="short")])
    assert list(extrapolate(short).skipped) == ["short"]
    with pytest.raises(AnalysisError, match=r"no learning curve .*evaluation\.every"):
        extrapolate(curves(points=5))
    with pytest.raises(AnalysisError, match="fraction must lie between 0 and 1"):
        extrapolate(curves(), fraction=1.5)


def study(tables, seeds: int = 1) -> pd.DataFrame:
    """8 cells, rfid = 9 bpp^-0.8 to 1 % at the last of four steps, and a learning curve before it."""
    rng = np.random.default_rng(3)
    rows = []
    for g in (1, 2, 4, 8):
        for v in (64, 1024):
            for seed in range(seeds):
                final = 9 * (g * np.log2(v) / 16) ** -0.8 * np.exp(rng.normal(0, 0.01))
                steps = (50, 100, 150, 200)
                rows += [tables.row((4, 16, g, v), seed, step=s, rfid=final * (1 + 60 / s - 60 / 200)) for s in steps]
    return tables.load(rows)


def test_laws_of_rate_are_compared_on_the_rows_that_fit_takes(tables) -> None:
    frame = study(tables)
    alone = fit(frame, bootstrap=0)
    compared = compare_laws(frame, None, QUICK)
    same = next(one for one in compared.fits if one.law.name == "power_law_bpp")
    assert (same.n_rows, same.log_rmse) == (8, pytest.approx(alone.log_rmse)) and same.log_rmse < 0.02
    assert all(one.lack_of_fit is None or one.lack_of_fit.p is None for one in compared.fits), "steps are no seeds"
    assert not any(one.law.of_steps for one in compared.fits)
    assert "every evaluation, 32 in all" in compared.not_fitted["step_power"]
    of_rate, of_steps = comparisons(frame, None, QUICK)
    assert [one.law.name for one in of_rate.fits] == [one.law.name for one in compared.fits]
    assert {one.law.name for one in of_steps.fits} == {"step_power", "step_approach"}
    assert {one.n_rows for one in of_steps.fits} == {32} and "every evaluation" in of_steps.text()
    assert "8 rows of 8 configurations" in of_rate.text() and {one.n_rows for one in of_rate.fits} == {8}
    assert compare_laws(frame, ["step_power", "step_approach"], QUICK).fits[0].n_rows == 32


def test_laws_on_different_rows_are_refused(tables) -> None:
    frame = study(tables)
    with pytest.raises(AnalysisError) as found:
        compare_laws(frame, ["power_law_bpp", "step_power"], QUICK)
    assert "each run, 8 in all" in str(found.value) and "every evaluation, 32 in all" in str(found.value)
    frame["parameters"] = pd.array([None if g == 8 else 1000 * g for g in frame["groups"]], dtype="Int64")
    with pytest.raises(AnalysisError, match=r"power_law_bpp takes .* 8 in all; .* 6 in all \(2 without parameters\)"):
        compare_laws(frame, ["power_law_bpp", "A / parameters^a"], QUICK)


def test_a_named_law_with_holes_does_not_take_rows_from_the_others(tables) -> None:
    frame = study(tables, seeds=2)
    frame["images_seen"] = [100 * (i % 5 + 1) for i in range(len(frame))]
    frame["parameters"] = pd.array([None if g == 8 else 7 * g**2 for g in frame["groups"]], dtype="Int64")
    found = compare_laws(frame, None, QUICK)
    assert {one.n_rows for one in found.fits} == {16}
    assert "4 without parameters" in found.not_fitted["chinchilla"]
    assert all(one.lack_of_fit.freedom == 8 for one in found.fits), "two seeds of each of 8 cells"
