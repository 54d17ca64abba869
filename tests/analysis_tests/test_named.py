from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import LAWS, AnalysisError, Law, fit, get_law, paper_law_reason, with_derived

FRAME = pd.DataFrame(
    {
        "codebook_size": [64, 256, 1024, 8192, 2**18, 2**19],
        "latent_dim": [4, 8, 8, 16, 32, 64],
        "groups": 1,
        "downsample": 8,
        "rfid": 1.0,
    }
)
GRID = [
    {"codebook_size": v, "latent_dim": d, "groups": g, "downsample": f}
    for v in (2**6, 2**10, 2**16)
    for d in (4, 16, 64)
    for g, f in ((1, 8),)
]
TRUTH: dict[str, tuple[pd.DataFrame, dict[str, float]]] = {
    "power_law_bpp": (pd.DataFrame({"bits_per_pixel": np.geomspace(0.05, 6, 12)}), {"c": 0.13, "alpha": 0.9}),
    "paper_eq14": (pd.DataFrame(GRID), {"B": 30.0, "alpha": 2.0, "C": 0.05, "beta": 0.6}),
    "inverse_bpp": (pd.DataFrame({"bits_per_pixel": np.geomspace(0.05, 6, 12)}), {"c": 0.14}),
    "multiplicative": (pd.DataFrame(GRID), {"A": 5.6, "a": 1.04, "b": 0.124}),
    "channel_limit": (pd.DataFrame(GRID), {"c": 8.61, "kappa": 2.89}),
    "saturating": (
        pd.DataFrame([one | {"groups": g} for one in GRID for g in (1, 2, 4)]),
        {"c": 0.119, "s": 3.2},
    ),
    "power_law_floor": (
        pd.DataFrame({"bits_per_pixel": np.geomspace(0.05, 6, 12)}),
        {"E": 0.05, "c": 0.13, "alpha": 0.9},
    ),
    "chinchilla": (
        pd.DataFrame([{"parameters": n, "images_seen": d} for n in (1e6, 1e7, 1e9) for d in (1e6, 1e7, 1e8)]),
        {"E": 0.5, "A": 400.0, "a": 0.4, "B": 300.0, "b": 0.35},
    ),
    "broken_power_law": (
        pd.DataFrame({"bits_per_pixel": np.geomspace(0.01, 100, 20)}),
        {"c": 1.0, "alpha": 0.2, "d": 1.0, "s": 0.3, "beta": 0.8},
    ),
    "broken_power_law_2": (
        pd.DataFrame({"bits_per_pixel": np.geomspace(1e-3, 1e3, 30)}),
        {"c": 1.0, "alpha": 0.2, "d": 0.1, "s": 0.3, "beta": 0.8, "k": 100.0, "gamma": -0.7},
    ),
    "data_constrained": (
        pd.DataFrame(
            [
                {"parameters": n, "images_seen": u * e, "unique_images": u}
                for n in (1e7, 1e8, 1e9)
                for u in (1e6, 1e8)
                for e in (1, 4, 16, 64)
            ]
        ),
        {"E": 0.5, "A": 400.0, "a": 0.4, "B": 300.0, "b": 0.35, "r": 15.0},
    ),
    "farseer": (
        pd.DataFrame(
            [
                {"parameters": n, "images_seen": d}
                for n in np.geomspace(1e8, 1e10, 6)
                for d in np.geomspace(1e9, 1e11, 5)
            ]
        ),
        {
            **{"a3": -0.021, "gamma": 0.169, "b3": 0.091, "a2": 88.01, "beta": -0.1, "b2": -6.287},
            **{"a1": -0.124, "alpha": 0.123, "b1": 0.424},
        },
    ),
    "kaplan": (
        pd.DataFrame(
            [{"parameters": n, "images_seen": d} for n in (1e7, 1e8, 1e9, 1e10) for d in (1e8, 1e9, 1e10, 1e11)]
        ),
        {"N_c": 6.4e13, "a": 0.076, "b": 0.103, "D_c": 1.8e13},
    ),
    "precision": (
        pd.DataFrame(
            [
                {"parameters": n, "images_seen": d, "weight_bits": w}
                for n in (1e7, 1e8, 1e9)
                for d in (1e8, 1e9, 1e10)
                for w in (3, 4, 8)
            ]
        ),
        {"E": 0.5, "A": 400.0, "a": 0.4, "gamma": 2.7, "B": 300.0, "b": 0.35},
    ),
    "critical_batch": (
        pd.DataFrame([{"step": s, "batch_size": b} for s in (100, 300, 1000, 3000) for b in (4, 16, 64, 256)]),
        {"E": 0.4, "A": 30.0, "a": 0.5, "B_c": 40.0},
    ),
    "step_approach": (pd.DataFrame({"step": np.arange(1, 13) * 1000}), {"E": 0.5, "A": 2.0, "tau": 3000.0}),
    "prior_rate": (pd.DataFrame({"prior_bits_per_pixel": np.geomspace(0.05, 6, 12)}), {"c": 20.0, "alpha": 0.4}),
    "tradeoff": (
        pd.DataFrame({"prior_bits_per_pixel": np.geomspace(0.05, 6, 12)}),
        {"g": 50.0, "k": 0.2, "b": 0.7},
    ),
    "step_power": (pd.DataFrame({"step": np.arange(1, 13) * 1000}), {"E": 0.4, "A": 30.0, "a": 0.5}),
}


def simulated(name: str, noise: float) -> pd.DataFrame:
    frame, truth = TRUTH[name]
    law = LAWS[name]
    columns = with_derived(frame)
    data = law.form().table({column: columns[column].to_numpy(float) for column in law.columns})
    centre = law.form().centre(data)
    theta = law.form().internal(np.array([truth[parameter] for parameter in law.parameters]), centre)
    value = law.form().both(theta[None], data, centre)[0][0]
    found = value * np.exp(np.random.default_rng(1).normal(0, noise, len(frame)))
    return frame.assign(**{LAWS[name].target: found})


def test_every_named_law_is_tried_here() -> None:
    assert set(TRUTH) == set(LAWS)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("residuals", ["log", "linear"])
def test_known_coefficients_come_back(name: str, residuals: str) -> None:
    result = fit(simulated(name, 0), name, residuals=residuals, bootstrap=0, starts=32)  # type: ignore[arg-type]
    assert result.parameters == pytest.approx(TRUTH[name][1], rel=1e-4)
    assert result.converged_share > 0.01
    if name == "farseer":  # nine parameters, few of which 1 % of noise leaves determined
        return
    noisy = fit(simulated(name, 0.01), name, bootstrap=0, starts=32)
    outside = [
        parameter for parameter, (low, high) in noisy.intervals.items() if not low <= TRUTH[name][1][parameter] <= high
    ]
    assert len(outside) <= 1, "the coverage over many studies is in tests/benchmarks/results/coverage.md"


def test_unknown_law_lists_the_valid_ones() -> None:
    with pytest.raises(AnalysisError, match=r"'eq14'.*power_law_bpp \(rfid = .*paper_eq14.*a formula"):
        get_law("eq14")


def test_a_formula_is_a_law() -> None:
    law = get_law("loss = E + A / N^a", ["N", "loss"], bounds={"E": (0, np.inf)}, starts={"a": (0, 2)})
    assert (law.target, law.columns, law.parameters) == ("loss", ("N",), ("E", "A", "a"))
    assert get_law(law, target="error").target == "error"
    assert get_law("power_law_bpp", target="lpips").formula == "lpips = c * bits_per_pixel^(-alpha)"
    with pytest.raises(AnalysisError, match=r"'Z' .*bounds or a start.*parameter of 'loss"):
        get_law("loss = E + A / N^a", ["N"], bounds={"Z": (0, 1)})
    with pytest.raises(AnalysisError, match=r"bounds of E .*: 2 to 1"):
        get_law("E + A / N^a", ["N"], bounds={"E": (2, 1)})
    with pytest.raises(AnalysisError, match=r"bounds of E .*: 2 to 1"):
        get_law("E + A / N^a", ["N"], bounds={"E": (2, "min")}).limits(np.ones(3))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"groups": [1, 1, 1, 1, 2, 4]}, "holds for groups = 1 only, got groups 1, 2, 4"),
        ({"downsample": [8, 8, 8, 8, 8, 16]}, "downsample.*one value.*, got 8, 16"),
        ({"codebook_size": 64, "latent_dim": 16}, r"constant in these rows \(codebook_size = 64, latent_dim = 16\)"),
        ({"codebook_size": [64, 256] * 3, "latent_dim": [4, 8] * 3}, "at least 5 distinct codebook_size and .*, got 2"),
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
    two = FRAME.assign(codebook_size=[64, 256] * 3)
    assert LAWS["power_law_bpp"].reason_not(two) is None, "replicates count"
    reason = LAWS["power_law_bpp"].reason_not(two[:2])
    assert reason is not None
    assert "2 parameters (c, alpha) and needs at least 3 distinct bits_per_pixel (2 " in reason
    assert "where there are replicates), got 2 (0.09375, 0.125)" in reason


def test_a_law_must_use_the_axis_that_varies() -> None:
    law = Law("channels", "A * latent_dim^b")
    reason = law.reason_not(FRAME.assign(latent_dim=16))
    assert reason is not None
    assert "(latent_dim = 16)" in reason and "vary in codebook_size" in reason


def test_an_axis_that_is_constant_cannot_be_told_from_the_amplitude() -> None:
    frame = FRAME.assign(latent_dim=16, rfid=[5.0, 4, 3, 2, 1.5, 1.2])
    result = fit(frame, "A * log2(codebook_size)^a * latent_dim^b", bootstrap=0)
    assert result.confounded == (("A", "b"),) and "a" not in result.undetermined
    assert any(
        "cannot tell A, b apart" in w and "vary codebook_size and latent_dim indep" in w for w in result.warnings
    )
    there, elsewhere = result.predict({"codebook_size": [256, 256], "latent_dim": [16, 32]})[2]
    assert np.isfinite(there) and np.isinf(elsewhere)


def test_missing_column_is_named() -> None:
    with pytest.raises(AnalysisError, match="column 'bits_per_pixel' is missing"):
        LAWS["power_law_bpp"].reason_not(FRAME.drop(columns="groups"))


def test_nothing_non_positive_under_a_logarithm() -> None:
    with pytest.raises(AnalysisError, match=r"logarithm of log2\(codebook_size\).* 1 of 6 .* codebook_size = 1\."):
        LAWS["paper_eq14"].values(FRAME.assign(codebook_size=[64, 256, 1024, 8192, 2**18, 1]))
    with pytest.raises(AnalysisError, match=r"logarithm of bits_per_pixel.* above 0; 1 of 2 rows"):
        LAWS["power_law_bpp"].values(pd.DataFrame({"bits_per_pixel": [0.1, -0.1]}))
    with pytest.raises(AnalysisError, match="'downsample' must be positive, got 0"):
        LAWS["power_law_bpp"].values(FRAME.assign(downsample=0))
    with pytest.raises(AnalysisError, match=r"1 / x, .*finite number; 1 of 3 rows"):
        get_law("a + b * (1 / x)", ["x"]).values(pd.DataFrame({"x": [1.0, 0.0, 2.0]}))


@pytest.mark.parametrize("formula", ["loss = E + A / N^a + loss", "loss = E[loss] + A / N^a"])
def test_a_law_does_not_predict_a_column_from_itself(formula: str) -> None:
    with pytest.raises(AnalysisError, match="predict 'loss' from 'loss' itself"):
        get_law(formula, ["N", "loss"])
    with pytest.raises(AnalysisError, match="predict 'N' from 'N' itself"):
        get_law("loss = E + A / N^a", ["N", "loss"], target="N")


@pytest.mark.parametrize("pair", [(0, None), ("0", "1"), (0, 1, 2), 0, None])
def test_bounds_and_starts_are_pairs_of_numbers(pair: object) -> None:
    for what in ("bounds", "starts"):
        with pytest.raises(AnalysisError, match=f"the {what} of E are two numbers.*got {re.escape(repr(pair))}"):
            Law("mine", "rfid = E + A / N^a", known=("N",), **{what: {"E": pair}})
