"""Replays in linear residuals, of outcomes that may be negative."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, replay

LAW = "loss = E + A * N^(-a)"


def study(shift: float) -> pd.DataFrame:
    cells = pd.DataFrame({"N": 2.0 ** np.arange(12)})
    noise = np.random.default_rng(0).normal(0, 0.005, 12)
    return cells.assign(loss=2.0 * cells["N"] ** -0.5 + noise - shift, flops=cells["N"])


def test_errors_of_linear_residuals_do_not_depend_on_where_zero_is() -> None:
    words = {"orders": 5, "starts": 4, "residuals": "linear", "start": range(4)}
    above, below = (replay(study(shift), LAW, "flops", **words) for shift in (-0.5, 1.0))  # type: ignore[arg-type]
    assert (study(1.0)["loss"] < 0).any() and above.order == below.order
    assert np.allclose(above.error, below.error, atol=1e-5) and below.error[-1] < 1e-6
    goal = below.full.problem.predict(below.full.theta[None])[0]
    assert below.error[0] > 0 and np.ptp(goal) == pytest.approx(2.0, rel=0.1)


def test_logarithms_refuse_a_negative_outcome_with_advice_that_works() -> None:
    with pytest.raises(AnalysisError, match="residuals"):
        replay(study(1.0), LAW, "flops", range(4))
