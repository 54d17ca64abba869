"""What the paper's numbers must give, from the files of results/reference."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import LAWS, Law, Options, collapse, compare_laws, extrapolate, fit, load_results
from gsq.analysis.checking.compare import Comparison
from gsq.sweeps.schema.columns import write_table

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
PAPER = LAWS["paper_eq14"]
FLOOR = Law(
    "paper_floor",
    "rfid = E + B / log2(codebook_size)^alpha + C * latent_dim^beta",
    bounds={"E": (0, np.inf), **PAPER.bounds},
    starts=PAPER.starts,
)
INVERSE_BITS = Law("inverse_bits", "rfid = c / log2(codebook_size) * (latent_dim / 16)^b")
POWER = Law(
    "saturating_power",
    "rfid = c * downsample^2 * (group_dim / 16)^b / (groups * min(log2(codebook_size), s * group_dim))",
    bounds=LAWS["saturating"].bounds,
    starts=LAWS["saturating"].starts,
)
FREE = Law("free", "rfid = A * downsample^a * groups^b * log2(codebook_size)^c * group_dim^d")


def expected() -> list[dict[str, str]]:
    with (REFERENCE / "laws.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(fig4: pd.DataFrame, joint: pd.DataFrame) -> dict[str, Comparison]:
    bits = np.log2(joint["codebook_size"].astype(float)) / joint["group_dim"]
    quick = {"bootstrap": 0, "starts": 32}
    return {
        "fig4": compare_laws(
            fig4,
            [PAPER, FLOOR, "channel_limit", INVERSE_BITS, "multiplicative"],
            Options(residuals="linear", **quick),  # type: ignore[arg-type]
        ),
        "joint": compare_laws(joint, ["saturating", POWER, FREE, "inverse_bpp"], Options(**quick)),  # type: ignore[arg-type]
        "core": compare_laws(joint[bits <= 2.4], ["inverse_bpp"], Options(**quick)),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("line", expected(), ids=lambda line: f"{line['points']}-{line['law']}-{line['quantity']}")
def test_the_papers_points_give_the_known_fits(compared: dict[str, Comparison], line: dict[str, str]) -> None:
    comparison = compared[line["points"]]
    at = [one.law.name for one in comparison.fits].index(line["law"])
    one, held = comparison.fits[at], comparison.held_out[at]
    found = {
        **one.parameters,
        "rmse": one.rmse,
        "log_rmse": one.log_rmse,
        "aicc": one.aicc,
        "leave_one_out": held.one_out.of(one.residuals == "log"),
        "largest_codebook": held.largest["codebook_size"].rmse if "codebook_size" in held.largest else np.nan,
    }
    assert found[line["quantity"]] == pytest.approx(float(line["value"]), abs=float(line["tolerance"]))


def test_the_papers_parameters_are_not_determined(fig4: pd.DataFrame) -> None:
    result = fit(fig4, PAPER, residuals="linear", bootstrap=300)
    assert set(result.undetermined) == {"B", "alpha", "C", "beta"}
    assert "spans a factor of" in result.undetermined["B"] and result.undetermined["alpha"] == "it moves with B"
    assert "412.6" not in result.formula() and "not determined by these data" in result.summary()
    for kind in (result.profile_intervals, result.bootstrap_intervals):
        low, high = kind["B"]
        assert low < 25 and high > 1e5
    # 4e11 is the condition number that the notes give for the formula's own parameters.
    assert result.condition[0] == pytest.approx(4e11, rel=0.1) and result.condition[1] < 1e4
    assert result.converged_share > 0.95
    central, low, high = result.predict({"latent_dim": 16, "codebook_size": 2**19})
    assert central[0] == pytest.approx(0.372, abs=0.001)
    assert (low[0], high[0]) == pytest.approx((0.354, 0.387), abs=0.003)


def test_simpler_laws_win_and_their_intervals_are_of_use(compared: dict[str, Comparison], fig4: pd.DataFrame) -> None:
    comparison = compared["fig4"]
    order = [one.law.name for one in comparison.fits]
    assert order == ["channel_limit", "inverse_bits", "multiplicative", "paper_eq14", "paper_floor"]
    assert comparison.weights[0] > 0.8 and sum(comparison.weights) == pytest.approx(1)
    (floor,) = [one for one in comparison.fits if one.law is FLOOR]
    assert floor.at_bound == ("E",) and any("ended at a bound" in text for text in floor.warnings)
    multiplicative = next(one for one in comparison.fits if one.law.name == "multiplicative")
    assert multiplicative.intervals["a"] == pytest.approx((0.93, 1.14), abs=0.02)
    assert multiplicative.intervals["b"] == pytest.approx((0.103, 0.144), abs=0.002)
    assert not multiplicative.undetermined


def test_a_tenth_of_the_seed_noise_decides_whether_separable_laws_are_rejected(fig4: pd.DataFrame) -> None:
    for law in ("multiplicative", INVERSE_BITS, PAPER):
        noisy, quiet = (fit(fig4, law, noise=noise, bootstrap=0).lack_of_fit for noise in (0.03, 0.013))
        assert noisy is not None and quiet is not None and noisy.p is not None and quiet.p is not None
        assert noisy.p > 0.05 > quiet.p
        assert 0.013 < noisy.rejected_below < 0.03


def test_bits_per_pixel_absorb_the_axes_below_the_limit_of_a_dimension(joint: pd.DataFrame) -> None:
    bits = np.log2(joint["codebook_size"].astype(float)) / joint["group_dim"]
    core = joint[bits <= 2.4]
    assert len(core) == 34 and core["bits_per_pixel"].max() / core["bits_per_pixel"].min() == pytest.approx(
        64, rel=0.02
    )
    best, *others = collapse(core, axes=("downsample", "groups", "codebook_size"))
    assert best.derived == "bits_per_pixel" and best.absorbs
    assert not any(one.absorbs for one in others)
    for axis, exponent in {"downsample": 2, "groups": -1, "log2(codebook_size)": -1}.items():
        value, half = best.exponents[axis]
        assert value == pytest.approx(exponent, abs=max(half, 0.1))
        value, half = best.left_over[axis]
        assert value == pytest.approx(0, abs=1.1 * half)
    # The channels are not wholly absorbed.
    first = collapse(core)[0]
    value, half = first.left_over["latent_dim"]
    assert first.derived == "bits_per_pixel" and not first.absorbs and value - half > 0.05


def test_the_parquet_is_what_the_csv_builds(tmp_path: Path) -> None:
    built = runpy.run_path(str(REFERENCE / "build.py"))
    write_table(built["rows"](REFERENCE / "gsq_paper.csv"), tmp_path / "again.parquet")
    committed, again = load_results(REFERENCE / "gsq_paper.parquet"), load_results(tmp_path / "again.parquet")
    assert set(committed) == set(again), "columns that came with the schema read as null"
    pd.testing.assert_frame_equal(committed[list(again)], again)
    assert len(committed) == 76 and committed["rfid"].notna().all()
    assert committed["message"].str.contains("0.508%").sum() == 1, "misprints are noted on their rows"


def test_the_second_half_of_a_training_is_predicted_from_the_first() -> None:
    found = extrapolate(load_results(REFERENCE.parent / "study-curves.parquet"))
    assert found.table["signature"].nunique() == 2 and len(found.table) == 20
    assert found.error == pytest.approx(0.068, abs=0.005)
    assert found.inside == 1.0
