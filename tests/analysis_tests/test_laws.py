from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from analysis import LAWS, AnalysisError, Law, get_law, paper_law_reason

FRAME = pd.DataFrame(
    {
        "codebook_size": [64, 256, 1024, 8192, 2**18, 2**19],
        "latent_dim": [4, 8, 8, 16, 32, 64],
        "groups": 1,
        "downsample": 8,
        "rfid": 1.0,
    }
)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_jacobian_is_the_derivative(law: Law) -> None:
    x = law.values(FRAME)
    theta = np.random.default_rng(0).normal(size=len(law.parameters))
    step = 1e-6
    numeric = np.stack(
        [
            (law.log_prediction(x, theta + step * e) - law.log_prediction(x, theta - step * e)) / (2 * step)
            for e in np.eye(len(theta))
        ],
        axis=1,
    )
    np.testing.assert_allclose(law.log_jacobian(x, theta), numeric, atol=1e-8)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_prediction_is_vectorised_over_draws(law: Law) -> None:
    x = law.values(FRAME)
    draws = np.random.default_rng(0).normal(size=(3, 2, len(law.parameters)))
    together = law.log_prediction(x, draws)
    assert together.shape == (3, 2, len(FRAME))
    np.testing.assert_allclose(together[1, 1], law.log_prediction(x, draws[1, 1]))
    assert law.natural(draws).shape == draws.shape


def test_internal_parameters_give_the_formulas() -> None:
    v, d, bpp = 8192.0, 32.0, 13 / 64
    frame = pd.DataFrame({"codebook_size": [v], "latent_dim": [d], "bits_per_pixel": [bpp]})
    law, theta = LAWS["paper_eq14"], np.array([-0.9, 2.8, -1.3, 0.2])
    b, alpha, c, beta = law.natural(theta)
    expected = b / np.log2(v) ** alpha + c * d**beta
    np.testing.assert_allclose(np.exp(law.log_prediction(law.values(frame), theta)), [expected])
    law, theta = LAWS["power_law_bpp"], np.array([-0.9, 1.1])
    c, alpha = law.natural(theta)
    np.testing.assert_allclose(np.exp(law.log_prediction(law.values(frame), theta)), [c * bpp**-alpha])


def test_unknown_law_lists_the_valid_ones() -> None:
    with pytest.raises(AnalysisError, match=r"no law 'eq14'.*power_law_bpp \(rfid = .*paper_eq14"):
        get_law("eq14")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"groups": [1, 1, 1, 1, 2, 4]}, "holds for groups = 1 only, got groups 1, 2, 4"),
        ({"downsample": [8, 8, 8, 8, 8, 16]}, "needs one value of it, got 8, 16"),
        ({"latent_dim": 16}, "needs latent_dim to vary, got 16 only"),
        ({"codebook_size": [64, 256] * 3, "latent_dim": [4, 8] * 3}, "at least 6 distinct cells .*, got 2"),
    ],
)
def test_where_equation_14_can_be_fitted(change: dict[str, object], reason: str | None) -> None:
    found = paper_law_reason(FRAME.assign(**change))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found)


def test_power_law_needs_three_rates() -> None:
    frame = FRAME.assign(codebook_size=[64, 256] * 3)
    reason = LAWS["power_law_bpp"].reason_not(frame)
    assert reason is not None and "at least 3 distinct bits_per_pixel, got 2 (0.09375, 0.125)" in reason


def test_missing_column_is_named() -> None:
    with pytest.raises(AnalysisError, match="column 'groups' is missing"):
        paper_law_reason(FRAME.drop(columns="groups"))
    with pytest.raises(AnalysisError, match="column 'bits_per_pixel' is missing"):
        LAWS["power_law_bpp"].reason_not(FRAME.drop(columns="groups"))


def test_nothing_non_positive_under_a_logarithm() -> None:
    with pytest.raises(AnalysisError, match=r"'codebook_size' must be finite and above 1 .* 1 of 6 .* is 1\."):
        LAWS["paper_eq14"].values(FRAME.assign(codebook_size=[64, 256, 1024, 8192, 2**18, 1]))
    with pytest.raises(AnalysisError, match=r"'bits_per_pixel' must be finite and above 0"):
        LAWS["power_law_bpp"].values(pd.DataFrame({"bits_per_pixel": [0.1, -0.1]}))
    with pytest.raises(AnalysisError, match="'downsample' must be positive, got 0"):
        LAWS["power_law_bpp"].values(FRAME.assign(downsample=0))
