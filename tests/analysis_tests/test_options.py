from __future__ import annotations

import pytest

from gsq.analysis import AnalysisError, DesignOptions, Options, fit
from gsq.analysis.fitting.options import changed


def test_an_option_that_does_not_exist_is_named_with_the_likely_one(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART))
    assert fit(frame, options=Options(bootstrap=0, loss="huber"), loss="cauchy").options == Options(
        bootstrap=0, loss="cauchy"
    )
    with pytest.raises(AnalysisError, match=r"'los' .*'loss'\?"):
        fit(frame, los="huber")
    with pytest.raises(AnalysisError, match="until must be"):
        changed(DesignOptions(), {"until": 0.0})
