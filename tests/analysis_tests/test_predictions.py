"""Predictions against measurements, and the scatter of seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, check_predictions, prediction_figure, seed_figure, seed_noise


def runs(seeds: int = 3, noise: float = 0.05) -> pd.DataFrame:
    """Eight configurations, each twice the rFID of the one before."""
    rng = np.random.default_rng(0)
    rows = [
        {"groups": 2**i, "seed": seed, "rfid": 100 * 2.0**-i * np.exp(rng.normal(0, noise))}
        for i in range(8)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_the_noise_of_seeds_is_found_beside_larger_differences() -> None:
    noise = seed_noise(runs(40))
    assert noise.log_sd == pytest.approx(0.05, rel=0.1) and noise.low < 0.05 < noise.high
    assert (noise.freedom, noise.configurations, noise.resolved) == (8 * 39, 8, 1.0)
    assert noise.spread == pytest.approx(np.log(2) * np.std(range(8), ddof=1), rel=0.05)
    assert seed_noise(runs(3, noise=30.0)).resolved < 0.2, "such noise hides the differences"
    assert "differ by more than noise" in noise.text
    drawn = seed_figure(runs().iloc[:-2], path=None).axes[0]
    assert [len(line.get_xdata()) for line in drawn.lines] == [1, 21], "the last configuration has one seed"
    with pytest.raises(AnalysisError, match="several seeds"):
        seed_noise(runs(1))


def test_predictions_are_checked_against_the_runs_they_name(tmp_path: Path) -> None:
    predicted = pd.DataFrame(
        {"groups": [1, 2, 256], "seed": 0, "predicted": [100.0, 25.0, 1.0], "low": [80.0, 20.0, 0.5], "high": 125.0}
    )
    predicted.loc[1, "high"] = 30.0
    checked = check_predictions(predicted, runs(), ["groups", "seed"])
    assert checked["inside"].tolist() == [True, False, False]
    assert checked["log_error"][1] == pytest.approx(np.log(2), abs=0.2) and np.isnan(checked["measured"][2])
    with pytest.raises(AnalysisError, match="several rows"):
        check_predictions(predicted, runs(), ["groups"])
    prediction_figure(checked.assign(kind="large"), by="kind", path=tmp_path / "checked.png")
    assert (tmp_path / "checked.png").stat().st_size > 1000 and (tmp_path / "checked.svg").is_file()
    with pytest.raises(AnalysisError, match="none of the predicted cells"):
        prediction_figure(checked.iloc[2:])
