"""What predictions become when a fit is made otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gsq import analysis
from gsq.analysis.checking.sensitivity import sensitivity

QUICK = {"bootstrap": 0, "starts": 16}
LAW = "loss = E + A / N^a"


def runs(noise: float = 0.01) -> pd.DataFrame:
    size = np.geomspace(1e6, 1e9, 15)
    return pd.DataFrame(
        {"N": size, "loss": (1 + 300 / size**0.35) * np.exp(np.random.default_rng(0).normal(0, noise, 15))}
    )


@pytest.fixture(scope="module")
def fit() -> analysis.Fit:
    return analysis.fit(runs(), LAW, bounds={"E": (0, np.inf), "A": (0, np.inf)}, **QUICK)


def test_each_change_is_the_fit_that_it_names(fit: analysis.Fit) -> None:
    found = sensitivity(fit)
    assert found.at == {"N": pytest.approx(1e9)}
    assert found.value == pytest.approx(fit.predict({"N": 1e9})[0][0])
    none, top, fewer, huber = found.instead.values()
    frame = fit.rows
    plain = analysis.fit(frame, "loss = A / N^a", **QUICK)
    assert none == pytest.approx(plain.predict({"N": 1e9})[0][0], rel=1e-6)
    end = min(fit.intervals["E"][1], frame["loss"].min())
    fixed = analysis.fit(frame, LAW, bounds={"E": (end, end * (1 + 1e-9)), "A": (0, np.inf)}, **QUICK)
    assert top == pytest.approx(fixed.predict({"N": 1e9})[0][0], rel=1e-5)
    rest = analysis.fit(frame[frame["N"] > frame["N"].sort_values().iloc[2]], LAW, bounds=fit.law.bounds, **QUICK)
    assert fewer == pytest.approx(rest.predict({"N": 1e9})[0][0], rel=1e-5)
    robust = analysis.fit(frame, LAW, bounds=fit.law.bounds, loss="huber", **QUICK)
    assert huber == pytest.approx(robust.predict({"N": 1e9})[0][0], rel=1e-3)


def test_it_stands_in_the_card_and_its_json(fit: analysis.Fit) -> None:
    card = analysis.report_card(fit)
    (line,) = [one for one in card.text().splitlines() if "with the Huber loss" in one]
    assert "with E = 0" in line and "upper limit" in line and "smallest fifth" in line
    saved = card.to_dict()["sensitivity"]
    assert len(saved["instead"]) == 4 and saved["at"] == card.sensitivity.at


def test_laws_without_a_floor_and_robust_fits_have_what_there_is() -> None:
    fit = analysis.fit(runs(), "loss = A / N^a", loss="huber", **QUICK)
    assert list(sensitivity(fit).instead) == ["without the smallest fifth of the cells", "with least squares"]


def test_what_cannot_be_refitted_says_so() -> None:
    frame = runs().iloc[[0, 5, 10]]
    fit = analysis.fit(frame, LAW, bounds={"E": (0, np.inf), "A": (0, np.inf)}, **QUICK)
    found = sensitivity(fit)
    assert np.isnan(found.instead["without the smallest fifth of the cells"])
    assert "cannot be refitted without" in found.text("loss")
    assert replace(found).to_dict()["instead"]["without the smallest fifth of the cells"] is None
