from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import AnalysisError, fit
from analysis.uncertainty import bootstrap, resample_rows, undetermined


def test_power_law_is_recovered(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART, seeds=2))
    result = fit(frame, bootstrap=400)
    assert result.parameters["c"] == pytest.approx(9, rel=0.05)
    assert result.parameters["alpha"] == pytest.approx(0.8, abs=0.05)
    for name, truth in (("c", 9), ("alpha", 0.8)):
        low, high = result.intervals[name]
        assert low < truth < high and low < result.parameters[name] < high
    assert (result.n_rows, result.n_configurations) == (28, 14)
    assert result.converged_share == 1.0 and not result.undetermined
    assert result.spearman is not None and result.spearman < -0.95
    assert result.log_rmse == pytest.approx(0.05, abs=0.02)
    assert (result.protocol, result.features) == ("p1a2b3", "efficientnet_lite0-0a1b2c")


def test_exact_data_give_exact_parameters(tables) -> None:
    result = fit(tables.load([tables.row(cell) for cell in tables.QUICKSTART]), bootstrap=50)
    assert result.parameters == pytest.approx({"c": 9.0, "alpha": 0.8})
    assert result.intervals["alpha"] == pytest.approx((0.8, 0.8))
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


def test_fig4_of_the_paper(fig4: pd.DataFrame) -> None:
    result = fit(fig4, "paper_eq14", residuals="linear", bootstrap=500)
    assert result.parameters["B"] == pytest.approx(412.6, abs=0.1)
    assert result.parameters["alpha"] == pytest.approx(2.8387, abs=1e-4)
    assert result.parameters["C"] == pytest.approx(0.1599, abs=1e-4)
    assert result.parameters["beta"] == pytest.approx(0.1962, abs=1e-4)
    assert result.rmse == pytest.approx(0.01602, abs=1e-5)
    assert result.converged_share > 0.9
    # The predictions are good, but the parameters mean nothing: only combinations of them are determined.
    assert set(result.undetermined) == {"B", "alpha", "C", "beta"}
    assert "spans a factor of" in result.undetermined["B"] and result.undetermined["alpha"].endswith("with B")
    assert "412.6" not in result.formula() and "not determined by these data" in result.summary()
    central, low, high = result.predict({"latent_dim": 16, "codebook_size": 2**19})
    assert low[0] < central[0] < high[0] and high[0] / low[0] < 1.15


def test_the_same_seed_gives_the_same_fit(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART))
    first, again, other = (fit(frame, bootstrap=60, seed=seed) for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict()
    assert first.intervals != other.intervals and first.parameters == pytest.approx(other.parameters)


def test_seeds_of_a_configuration_move_together() -> None:
    configurations = np.array([0, 1, 1, 1, 2, 2, 3])
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = np.bincount(resample_rows(configurations, rng), minlength=7)
        assert counts[1] == counts[2] == counts[3] and counts[4] == counts[5]
        assert counts[[0, 1, 4, 6]].sum() == 4, "as many configurations as there are"


def test_copies_of_a_seed_do_not_narrow_the_interval(tables) -> None:
    once = tables.noisy(tables.QUICKSTART)
    copies = [one | {"seed": s, "signature": f"{one['signature']}{s}"} for one in once for s in range(5)]
    widths = []
    for rows in (once, copies):
        low, high = fit(tables.load(rows), bootstrap=400).intervals["alpha"]
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)


def test_resamples_that_cannot_carry_the_law_are_drawn_again(tables) -> None:
    frame = tables.load(tables.noisy([(4, 16, 1, v) for v in (64, 256, 1024)]))
    result = fit(frame, bootstrap=200)
    assert result.bootstrap_redrawn > 5 and result.bootstrap_failed == 0 and len(result.draws) == 200
    assert any("3 configurations are rough" in warning for warning in result.warnings)


def test_failed_resamples_are_counted() -> None:
    jacobian = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    calls = iter(range(1000))
    draws = bootstrap(lambda rows: None if next(calls) % 4 == 0 else np.zeros(2), jacobian, np.arange(3), 40, 0)
    assert (draws.requested, draws.failed, len(draws.theta)) == (40, 10, 30)
    hopeless = bootstrap(lambda rows: np.zeros(2), np.ones((3, 2)), np.arange(3), 5, 0)
    assert (hopeless.failed, len(hopeless.theta)) == (5, 0), "it ends"


def test_what_counts_as_undetermined() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300))
    found = undetermined(np.stack([a, 3 * a + 10, b], axis=1), {"x": (-1, 1), "y": (4, 12), "z": (1, 9)})
    assert found == {"x": "its interval spans zero", "y": "it moves with x"}
    assert undetermined(a[:, None], {"x": (1.0, 20.0)}) == {"x": "its interval spans a factor of 20"}
    assert undetermined(a[:, None], {"x": (np.nan, np.nan)}) == {}


def test_fit_over_survivors_warns(tables) -> None:
    rows = tables.noisy(tables.QUICKSTART)
    lost = [tables.missing((4, 16, 8, v), "failed", "out_of_memory") for v in (4096, 8192)]
    result = fit(tables.load(rows + lost), bootstrap=0)
    assert result.excluded == "2 of 16 cells have no value: 2 failed (out_of_memory)"
    assert any("can be biased" in warning for warning in result.warnings)
    assert "2 failed (out_of_memory)" in result.summary()


def test_axes_that_no_law_sees_are_named(tables) -> None:
    rows = [tables.row(cell, width=32 + 32 * (i % 2)) for i, cell in enumerate(tables.QUICKSTART)]
    result = fit(tables.load(rows), bootstrap=0)
    assert any(warning.startswith("width also vary") for warning in result.warnings)


def test_predict_takes_frames_and_scalars(tables) -> None:
    result = fit(tables.load(tables.noisy(tables.QUICKSTART)), bootstrap=100)
    by_rate = result.predict({"bits_per_pixel": [0.5, 0.5]})
    by_axes = result.predict({"groups": 1, "codebook_size": [256, 256], "downsample": 4})
    for one, two in zip(by_rate, by_axes, strict=True):
        assert one.shape == (2,)
        np.testing.assert_allclose(one, two)
    with pytest.raises(AnalysisError, match="column 'bits_per_pixel' is missing"):
        result.predict({"latent_dim": 8})


def test_saved_fit_is_plain_json(tables, tmp_path: Path) -> None:
    result = fit(tables.load(tables.noisy(tables.QUICKSTART)), bootstrap=0)
    result.save(tmp_path / "fits" / "fit.json")
    read = json.loads((tmp_path / "fits" / "fit.json").read_text())
    assert read == result.to_dict()
    assert read["parameters"]["alpha"]["low"] is None, "no interval without a bootstrap, and no NaN in JSON"
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
        ({"residuals": "huber"}, "residuals must be 'log' or 'linear', got 'huber'"),
        ({"bootstrap": -1}, "bootstrap is a number of resamples"),
        ({"confidence": 95}, "confidence must lie between 0 and 1, got 95"),
        ({"law": "paper_eq14"}, "groups = 1 only"),
    ],
)
def test_bad_options(tables, options: dict, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit(tables.load(tables.noisy(tables.QUICKSTART)), **options)


def test_constant_predictor_is_refused(tables) -> None:
    with pytest.raises(AnalysisError, match="at least 3 distinct bits_per_pixel, got 1"):
        fit(tables.load([tables.row((4, d, 1, 64)) for d in (8, 16, 32, 64)]))
