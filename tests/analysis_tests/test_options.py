from __future__ import annotations

import pandas as pd
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


@pytest.mark.parametrize("given", [{"starts": 4.5}, {"starts": True}, {"bootstrap": "20"}, {"confidence": "0.9"}])
def test_an_option_of_another_type_is_named(given: dict[str, object]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(AnalysisError, match=f"{name} must be a (whole )?number, got {value!r}"):
        changed(Options(), given)


def test_tables_and_settings_that_are_none() -> None:
    frame = pd.DataFrame({"N": [10.0, 20, 40, 80], "D": [1.0, 2, 1, 2], "loss": [5.0, 4, 3.2, 2.6]})
    for wrong in (frame["loss"], frame.to_dict("list"), [1, 2]):
        with pytest.raises(AnalysisError, match=r"must be a pandas DataFrame, got \w+\.\w+;.*to_pandas"):
            fit(wrong, "loss = A * N^a")
    law = fit(frame, "loss = A * N^a * D^b", bootstrap=0, starts=4)
    assert len(law.predict({"N": [10, 20], "D": 1})[0]) == 2
    with pytest.raises(AnalysisError, match="N 2, D 3"):
        law.predict({"N": [10, 20], "D": [1, 2, 3]})
