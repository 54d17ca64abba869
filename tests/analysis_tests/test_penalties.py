"""Sided losses, and tests of a law against a simpler one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, Options, fit, nested_test
from gsq.analysis.fitting.solver import rho

RATES = np.geomspace(0.05, 20, 16)


def above(rows: int = 120) -> pd.DataFrame:
    """Runs that lie above rfid = 0.3 bpp^-0.8, as far as they are undertuned."""
    rng, rate = np.random.default_rng(0), np.geomspace(0.1, 6, rows)
    return pd.DataFrame({"bits_per_pixel": rate, "rfid": 0.3 * rate**-0.8 * np.exp(np.abs(rng.normal(0, 0.3, rows)))})


def drawn(noise: float = 0.05, sharp: float = 0.0, seeds: int = 1, seed: int = 0) -> pd.DataFrame:
    """A power law with a break of the exponent by ``sharp`` at 1."""
    rng, rate = np.random.default_rng(seed), np.repeat(RATES, seeds)
    value = 0.3 * rate**-0.6 * (1 + rate**4) ** (-sharp / 4)
    return pd.DataFrame({"bits_per_pixel": rate, "rfid": value * np.exp(rng.normal(0, noise, len(rate)))})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_so_many_runs_lie_below_a_quantile_law(share: float) -> None:
    frame = above()
    found = fit(frame, loss="quantile", quantile=share, bootstrap=0, starts=8)
    below = float((frame["rfid"] < found.predict(frame)[0]).mean())
    assert below == pytest.approx(share, abs=0.03)
    assert found.parameters["alpha"] == pytest.approx(0.8, abs=0.05) and found.interval_kind == "bootstrap"


def test_sided_losses_lie_near_the_frontier_and_at_one_half_are_the_usual_ones() -> None:
    frame = above()
    usual, frontier = fit(frame, bootstrap=0, starts=8), fit(frame, loss="asymmetric", bootstrap=0, starts=8)
    assert 0.3 < frontier.parameters["c"] < usual.parameters["c"] - 0.02
    half = fit(frame, loss="asymmetric", quantile=0.5, bootstrap=0, starts=8)
    assert half.parameters == pytest.approx(usual.parameters, rel=1e-6)
    huber, median = (fit(frame, loss=loss, bootstrap=0, starts=8, **more) for loss, more in (
        ("huber", {}), ("quantile", {"quantile": 0.5})
    ))  # fmt: skip
    assert median.parameters == pytest.approx(huber.parameters, rel=1e-6)


def test_the_loss_of_a_run_above_the_law_counts_by_the_quantile() -> None:
    residual = np.array([-0.5, 0.5])  # the target above the law, and below it
    value, factor = rho(residual, "asymmetric", 1.0, 0.2)
    assert value == pytest.approx([0.4 * 0.25, 1.6 * 0.25]) and factor == pytest.approx([0.4, 1.6])
    value, _ = rho(residual, "quantile", 1e-9, 0.2)
    assert value[1] / value[0] == pytest.approx(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 0.2}, "belongs to the losses quantile and asymmetric; least_squares has none"),
        ({"loss": "quantile", "quantile": 1.5}, "between 0 and 1; got 1.5"),
        ({"loss": "asymmetric", "delta": 0.1}, "asymmetric has none"),
        ({"loss": "quantile", "intervals": "profile"}, "profile intervals need least_squares"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Options(**options)  # type: ignore[arg-type]


def test_a_break_is_found_where_there_is_one() -> None:
    test = nested_test(fit(drawn(sharp=0.6), "broken_power_law", bootstrap=0, starts=6), simulations=19)
    assert (test.simpler, test.p, test.simulations) == ("power_law_bpp", 0.05, 19) and test.ratio > 3


def test_a_floor_is_not_found_where_there_is_none_and_the_seed_decides_alone() -> None:
    found = fit(drawn(), "power_law_floor", bootstrap=0, starts=8)
    test = nested_test(found, simulations=39)
    assert test.p > 0.05 and test.ratio >= 1 and test == nested_test(found, simulations=39)
    floor = drawn().assign(rfid=drawn()["rfid"] + 0.1)
    assert nested_test(fit(floor, "power_law_floor", bootstrap=0, starts=8), simulations=39).p == 0.025


def test_a_test_of_one_linear_parameter_agrees_with_the_f_test() -> None:
    from scipy.stats import f

    frame = drawn(noise=0.1, seeds=2, seed=5).assign(x=np.random.default_rng(6).normal(0, 1, 32))
    found = fit(frame, "rfid = c * bits_per_pixel^(-alpha) * exp(b * x)", bootstrap=0, starts=8)
    test = nested_test(found, "rfid = c * bits_per_pixel^(-alpha)", simulations=99)
    statistic = (test.ratio - 1) * (32 - 3)
    assert test.p == pytest.approx(float(f.sf(statistic, 1, 29)), abs=0.1)


def test_what_cannot_be_tested_is_said() -> None:
    found = fit(drawn(), bootstrap=0, starts=4)
    with pytest.raises(AnalysisError, match=r"power_law_bpp names no simpler law.*broken_power_law"):
        nested_test(found)
    with pytest.raises(AnalysisError, match="3 parameters and power_law_bpp has 2"):
        nested_test(found, "power_law_floor")
    with pytest.raises(AnalysisError, match="at least 19"):
        nested_test(found, "inverse_bpp", simulations=5)
    with pytest.raises(AnalysisError, match="least_squares, got huber"):
        nested_test(fit(drawn(), loss="huber", bootstrap=0, starts=4), "inverse_bpp")
