"""Replays of finished studies at several budgets, against held-out outcomes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, BudgetReplay, cheapest_runs, replay_budgets
from gsq.analysis.laws.named import Law

LAW = "loss = E + A * N^(-a) + B * D^(-b)"
BOUNDS = {"a": (0.05, 1.5), "b": (0.05, 1.5)}


def study(shift: float = 0.0, random: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A pool of small runs and a held-out table of large ones; ``shift`` is taken off every loss."""
    rng = np.random.default_rng(random)

    def table(sizes: tuple[float, ...], tokens: tuple[float, ...]) -> pd.DataFrame:
        cells = pd.DataFrame([(n, d) for n in sizes for d in tokens], columns=["N", "D"])
        loss = 1.7 + 4.0 * cells["N"] ** -0.4 + 6.0 * cells["D"] ** -0.3 - shift
        return cells.assign(loss=loss + rng.normal(0, 0.002, len(cells)), flops=cells["N"] * cells["D"])

    return table((1, 2, 4, 8, 16, 32), (1, 3, 10, 30, 100)), table((128, 256), (300, 1000))


def replayed(pool: pd.DataFrame, held_out: pd.DataFrame, law: object = LAW, **options: object) -> BudgetReplay:
    start = options.pop("start", np.argsort(pool["flops"].to_numpy(), kind="stable")[:6].tolist())
    words = {"budgets": (0.05, 0.3), "starts": 12, "residuals": "linear", **options}
    return replay_budgets(pool, law, "flops", held_out, start=start, **words)  # type: ignore[arg-type]


def test_a_part_of_the_cost_predicts_what_was_held_out() -> None:
    pool, held_out = study()
    found = replayed(pool, held_out)
    assert found.budgets == (0.05, 0.3) and found.predictions.shape == (2, 4)
    assert found.r2(0.3) > 0.9 and np.allclose(found.truth, held_out["loss"])
    assert found.table["rmse"].iloc[1] == pytest.approx(np.sqrt(np.mean((found.predictions[1] - found.truth) ** 2)))
    assert (found.table["spent"] <= found.table["budget"]).all() and found.table["runs"].is_monotonic_increasing
    assert list(found.order["row"][:6]) == sorted(np.argsort(pool["flops"].to_numpy(), kind="stable")[:6])
    assert found.order["row"].is_unique and f"held-out R2 {found.r2(0.3):.3f}" in found.text()


def test_a_study_begins_with_its_cheapest_runs_within_a_share_of_its_cost() -> None:
    pool = study()[0]
    start = cheapest_runs(pool, LAW, "flops", share=0.02)
    paid = pool["flops"].iloc[start]
    assert paid.max() <= pool["flops"].drop(index=start).min() and paid.sum() <= 0.02 * pool["flops"].sum()
    assert len(cheapest_runs(pool, LAW, "flops", share=1.0)) == int(2.5 * 5)
    sites = pool.assign(site=np.arange(len(pool)) % 2)
    assert set(sites["site"].iloc[cheapest_runs(sites, LAW, "flops", "site", share=1e-9)]) == {0, 1}


def test_what_the_rows_leave_open_is_decided_by_the_middle_of_the_box() -> None:
    pool = pd.DataFrame({"x": [1.0, 2.0], "y": [4.0, 9.0], "cost": [1.0, 99.0]})
    held_out = pd.DataFrame({"x": [3.0, 5.0], "y": [8.0, 14.0]})
    law = Law("line", "y = p + q * x", bounds={"p": (-100, 100), "q": (1, 5)}, known=("x", "y"))
    options = {"starts": 8, "residuals": "linear"}
    found = replay_budgets(pool, law, "cost", held_out, [0.05], [0], **options)  # type: ignore[arg-type]
    middle = np.sqrt(5.0)  # of the logarithm, as the box of q lies above 0; p has a wide box and takes up the rest
    assert found.predictions[0] == pytest.approx(4 + middle * (held_out["x"] - 1), rel=0.01)


def test_predictions_that_the_rows_leave_open_stay_near_the_outcomes() -> None:
    """Past x = a the law is 1e12, whatever its other parameters."""
    x = np.arange(1.0, 11.0)
    pool = pd.DataFrame({"x": x, "y": 2 + 1 / (11.3 - x), "cost": 1.0})
    held_out = pd.DataFrame({"x": [10.5, 12.0], "y": [3.25, 3.0]})
    law = Law("pole", "y = c + b / max(a - x, 1e-12)", bounds={"a": (5, 20), "b": (0, 5)}, known=("x", "y"))
    options = {"starts": 16, "residuals": "linear"}
    start = list(range(6))
    found = replay_budgets(pool, law, "cost", held_out, [0.6], start, **options)  # type: ignore[arg-type]
    alone = replay_budgets(pool, law, "cost", held_out, [0.6], start, average=False, **options)  # type: ignore[arg-type]
    assert alone.predictions[0, 1] > 1e9 and 0 < found.predictions[0, 1] < 10
    assert found.predictions[0, 0] == pytest.approx(3.25, rel=1e-3)


def test_outcomes_that_are_not_bought_and_held_out_ones_are_not_looked_at() -> None:
    pool, held_out = study()
    found = replayed(pool, held_out)
    bought = found.order["row"].to_numpy()
    other = pool.assign(loss=np.where(np.isin(np.arange(len(pool)), bought), pool["loss"], 9.0))
    again = replayed(other, held_out.assign(loss=5.0))
    assert np.array_equal(again.predictions, found.predictions) and again.order.equals(found.order)


def test_negative_outcomes_in_linear_residuals_and_one_error_in_logarithms() -> None:
    pool, held_out = study(shift=4.5)
    assert (held_out["loss"] < 0).all() and replayed(pool, held_out).r2(0.3) > 0.9
    with pytest.raises(AnalysisError, match=r"not positive in every row.*residuals='linear'"):
        replayed(pool, held_out, residuals="log")
    positive = study()
    assert replayed(*positive, residuals="log").r2(0.3) > 0.9


def test_groups_are_studies_of_their_own_and_scored_together() -> None:
    one, other = study(), study(shift=1.0, random=1)
    pool, held_out = (
        pd.concat([a.assign(site="x"), b.assign(site="y")], ignore_index=True) for a, b in zip(one, other, strict=True)
    )
    start = [*range(3), *range(30, 33)]
    found = replayed(pool, held_out, by="site", start=start)
    assert list(found.table["group"]) == ["x", "x", "y", "y"] and found.r2(0.3) > 0.99
    alone = replayed(one[0], one[1], start=range(3))
    assert np.array_equal(found.predictions[:, :4], alone.predictions)
    with pytest.raises(AnalysisError, match=r"start .*site = y"):
        replayed(pool, held_out, by="site", start=[0, 1])


def test_rows_of_a_run_come_together_and_each_output_has_its_own_parameters() -> None:
    one, other = study(), study(shift=1.0, random=1)
    pool, held_out = (
        pd.concat([a.assign(output=0), b.assign(output=1)]).rename_axis("run").reset_index()
        for a, b in zip(one, other, strict=True)
    )
    found = replayed(pool, held_out, run="run", each="output", start=range(4))
    assert found.r2(0.3) > 0.99
    both = found.order.iloc[4:]
    assert (both["cost"] == 2 * pool["flops"].to_numpy()[both["row"]]).all()
    # Without separate parameters one law has to do for both outputs.
    assert replayed(pool, held_out, run="run", start=range(4)).r2(0.3) < 0.9


def test_rival_laws_are_averaged_by_weight() -> None:
    pool, held_out = study()
    wrong = "loss = E + A * N^(-a)"
    assert replayed(pool, held_out, [LAW, wrong]).r2(0.3) > 0.9 > replayed(pool, held_out, wrong).r2(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": ()}, "budgets.* up to 1 .*got none"),
        ({"budgets": (5.0,)}, "got 5"),
        ({"start": [99]}, "start .*0 to 29; got \\[99\\]"),
        ({"start": []}, "start .*0 to 29; got "),
        ({"optima": 0}, "optima .*at least 1"),
        ({"residuals": "square"}, "residuals 'log' or 'linear'"),
        ({"by": "site"}, "the pool has no column 'site'"),
        ({"law": [LAW, "D = A * N^a"]}, "several of the same target"),
        ({"drop": "N"}, "the held-out rows have no column 'N'"),
        ({"hole": True}, "the pool: loss is not a number in 1 of 30 rows"),
        ({"free": True}, "cost 'flops' must be above 0"),
    ],
)
def test_bad_input_is_one_clear_error(options: dict[str, object], message: str) -> None:
    pool, held_out = study()
    held_out = held_out.drop(columns=str(options.pop("drop"))) if "drop" in options else held_out
    pool = pool.assign(loss=pool["loss"].mask(pool.index == 3)) if options.pop("hole", False) else pool
    pool = pool.assign(flops=0.0) if options.pop("free", False) else pool
    with pytest.raises(AnalysisError, match=message):
        replayed(pool, held_out, **options)  # type: ignore[arg-type]
