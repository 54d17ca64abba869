"""What a fit refuses before it starts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, fit


def test_a_constant_target_is_no_law() -> None:
    frame = pd.DataFrame({"x": np.arange(1.0, 9), "y": 5.0, "z": 0.1 + 0.2 + 1e-17 * np.arange(8)})
    for target in ("y", "z"):
        with pytest.raises(AnalysisError, match=rf"{target} is .* in all 8 rows: nothing varies"):
            fit(frame, f"{target} = A * x^a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": 1e-200}, "y has values near .e-200, .* another unit"),
        ({"y": 1e200}, r"y has values near .*e\+200, .* another unit"),
        ({"x": 1e300}, r"x has values near .*e\+300, .* another unit"),
        ({"x": 1e-300}, "x has values near .*e-300, .* another unit"),
    ],
)
def test_numbers_whose_squares_overflow_are_refused(change: dict[str, float], message: str) -> None:
    frame = pd.DataFrame({"x": np.arange(1.0, 9), "y": 1 + np.exp(-np.arange(8.0))})
    for name, factor in change.items():
        frame[name] *= factor
    for residuals in ("log", "linear"):
        with pytest.raises(AnalysisError, match=message):
            fit(frame, "y = E + A * exp(-k * x)", residuals=residuals, bootstrap=0)  # type: ignore[arg-type]
    if "x" in change:
        with pytest.raises(AnalysisError, match=r"A .*numbers .* divide that column"):
            fit(frame, "y = A * x^(-2 * a)", bootstrap=0, start_ranges={"a": (1, 2)}, bounds={"a": (0.6, 9)})


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
        ({"residuals": "huber"}, "residuals .*'log' or 'linear', got 'huber'"),
        ({"loss": "absolute"}, "loss must be one of least_squares, huber, cauchy, .*'absolute'"),
        ({"delta": 0.1}, "delta .*huber, cauchy.*; least_squares"),
        ({"loss": "huber", "delta": -1}, "delta .*positive.*got -1"),
        ({"loss": "cauchy", "intervals": "profile"}, "profile intervals need least_squares"),
        ({"intervals": "wald"}, "intervals .*'profile', 'bootstrap' or 'none', got 'wald'"),
        ({"noise": -1}, "noise .*above 0; got -1"),
        ({"bootstrap": -1}, "bootstrap .*0 for none; got -1"),
        ({"starts": 0}, "starts must be at least 1"),
        ({"confidence": 95}, "confidence must lie between 0 and 1, got 95"),
        ({"law": "paper_eq14"}, "groups = 1 only"),
        ({"weights": "trust"}, "column 'trust' is missing"),
        ({"weights": "seed"}, "weights .*above 0; 14 of 14 rows of 'seed'"),
        ({"target": "lpips"}, "none of the 14 cells has a value: 14 done but not evaluated"),
        ({"bounds": {"alpha": (2, 1)}}, "the bounds of alpha leave nothing"),
    ],
)
def test_bad_options(tables, options: dict, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit(tables.load(tables.noisy(tables.QUICKSTART)), **options)


def test_constant_predictor_is_refused(tables) -> None:
    with pytest.raises(AnalysisError, match=r"only bits_per_pixel, constant .*bits_per_pixel = .*vary in latent_dim"):
        fit(tables.load([tables.row((4, d, 1, 64)) for d in (8, 16, 32, 64)]))


def test_a_target_below_zero_has_no_logarithm() -> None:
    frame = pd.DataFrame({"x": np.arange(6.0) + 1, "y": [3, 2, 1, 0, -1, -2]})
    with pytest.raises(AnalysisError, match=r"log residuals .*y above 0; 3 of 6 rows .* 0\."):
        fit(frame, "y = a + b * x", bootstrap=0)
    assert fit(frame, "y = a + b * x", residuals="linear", bootstrap=0).parameters == pytest.approx({"a": 4, "b": -1})
