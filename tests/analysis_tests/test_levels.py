"""Parameters with a value for each level of a column, and what the levels are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import (
    AnalysisError,
    Fit,
    arms,
    arms_figure,
    fit,
    get_law,
    held_out,
    random_effects,
    rate_panel,
    report_card,
    rollout,
)

HEIGHTS = {"gsq": 0.13, "simvq": 0.2, "vq": 0.3}
LAW = "rfid = A[quantizer] * bits_per_pixel^(-alpha)"


def table(noise: float = 0.03, seed: int = 0, floor: float = 0.0, rates: int = 8) -> pd.DataFrame:
    """Three quantizers of one exponent, 0.8."""
    rng, rate = np.random.default_rng(seed), np.geomspace(0.1, 6, rates)
    parts = [
        pd.DataFrame({"quantizer": name, "bits_per_pixel": rate, "rfid": floor + height * rate**-0.8})
        for name, height in HEIGHTS.items()
    ]
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(rfid=frame["rfid"] * np.exp(noise * rng.standard_normal(len(frame))))


@pytest.fixture(scope="module")
def found() -> Fit:
    return fit(table(), LAW, bootstrap=100, starts=8)


def test_each_level_has_a_value_and_the_exponent_is_shared(found: Fit) -> None:
    assert list(found.parameters) == ["A[gsq]", "A[simvq]", "A[vq]", "alpha"]
    assert found.law.levels == {"quantizer": ("gsq", "simvq", "vq")}
    alone = fit(
        pd.get_dummies(table(), columns=["quantizer"], dtype=float),
        "rfid = (A * quantizer_gsq + B * quantizer_simvq + C * quantizer_vq) * bits_per_pixel^(-alpha)",
        bootstrap=0,
        starts=8,
    )
    assert list(found.parameters.values()) == pytest.approx(list(alone.parameters.values()), rel=1e-6)
    for one, other in zip(found.intervals.values(), alone.intervals.values(), strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_predictions_bootstrap_cards_and_files_know_levels(found: Fit, tmp_path: Path) -> None:
    central, low, high = found.predict({"bits_per_pixel": 1.0, "quantizer": ["gsq", "vq"]})
    assert central == pytest.approx([found.parameters["A[gsq]"], found.parameters["A[vq]"]])
    assert (low < central).all() and (central < high).all()
    assert found.draws.shape == (100, 4)
    assert np.isfinite(held_out(found).one_out.log_rmse)
    assert report_card(found).to_dict()["fit"] == found.to_dict()
    found.save(tmp_path / "fit.json")
    document = pd.read_json(tmp_path / "fit.json", typ="series")
    assert document["levels"] == {"quantizer": ["gsq", "simvq", "vq"]} and "A[gsq]" in document["parameters"]
    assert "{gsq: 0.1" in found.formula() and found.formula().count("[quantizer]") == 1
    with pytest.raises(AnalysisError, match=r"quantizer = fsq.*gsq, simvq, vq"):
        found.predict({"bits_per_pixel": 1.0, "quantizer": "fsq"})
    with pytest.raises(AnalysisError, match="'quantizer' is missing"):
        found.predict({"bits_per_pixel": 1.0})


def test_an_indexed_exponent_and_an_indexed_floor() -> None:
    frame = table(noise=0)
    frame["rfid"] += frame["quantizer"].map({"gsq": 0.01, "simvq": 0.02, "vq": 0.03})
    result = fit(
        frame, "rfid = E[quantizer] + A[quantizer] * bits_per_pixel^(-alpha[quantizer])", bounds={"E": (0, np.inf)},
        bootstrap=0, starts=16,
    )  # fmt: skip
    truth = {f"A[{name}]": height for name, height in HEIGHTS.items()}
    truth |= {f"alpha[{name}]": 0.8 for name in HEIGHTS} | {"E[gsq]": 0.01, "E[simvq]": 0.02, "E[vq]": 0.03}
    assert result.parameters == pytest.approx(truth, rel=1e-4)


def test_levels_may_be_numbers_or_need_backticks_and_bounds_name_one_level() -> None:
    frame = table().rename(columns={"quantizer": "my quantizer"})
    frame["codebooks"] = frame["my quantizer"].map({"gsq": 4.0, "simvq": 16.0, "vq": 8.0})
    number = fit(frame, "rfid = A[codebooks] * bits_per_pixel^(-alpha)", bootstrap=0, starts=4)
    assert list(number.parameters) == ["A[4]", "A[8]", "A[16]", "alpha"]
    quoted = fit(
        frame, "rfid = A[`my quantizer`] * bits_per_pixel^(-alpha)", bounds={"A[vq]": (0, 0.2)}, bootstrap=0, starts=4
    )
    assert quoted.at_bound == ("A[vq]",) and quoted.parameters["A[vq]"] == pytest.approx(0.2)
    with pytest.raises(AnalysisError, match=r"A\[fsq\] was given bounds.*A\[gsq\]"):
        fit(frame, "rfid = A[`my quantizer`] / bits_per_pixel", bounds={"A[fsq]": (0, 1)})


@pytest.mark.parametrize(
    ("law", "change", "message"),
    [
        ("rfid = A[quantiser] * bits_per_pixel^(-a)", {}, "no column 'quantiser'; did you mean quantizer"),
        (LAW, {"quantizer": "vq"}, r"every row has quantizer = vq; leave out \[quantizer\]"),
        (LAW, {"quantizer": ["gsq"] + ["vq"] * 23}, "of quantizer = gsq there is one row.*add rows"),
        ("rfid = A[quantizer] * A / bits_per_pixel", {}, "has both"),
        ("rfid = bits_per_pixel[quantizer] * A", {}, "not a parameter"),
        ("rfid = A[0] * bits_per_pixel", {}, r"A\[0\]' is not allowed.*A\[quantizer\]"),
        ("rfid = A[quantizer] * bits_per_pixel^(-Z1[vq])", {}, "no column 'vq'"),
    ],
)
def test_bad_levels_are_one_clear_error(law: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        fit(table().assign(**change), law, bootstrap=0)


def test_rows_without_a_level_are_left_out() -> None:
    frame = table()
    frame.loc[3, "quantizer"] = None
    result = fit(frame, LAW, bootstrap=0, starts=4)
    assert result.n_rows == 23 and "1 without quantizer" in result.excluded


def test_a_factor_is_the_ratio_of_amplitudes_to_the_power_of_one_over_the_exponent(found: Fit) -> None:
    result = arms(found, "quantizer", "vq")
    by_arm = {one.arm: one for one in result.worths}
    assert set(by_arm) == {"gsq", "simvq"}
    p = found.parameters
    for arm, one in by_arm.items():
        assert one.factor == pytest.approx((p["A[vq]"] / p[f"A[{arm}]"]) ** (1 / p["alpha"]), rel=1e-9)
        assert one.resource == "bits_per_pixel" and one.at == {}
        assert one.interval == one.profile and one.bootstrap == pytest.approx(one.profile, rel=0.05)
        assert one.factor == pytest.approx((0.3 / HEIGHTS[arm]) ** (1 / 0.8), rel=0.05)
        assert f"{arm} is worth {one.factor:.3g} [" in one.text and "times the bits_per_pixel of vq" in one.text
    assert result.shared is not None and result.shared.p > 0.01 and result.shared.freedom == (2, 18)


def test_the_profile_of_a_factor_is_that_of_the_factor_as_a_parameter(found: Fit) -> None:
    frame = table().assign(**{name: (table()["quantizer"] == name).astype(float) for name in ("gsq", "simvq")})
    own = fit(
        frame, "rfid = A * (bits_per_pixel * k1^gsq * k2^simvq)^(-alpha)",
        bounds={"k1": (0, np.inf), "k2": (0, np.inf)}, start_ranges={"k1": (0.5, 5), "k2": (0.5, 5)},
        bootstrap=0, starts=16,
    )  # fmt: skip
    for name, arm in (("k1", "gsq"), ("k2", "simvq")):
        one = next(one for one in arms(found, "quantizer", "vq").worths if one.arm == arm)
        assert one.factor == pytest.approx(own.parameters[name], rel=1e-5)
        assert one.profile == pytest.approx(own.profile_intervals[name], rel=1e-3)


def test_exponents_that_differ_are_found_and_the_place_is_named() -> None:
    frame = table(noise=0.02)
    frame.loc[frame["quantizer"] == "vq", "rfid"] *= frame["bits_per_pixel"] ** 0.3
    together = arms(fit(frame, LAW, bootstrap=0, starts=8), "quantizer", "vq")
    assert together.shared is not None and together.shared.p < 1e-6 and together.shared.parameters == ("alpha",)
    apart = arms(
        fit(frame, "rfid = A[quantizer] * bits_per_pixel^(-alpha[quantizer])", bootstrap=0, starts=8), "quantizer", "vq"
    )
    assert apart.shared is not None and apart.shared.p == pytest.approx(together.shared.p, rel=1e-3)
    assert all(one.at["bits_per_pixel"] == pytest.approx(np.median(frame["bits_per_pixel"])) for one in apart.worths)


def test_an_arm_that_another_one_never_reaches_is_worth_no_finite_factor() -> None:
    frame = table(noise=0)
    frame["rfid"] += frame["quantizer"].map({"gsq": 0.0, "simvq": 0.2, "vq": 1.0})
    result = fit(frame, "rfid = E[quantizer] + A[quantizer] * bits_per_pixel^(-alpha)", bootstrap=0, starts=16)
    gsq = next(one for one in arms(result, "quantizer", "vq").worths if one.arm == "gsq")
    assert gsq.factor == np.inf and "no amount of bits_per_pixel brings vq" in gsq.text
    assert arms(result, "quantizer", "vq").to_dict()["worths"][0]["factor"] is None  # type: ignore[index]


def test_arms_refuse_what_they_cannot_compare(found: Fit) -> None:
    with pytest.raises(AnalysisError, match=r"no level 'fsq'.*gsq, simvq, vq"):
        arms(found, "quantizer", "fsq")
    with pytest.raises(AnalysisError, match=r"each study.*\[study\]"):
        arms(found, "study")
    with pytest.raises(AnalysisError, match="does not read 'steps'"):
        arms(found, "quantizer", resource="steps")
    one_rate = table().assign(bits_per_pixel=1.0)
    with pytest.raises(AnalysisError, match=r"depends on alpha, .*no factor"):
        arms(fit(one_rate, LAW, bootstrap=0, starts=4), "quantizer")
    with pytest.raises(AnalysisError, match="three values or more"):
        arms(fit(table().assign(study="a"), LAW, bootstrap=0, starts=4), "quantizer", random="study")


def test_random_effects_of_balanced_studies_are_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(3)
    frame = table(noise=0.03, rates=10).assign(study=list("abcde") * 6)
    frame["rfid"] *= np.exp(frame["study"].map(dict(zip("abcde", 0.2 * rng.standard_normal(5), strict=True))))
    result = fit(frame, LAW, bootstrap=0, starts=4)
    effects = random_effects(result, "study")
    assert effects.spreads["run"] == pytest.approx(0.03, rel=0.4) and 0.08 < effects.spreads["study"] < 0.5
    plain = arms(result, "quantizer", "vq").worths[0]
    better = arms(result, "quantizer", "vq", random="study").worths[0]
    # Each study has every arm, so that its offset cancels.
    assert better.interval[1] / better.interval[0] < plain.interval[1] / plain.interval[0]
    nothing = random_effects(
        fit(table(noise=0.03, rates=10).assign(study=list("abcde") * 6), LAW, bootstrap=0), "study"
    )
    assert nothing.spreads["study"] < 0.02


def test_figures_have_a_curve_for_each_arm(found: Fit, tmp_path: Path) -> None:
    assert [curve.law for curve in rate_panel(table(), [found]).curves] == [f"quantizer {name}" for name in HEIGHTS]
    figure = arms_figure(arms(found, "quantizer", "vq"), tmp_path / "arms.png")
    assert (tmp_path / "arms.png").is_file() and (tmp_path / "arms.svg").is_file()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(HEIGHTS)
    assert len(figure.axes[1].get_yticks()) == 2


def test_a_roll_out_predicts_each_size_from_the_smaller_ones(found: Fit) -> None:
    result = rollout(found, "bits_per_pixel")
    assert list(result.table["fitted"].unique()) == [6, 9, 12, 15, 18, 21] and len(result.skipped) == 1
    assert result.error < 0.1 and result.inside > 0.7
    with pytest.raises(AnalysisError, match="takes one value"):
        rollout(fit(table().assign(size=3), LAW, bootstrap=0, starts=4), "size")


def test_bounds_of_a_letter_hold_for_its_levels() -> None:
    law = get_law(LAW, list(table().columns), bounds={"A": (0, np.inf)}, starts={"A[vq]": (0.1, 1)})
    bound = law.at_levels(table())
    assert set(bound.bounds) == {"A[gsq]", "A[simvq]", "A[vq]"} and set(bound.starts) == {"A[vq]"}
    assert law.takes("A") and law.takes("alpha") and not law.takes("B")


def test_intervals_of_a_factor_hold_the_truth() -> None:
    """A small part of tests/benchmarks/coverage_arms.py."""
    held = []
    for seed in range(16):
        two = table(seed=seed, rates=5).query("quantizer != 'gsq'").reset_index(drop=True)
        one = arms(fit(two, LAW, bootstrap=0, starts=2), "quantizer", "vq").worths[0]
        held.append(one.profile[0] < (0.3 / 0.2) ** (1 / 0.8) < one.profile[1])
    assert sum(held) >= 13
