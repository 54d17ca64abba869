from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import AnalysisError, Options, fit, fit_by, load_table
from analysis.uncertainty import percentile_interval, resample, undetermined


def test_power_law_is_recovered(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART, seeds=2))
    result = fit(frame, bootstrap=400)
    assert result.parameters["c"] == pytest.approx(9, rel=0.05)
    assert result.parameters["alpha"] == pytest.approx(0.8, abs=0.05)
    for kind in (result.intervals, result.profile_intervals, result.bootstrap_intervals):
        for name, truth in (("c", 9), ("alpha", 0.8)):
            low, high = kind[name]
            assert low < truth < high and low < result.parameters[name] < high
    assert result.intervals == result.profile_intervals and result.interval_kind == "profile"
    assert (result.n_rows, result.n_configurations) == (28, 14)
    assert result.converged_share == 1.0 and not result.undetermined
    assert result.spearman is not None and result.spearman < -0.95
    assert result.log_rmse == pytest.approx(0.05, abs=0.02) and result.scatter == pytest.approx(0.05, abs=0.02)
    assert (result.protocol, result.features) == ("p1a2b3", "efficientnet_lite0-0a1b2c")


def test_seeds_give_the_noise_and_test_the_law(tables) -> None:
    rows = tables.noisy(tables.QUICKSTART, seeds=3)
    right = fit(tables.load(rows), bootstrap=0).lack_of_fit
    assert right is not None and right.noise == pytest.approx(0.05, abs=0.015) and right.freedom == 28
    assert right.p is not None and right.p > 0.05 and "no lack of fit" in right.text
    bent = [one | {"rfid": one["rfid"] * (1 + 0.3 * (one["groups"] == 2))} for one in rows]
    wrong = fit(tables.load(bent), bootstrap=0).lack_of_fit
    assert wrong is not None and wrong.p is not None and wrong.p < 1e-4 and "rejected" in wrong.text
    alone = fit(tables.load(tables.noisy(tables.QUICKSTART)), bootstrap=0).lack_of_fit
    assert alone is not None and alone.p is None and "no seeds" in alone.text


def test_exact_data_give_exact_parameters(tables) -> None:
    result = fit(tables.load([tables.row(cell) for cell in tables.QUICKSTART]), bootstrap=50)
    assert result.parameters == pytest.approx({"c": 9.0, "alpha": 0.8})
    assert result.intervals["alpha"] == pytest.approx((0.8, 0.8))
    assert result.bootstrap_intervals["alpha"] == pytest.approx((0.8, 0.8))
    assert result.converged_share == 1.0


def test_equation_14_is_recovered_where_the_design_allows_it() -> None:
    v, d = (grid.ravel() for grid in np.meshgrid(2.0 ** np.arange(4, 20, 2), 2.0 ** np.arange(2, 10)))
    rfid = 30 / np.log2(v) ** 2 + 0.05 * d**0.6
    frame = pd.DataFrame({"codebook_size": v, "latent_dim": d, "groups": 1, "downsample": 8, "rfid": rfid})
    frame["rfid"] *= np.exp(np.random.default_rng(0).normal(0, 0.02, len(frame)))
    result = fit(frame, "paper_eq14", bootstrap=200)
    truth = {"B": 30, "alpha": 2, "C": 0.05, "beta": 0.6}
    assert result.parameters == pytest.approx(truth, rel=0.1)
    assert not result.undetermined


def test_any_table_and_any_formula(tmp_path: Path) -> None:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e7, 1e10, 5)))
    frame = pd.DataFrame({"N": n, "D": d, "loss": 1.7 + 400 / n**0.34 + 410 / d**0.28, "w": 1.0})
    frame.loc[3, "loss"] = np.nan
    frame.loc[4, "D"] = np.nan
    frame.to_csv(tmp_path / "runs.csv", index=False)
    frame.to_parquet(tmp_path / "runs.parquet")
    for name in ("runs.csv", "runs.parquet"):
        result = fit(
            load_table(tmp_path / name),
            "loss = E + A / N^a + B / D^b",
            bounds={"E": (0, "min"), "A": (0, np.inf), "B": (0, np.inf)},
            weights="w",
            bootstrap=0,
        )
        truth = {"E": 1.7, "A": 400, "a": 0.34, "B": 410, "b": 0.28}
        assert result.parameters == pytest.approx(truth, rel=1e-4)
        assert result.excluded == "2 of 25 cells have no value: 1 without D, 1 without loss"
        assert result.target == "loss" and "loss" in result.at_best()


def test_losses_and_weights_change_what_they_should(tables) -> None:
    rows = tables.noisy(tables.QUICKSTART)
    spoiled = [one | {"rfid": one["rfid"] * (10 if i == 8 else 1)} for i, one in enumerate(rows)]
    frame = tables.load(spoiled)
    alphas = {
        loss: fit(frame, loss=loss, bootstrap=0).parameters["alpha"] for loss in ("least_squares", "huber", "cauchy")
    }
    assert abs(alphas["least_squares"] - 0.8) > 0.1
    assert max(abs(alphas["huber"] - 0.8), abs(alphas["cauchy"] - 0.8)) < 0.1
    light = frame.assign(trust=np.where(frame["rfid"] > 3 * 9 * frame["bits_per_pixel"] ** -0.8, 1e-6, 1.0))
    assert fit(light, weights="trust", bootstrap=0).parameters["alpha"] == pytest.approx(0.8, abs=0.1)
    robust = fit(frame, loss="huber", bootstrap=100)
    assert robust.interval_kind == "bootstrap" and np.isnan(robust.profile_intervals["c"]).all()
    assert robust.intervals["alpha"][0] < alphas["huber"] < robust.intervals["alpha"][1]
    plain = fit(frame, loss="huber", delta=1.0, bootstrap=0)
    assert any("plain least squares" in warning for warning in plain.warnings)


def test_groups_are_fitted_apart(tables) -> None:
    fits, reasons = fit_by(tables.load(tables.noisy(tables.QUICKSTART)), "downsample", options=Options(bootstrap=0))
    assert list(fits) == ["downsample = 4", "downsample = 8"] and not reasons
    assert fits["downsample = 4"].n_rows == 11 and fits["downsample = 8"].n_rows == 3
    fits, reasons = fit_by(tables.load(tables.noisy(tables.QUICKSTART)), "latent_dim", options=Options(bootstrap=0))
    assert list(fits) == ["latent_dim = 16"] or list(fits) == ["latent_dim = 8", "latent_dim = 16"]
    with pytest.raises(AnalysisError, match="cannot group by 'colour'"):
        fit_by(tables.load(tables.noisy(tables.QUICKSTART)), "colour")


def test_the_same_seed_gives_the_same_fit(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART))
    first, again, other = (fit(frame, bootstrap=60, seed=seed) for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict()
    assert first.bootstrap_intervals != other.bootstrap_intervals
    assert first.parameters == pytest.approx(other.parameters)


def test_seeds_of_a_configuration_move_together() -> None:
    configurations = np.array([0, 1, 1, 1, 2, 2, 3])
    for times in resample(configurations, np.random.default_rng(0), 50):
        assert times[1] == times[2] == times[3] and times[4] == times[5]
        assert times[[0, 1, 4, 6]].sum() == 4, "as many configurations as there are"


def test_copies_of_a_seed_do_not_narrow_the_interval(tables) -> None:
    once = tables.noisy(tables.QUICKSTART)
    copies = [one | {"seed": s, "signature": f"{one['signature']}{s}"} for one in once for s in range(5)]
    one, many = (fit(tables.load(rows), bootstrap=400) for rows in (once, copies))
    assert many.profile_intervals["alpha"] == pytest.approx(one.profile_intervals["alpha"], rel=1e-4)
    assert many.bootstrap_intervals["alpha"] == pytest.approx(one.bootstrap_intervals["alpha"], rel=1e-6)
    where = {"bits_per_pixel": 20.0}
    assert many.predict(where)[1][0] == pytest.approx(one.predict(where)[1][0], rel=1e-4)


def test_resamples_that_cannot_carry_the_law_are_drawn_again(tables) -> None:
    frame = tables.load(tables.noisy([(4, 16, 1, v) for v in (64, 256, 1024)]))
    result = fit(frame, bootstrap=200)
    assert result.bootstrap_redrawn > 5 and result.bootstrap_failed == 0 and len(result.draws) == 200
    assert any("3 configurations are rough" in warning for warning in result.warnings)


def test_what_counts_as_undetermined() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300))
    found = undetermined(np.stack([a, 3 * a + 10, b], axis=1), {"x": (-1, 1), "y": (4, 12), "z": (1, 9)})
    assert found == {"x": "its interval spans zero", "y": "it moves with x"}
    assert undetermined(a[:, None], {"x": (1.0, 20.0)}) == {"x": "its interval spans a factor of 20"}
    assert undetermined(a[:, None], {"x": (1.0, np.inf)}) == {"x": "its interval is open above"}
    assert undetermined(a[:, None], {"x": (0.0, 2.0)}) == {"x": "its interval reaches zero"}
    assert undetermined(a[:, None], {"x": (np.nan, np.nan)}) == {}


def test_expanded_percentiles_are_wider_the_fewer_cells_there_are() -> None:
    draws = np.random.default_rng(0).normal(size=20_000)
    plain = percentile_interval(draws, 0.95)
    assert plain == pytest.approx((-1.96, 1.96), abs=0.08)
    wide = percentile_interval(draws, 0.95, (12, 10))
    assert wide == pytest.approx((-2.228 * 1.2**0.5, 2.228 * 1.2**0.5), abs=0.15)


def test_fit_over_survivors_warns(tables) -> None:
    rows = tables.noisy(tables.QUICKSTART)
    lost = [tables.missing((4, 16, 8, v), "failed", "out_of_memory") for v in (4096, 8192)]
    result = fit(tables.load(rows + lost), bootstrap=0)
    assert result.excluded == "2 of 16 cells have no value: 2 failed (out_of_memory)"
    assert any("2 failed cells" in w and "a law fitted to the rest" in w for w in result.warnings)
    # A single one proves nothing, but it lies at the large end.
    alone = fit(tables.load(rows + lost[:1]), bootstrap=0)
    assert any("can be biased" in warning for warning in alone.warnings)
    assert "2 failed (out_of_memory)" in result.summary()


def test_axes_that_no_law_sees_are_named(tables) -> None:
    rows = [tables.row(cell, width=32 + 32 * (i % 2)) for i, cell in enumerate(tables.QUICKSTART)]
    result = fit(tables.load(rows), bootstrap=0)
    assert any(warning.startswith("width also vary") for warning in result.warnings)


def test_a_floor_below_zero_is_pointed_out() -> None:
    x = np.arange(1, 13.0)
    frame = pd.DataFrame({"x": x, "y": np.random.default_rng(3).normal(0, 0.05, 12) + 30 / x**0.2 - 12})
    free = fit(frame, "y = E + A * x^(-a)", residuals="linear", bootstrap=0)
    assert free.parameters["E"] < 0
    assert any("the floor E" in warning and "--bound E=0:min" in warning for warning in free.warnings)
    bound = fit(frame, "y = E + A * x^(-a)", residuals="linear", bootstrap=0, bounds={"E": (0, "min")})
    assert bound.at_bound == ("E",) and bound.parameters["E"] == 0
    assert bound.undetermined["E"] == "its interval reaches zero"


def test_predict_takes_frames_and_scalars(tables) -> None:
    result = fit(tables.load(tables.noisy(tables.QUICKSTART)), bootstrap=100)
    by_rate = result.predict({"bits_per_pixel": [0.5, 0.5]})
    by_axes = result.predict({"groups": 1, "codebook_size": [256, 256], "downsample": 4})
    for one, two in zip(by_rate, by_axes, strict=True):
        assert one.shape == (2,)
        np.testing.assert_allclose(one, two)
    central, low, high = result.predict({"bits_per_pixel": 0.5}, single_run=True)
    assert low[0] < by_rate[1][0] < central[0] < by_rate[2][0] < high[0], "a run scatters about the law"
    assert np.log(high[0] / central[0]) > 1.9 * result.scatter
    resampled = result.predict({"bits_per_pixel": 0.5}, kind="bootstrap")
    assert resampled[2][0] - resampled[1][0] == pytest.approx(by_rate[2][0] - by_rate[1][0], rel=0.6)
    with pytest.raises(AnalysisError, match="column 'bits_per_pixel' is missing"):
        result.predict({"latent_dim": 8})


def test_saved_fit_is_plain_json(tables, tmp_path: Path) -> None:
    result = fit(tables.load(tables.noisy(tables.QUICKSTART)), bootstrap=0, intervals="bootstrap")
    result.save(tmp_path / "fits" / "fit.json")
    read = json.loads((tmp_path / "fits" / "fit.json").read_text())
    assert read == result.to_dict()
    assert read["parameters"]["alpha"]["low"] is None, "no interval without a bootstrap, and no NaN in JSON"
    assert read["parameters"]["alpha"]["profile"]["low"] < read["parameters"]["alpha"]["value"]
    assert read["warnings"] == ["no intervals: bootstrap = 0"]


def test_mixed_protocols_are_not_fitted(tables) -> None:
    rows = tables.noisy(tables.QUICKSTART)
    rows[0]["protocol"] = "f00d"
    with pytest.raises(AnalysisError, match="mixes 2 evaluation protocols"):
        fit(tables.load(rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"law": "nope"}, "there is no law 'nope'"),
        ({"law": "A / codebok_size"}, "unknown name 'codebok_size'; did you mean codebook_size"),
        ({"residuals": "huber"}, "residuals must be 'log' or 'linear', got 'huber'"),
        ({"loss": "absolute"}, "loss must be one of least_squares, huber, cauchy, got 'absolute'"),
        ({"delta": 0.1}, "delta belongs to the losses huber and cauchy"),
        ({"loss": "huber", "delta": -1}, "delta must be a positive number"),
        ({"loss": "cauchy", "intervals": "profile"}, "profile intervals need least_squares"),
        ({"intervals": "wald"}, "intervals must be 'profile' or 'bootstrap'"),
        ({"noise": -1}, "noise is the standard deviation of a seed"),
        ({"bootstrap": -1}, "bootstrap is a number of resamples"),
        ({"starts": 0}, "starts must be at least 1"),
        ({"confidence": 95}, "confidence must lie between 0 and 1, got 95"),
        ({"law": "paper_eq14"}, "groups = 1 only"),
        ({"weights": "trust"}, "column 'trust' is missing"),
        ({"weights": "seed"}, "weights must be finite and above 0; 14 of 14 rows of 'seed'"),
        ({"target": "lpips"}, "none of the 14 cells has a value: 14 done but not evaluated"),
        ({"bounds": {"alpha": (2, 1)}}, "the bounds of alpha leave nothing"),
    ],
)
def test_bad_options(tables, options: dict, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit(tables.load(tables.noisy(tables.QUICKSTART)), **options)


def test_constant_predictor_is_refused(tables) -> None:
    with pytest.raises(AnalysisError, match=r"reads bits_per_pixel alone, constant .* what varies is latent_dim"):
        fit(tables.load([tables.row((4, d, 1, 64)) for d in (8, 16, 32, 64)]))


def test_a_target_below_zero_has_no_logarithm() -> None:
    frame = pd.DataFrame({"x": np.arange(6.0) + 1, "y": [3, 2, 1, 0, -1, -2]})
    with pytest.raises(AnalysisError, match=r"log residuals need y above 0; 3 of 6 rows are not, the first is 0\."):
        fit(frame, "y = a + b * x", bootstrap=0)
    assert fit(frame, "y = a + b * x", residuals="linear", bootstrap=0).parameters == pytest.approx({"a": 4, "b": -1})
