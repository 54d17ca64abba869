from __future__ import annotations

import numpy as np
import pytest

from gsq.analysis import fit
from gsq.analysis.fitting.intervals import percentile_interval, resample, undetermined


def test_seeds_of_a_configuration_move_together() -> None:
    configurations = np.array([0, 1, 1, 1, 2, 2, 3])
    for times in resample(configurations, np.random.default_rng(0), 50):
        assert times[1] == times[2] == times[3] and times[4] == times[5]
        assert times[[0, 1, 4, 6]].sum() == 4, "as many configurations as there are"


def test_copies_of_a_seed_do_not_narrow_the_interval(tables) -> None:
    once = tables.noisy(tables.QUICKSTART)
    copies = [one | {"seed": s, "signature": f"{one['signature']}{s}"} for one in once for s in range(5)]
    one, many = (fit(tables.load(rows), bootstrap=400) for rows in (once, copies))
    assert many.profile_intervals["alpha"] == pytest.approx(one.profile_intervals["alpha"], rel=1e-4)
    assert many.bootstrap_intervals["alpha"] == pytest.approx(one.bootstrap_intervals["alpha"], rel=1e-6)
    where = {"bits_per_pixel": 20.0}
    assert many.predict(where)[1][0] == pytest.approx(one.predict(where)[1][0], rel=1e-4)


def test_resamples_that_cannot_carry_the_law_are_drawn_again(tables) -> None:
    frame = tables.load(tables.noisy([(4, 16, 1, v) for v in (64, 256, 1024)]))
    result = fit(frame, bootstrap=200)
    assert result.bootstrap_redrawn > 5 and result.bootstrap_failed == 0 and len(result.draws) == 200
    assert any("3 configurations are rough" in warning for warning in result.warnings)


def test_what_counts_as_undetermined() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300))
    found = undetermined(np.stack([a, 3 * a + 10, b], axis=1), {"x": (-1, 1), "y": (4, 12), "z": (1, 9)})
    assert found == {"x": "its interval spans zero", "y": "it moves with x"}
    assert undetermined(a[:, None], {"x": (1.0, 20.0)}) == {"x": "its interval spans a factor of 20"}
    assert undetermined(a[:, None], {"x": (1.0, np.inf)}) == {"x": "its interval is open above"}
    assert undetermined(a[:, None], {"x": (0.0, 2.0)}) == {"x": "its interval reaches zero"}
    assert undetermined(a[:, None], {"x": (np.nan, np.nan)}) == {}


def test_expanded_percentiles_are_wider_the_fewer_cells_there_are() -> None:
    draws = np.random.default_rng(0).normal(size=20_000)
    plain = percentile_interval(draws, 0.95)
    assert plain == pytest.approx((-1.96, 1.96), abs=0.08)
    wide = percentile_interval(draws, 0.95, (12, 10))
    assert wide == pytest.approx((-2.228 * 1.2**0.5, 2.228 * 1.2**0.5), abs=0.15)
