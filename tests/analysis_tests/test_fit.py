from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, Options, fit, fit_by, load_table


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
            bounds={"E": (0, np.inf), "A": (0, np.inf), "B": (0, np.inf)},
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


def test_fit_over_survivors_warns(tables) -> None:
    rows = tables.noisy(tables.QUICKSTART)
    lost = [tables.missing((4, 16, 8, v), "failed", "out_of_memory") for v in (4096, 8192)]
    result = fit(tables.load(rows + lost), bootstrap=0)
    assert result.excluded == "2 of 16 cells have no value: 2 failed (out_of_memory)"
    assert any("of 2 failed cells 2 have codebook_size>=4096" in w for w in result.warnings)
    # A single one proves nothing, but it lies at the large end.
    alone = fit(tables.load(rows + lost[:1]), bootstrap=0)
    assert any("can be biased" in warning for warning in alone.warnings)
    assert "2 failed (out_of_memory)" in result.summary()


def test_axes_that_no_law_sees_are_named(tables) -> None:
    rows = [tables.row(cell, width=32 + 32 * (i % 2)) for i, cell in enumerate(tables.QUICKSTART)]
    result = fit(tables.load(rows), bootstrap=0)
    assert any(warning.startswith("width also var") for warning in result.warnings)


@pytest.mark.parametrize(("batches", "named"), [((16, 16), False), ((16, 32), True)])
def test_a_law_of_images_sees_steps_unless_batches_differ(tables, batches, named) -> None:
    rows = [
        tables.row(cell, steps=100 * (1 + i % 3), batch_size=batches[i % 2], images_seen=1600 * (1 + i % 3))
        for i, cell in enumerate(tables.QUICKSTART)
    ]
    result = fit(tables.load(rows), "rfid = c * bits_per_pixel^(-a) * images_seen^(-b)", bootstrap=0)
    assert any("steps" in warning and "no term" in warning for warning in result.warnings) == named


def test_a_floor_below_zero_is_pointed_out() -> None:
    x = np.arange(1, 13.0)
    frame = pd.DataFrame({"x": x, "y": np.random.default_rng(3).normal(0, 0.05, 12) + 30 / x**0.2 - 12})
    free = fit(frame, "y = E + A * x^(-a)", residuals="linear", bootstrap=0)
    assert free.parameters["E"] < 0
    assert any("the floor E" in warning and "--bound E=0:)" in warning for warning in free.warnings)
    bound = fit(frame, "y = E + A * x^(-a)", residuals="linear", bootstrap=0, bounds={"E": (0, np.inf)})
    assert bound.at_bound == ("E",) and bound.parameters["E"] == 0
    assert "bound, 0" in bound.undetermined["E"] and np.isneginf(bound.intervals["E"][0]), "the bound ended it"
    assert any("do not reach the floor E" in warning for warning in bound.warnings)


@pytest.mark.parametrize("law", ["power_law_floor", "step_power"])
def test_a_floor_may_lie_above_the_smallest_noisy_value(law: str) -> None:
    column = "bits_per_pixel" if law == "power_law_floor" else "step"
    inside, above = 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = 10 ** rng.uniform(-1, 1.5, 40)
        frame = pd.DataFrame({column: x, "rfid": (3 + x**-1.2) * np.exp(0.05 * rng.standard_normal(40))})
        result = fit(frame, law, bootstrap=0, starts=16)
        low, high = result.intervals["E"]
        inside += low <= 3 <= high
        above += result.parameters["E"] > frame["rfid"].min()
        assert "E" not in result.undetermined and not any("do not reach" in warning for warning in result.warnings)
    assert inside >= 10 and above >= 10


def test_a_floor_far_below_the_rows_is_called_extrapolated() -> None:
    x = np.geomspace(1, 30, 20)
    frame = pd.DataFrame({"x": x, "y": 1 + 20 * x**-0.5})
    frame["y"] *= np.exp(np.random.default_rng(0).normal(0, 0.001, 20))
    result = fit(frame, "y = E + A * x^(-a)", bootstrap=0, bounds={"E": (0, np.inf)})
    assert any(
        "do not reach the floor E" in warning and "follows from the law's form" in warning
        for warning in result.warnings
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 300.0, 1e9])
@pytest.mark.parametrize(
    ("law", "truth", "bounds"),
    [
        ("E + A * exp(-x / tau)", {"tau": 1}, {}),
        ("E + A * exp(-x / tau)", {"tau": 1}, {"tau": (0, np.inf), "A": (0, np.inf)}),
        ("E + A * exp(-k * x)", {"k": -1}, {}),
        ("E + A * exp(-k * x)", {"k": -1}, {"k": (0, np.inf)}),
        ("E + A / (1 + exp((x - x0) / s))", {"x0": 1, "s": 1}, {}),
        ("E + A * exp(-0.5 * ((x - x0) / s)^2)", {"x0": 1, "s": 1}, {}),
        ("E + A * (x + x0)^(-a)", {"x0": 1}, {}),
        ("E + A * x / (s + x)", {"s": 1}, {}),
    ],
)
def test_starts_know_the_size_of_the_column(
    size: float, law: str, truth: dict[str, int], bounds: dict[str, tuple[float, float]]
) -> None:
    from gsq.analysis.laws.named import get_law

    unit = np.linspace(0.2, 20, 40)
    frame = pd.DataFrame({"x": unit})
    form, values = get_law(law, ["x"]), {"E": 2.0, "A": 6.0, "x0": 8.0, "s": 1.5, "tau": 2.0, "k": 0.5, "a": 0.7}
    natural = np.array([values[name] for name in form.parameters])
    plain = form.form(form.parameters)
    data = form.values(frame)
    frame["y"] = plain.both(natural[None], data, plain.centre(data))[0][0]
    result = fit(frame.assign(x=unit * size), f"y = {law}", residuals="linear", bootstrap=0, bounds=bounds)
    for name, power in truth.items():
        assert result.parameters[name] == pytest.approx(values[name] * size**power, rel=1e-4), name
    assert result.converged_share > 0.1


def test_years_do_not_overflow_a_rate() -> None:
    year = np.arange(2000.0, 2025)
    frame = pd.DataFrame({"year": year, "y": 2 + 6 * np.exp(-(year - 2000) / 4)})
    result = fit(frame, "y = E + A * exp(-k * year)", residuals="linear", bootstrap=0)
    assert result.parameters["k"] == pytest.approx(0.25, rel=1e-4) and not result.confounded


def test_replicates_count_where_a_law_needs_them() -> None:
    frame = pd.DataFrame({"x": [1, 1, 2, 2, 3, 3], "y": [1, 1.1, 2.9, 3.1, 7.1, 6.9]})
    result = fit(frame, "y = a + b * x + c * x^2", residuals="linear", bootstrap=50)
    assert result.parameters["c"] == pytest.approx(1.025) and result.freedom == (6, 3)
    low, high = result.intervals["c"]
    half = 3.182 * np.sqrt(result.cost / 3 * 0.75)  # Student's interval: c has variance 3/4 of that of a replicate
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    assert np.ptp(result.draws[:, 2]) > 0.01, "rows are resampled, not settings"


def test_a_redundant_law_predicts_and_names_what_is_confounded() -> None:
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], 9)
    frame = pd.DataFrame(shares, columns=["u", "v", "w"]).assign(z=np.geomspace(1, 50, 9))
    noise = np.random.default_rng(1).normal(0, 0.01, 9)
    frame["y"] = shares @ [1.0, 2.0, 4.0] + 5 * frame["z"] ** -0.5 + noise
    result = fit(frame, "y = a + b*u + c*v + d*w + f*z^(-g)", residuals="linear", bootstrap=20)
    assert result.confounded == (("a", "b", "c", "d"),) and result.rank == 5
    assert set(result.confounded[0]) <= set(result.undetermined) and "g" not in result.undetermined
    assert result.rmse < 0.02 and any("cannot tell a, b, c, d apart" in warning for warning in result.warnings)
    assert result.to_dict()["confounded"] == [["a", "b", "c", "d"]]
    inside = {"u": 0.2, "v": 0.3, "w": 0.5, "z": 4.0}
    central, low, high = result.predict(inside)
    assert low[0] < 5.3 < high[0] and high[0] - low[0] < 0.2
    assert central[0] == pytest.approx(
        fit(frame, "y = b*u + c*v + d*w + f*z^(-g)", residuals="linear", bootstrap=0).predict(inside)[0][0]
    )
    outside = result.predict(inside | {"w": 1.5})
    assert np.isneginf(outside[1][0]) and np.isposinf(outside[2][0]), "no row tells"
    again = fit(frame, "y = a + b*u + c*v + d*w + f*z^(-g)", residuals="linear", bootstrap=0, seed=7)
    assert again.parameters == pytest.approx(result.parameters, rel=1e-4), "the smallest parameters are unique"


def test_fewer_cells_than_parameters_predict_at_those_cells() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 2.0]})
    result = fit(frame, "y = E + A * x^(-a)", bootstrap=20)
    assert set(result.undetermined) == {"E", "A", "a"} and result.predict(frame)[0] == pytest.approx([3, 2])
    assert np.isnan(result.intervals["a"]).all() and np.isnan(result.predict(frame)[1]).all()
    assert any("2 distinct x for 3 parameters" in warning for warning in result.warnings)


def test_a_search_that_fails_says_so() -> None:
    frame = pd.DataFrame({"x": np.arange(1.0, 9), "y": np.arange(1.0, 9)})
    with pytest.raises(AnalysisError, match="the search failed"):
        fit(frame, "y = A * log(x - x0 - 100)", bounds={"x0": (0, 1)}, residuals="linear", bootstrap=0)


def test_a_search_that_is_cut_short_keeps_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    from gsq.analysis.fitting import searching, solver

    x = np.geomspace(1, 100, 20)
    frame = pd.DataFrame({"x": x, "y": 1 + 20 * x**-0.5})
    monkeypatch.setattr(solver, "STEPS", 2)
    monkeypatch.setattr(searching, "STEPS", 1)
    monkeypatch.setattr(searching, "_STEPS_FIRST", 2)
    carried = fit(frame, "y = E + A * x^(-a)", bootstrap=0)
    assert carried.converged and carried.parameters["a"] == pytest.approx(0.5), "the best few go on"
    monkeypatch.setattr(searching, "_FURTHER", ())
    monkeypatch.setattr(searching, "_FEW", 0)
    short = fit(frame, "y = E + A * x^(-a)", bootstrap=0)
    assert not short.converged and short.to_dict()["converged"] is False and "not converged" in short.summary()
    assert any("did not converge" in warning for warning in short.warnings)


def test_starts_of_linear_parameters_are_used() -> None:
    x = np.arange(24) * 0.05
    frame = pd.DataFrame({"x": x, "y": 0.0951 * np.exp(-x) + 0.8607 * np.exp(-3 * x) + 1.5576 * np.exp(-5 * x)})
    first = {"b1": 1.2, "b2": 0.3, "b3": 5.6, "b4": 5.5, "b5": 6.5, "b6": 7.6}
    ranges = {name: (0.99 * value, 1.01 * value) for name, value in first.items()}
    result = fit(
        frame,
        "y = b1*exp(-b2*x) + b3*exp(-b4*x) + b5*exp(-b6*x)",
        residuals="linear",
        bootstrap=0,
        starts=8,
        start_ranges=ranges,
    )
    assert result.rmse < 1e-6


@pytest.mark.parametrize("pair", [(2, 1), (np.nan, 1), (1, np.nan), (0, np.inf)])
def test_ranges_of_starts_that_are_none_are_refused(pair: tuple[float, float]) -> None:
    frame = pd.DataFrame({"x": np.arange(1.0, 9), "y": np.arange(1.0, 9)})
    with pytest.raises(AnalysisError, match=r"starts of b .*two finite numbers"):
        fit(frame, "y = a * x^b", start_ranges={"b": pair})


@pytest.mark.filterwarnings("error")
def test_no_library_warning_reaches_the_user() -> None:
    from gsq.analysis import report_card

    x = np.linspace(1, 6000, 20)
    frame = pd.DataFrame({"x": x, "y": np.r_[np.full(10, 1e-3), np.full(10, 5.0)]})
    for law in ("y = E + A*exp(-x/tau)", "y = A*x^a + B*x^b", "y = E + A/(1+exp(-k*(x-x0)))"):
        result = fit(frame, law, bootstrap=20, starts=16)
        report_card(result).text()
        result.predict({"x": [1e-300, 1e300]}, single_run=True)
        assert result.condition[0] > 0


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
    assert read["parameters"]["alpha"]["profile"]["low"] is None, "profiles are computed where they are shown"
    assert read["warnings"] == ["no intervals: bootstrap = 0"]
