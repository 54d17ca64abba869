"""What designs take into account: averages, target rows, several budgets, costs by an exponent, rival minima."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from gsq.analysis import AnalysisError, Fit, compare_laws, design, fit, target_rows
from gsq.analysis.fitting.options import Options

LINE = "rfid = A * x^b * y^c"
GRID = pd.DataFrame([(x, y) for x in (1.0, 2.0, 4.0, 8.0, 16.0) for y in (1.0, 3.0, 9.0)], columns=["x", "y"])
FIRST = GRID.iloc[[0, 2, 4, 5, 7, 9]]
FAR = pd.DataFrame({"x": [32.0, 64.0, 64.0], "y": [1.0, 9.0, 3.0], "loss": [1.0, 2.0, 3.0]})


def measured(cells: pd.DataFrame, random: int = 0) -> pd.DataFrame:
    noise = np.random.default_rng(random).normal(0, 0.1, len(cells))
    return cells.assign(rfid=3.0 * cells["x"] ** -0.7 * cells["y"] ** 0.2 * np.exp(noise)).reset_index(drop=True)


def fitted(rows: pd.DataFrame, law: str = LINE) -> Fit:
    return fit(rows, law, bootstrap=0, starts=8)


def priced(cells: pd.DataFrame, cost: object = 1.0) -> pd.DataFrame:
    return cells.assign(cost=cost).reset_index(drop=True)


def halves(cells: pd.DataFrame, far: pd.DataFrame, one: Fit) -> np.ndarray:
    """Half of the interval at each row of ``far``, by the normal equations."""
    j, g = (np.stack([np.ones(len(c)), np.log(c["x"]), np.log(c["y"])], axis=1) for c in (cells, far))
    scatter = np.sqrt(one.cost / (one.n_configurations - 3))
    spread = np.einsum("tk,kl,tl->t", g, np.linalg.inv(j.T @ j), g)
    return np.asarray(t.ppf(0.975, len(cells) - 3) * scatter * np.sqrt(spread))


def test_target_rows_are_the_cells_and_only_columns_of_the_law_are_read() -> None:
    one = fitted(measured(FIRST))
    by_hand = design(one, priced(GRID), 3.0, "predict x=32, y=1", seeds=1)
    by_rows = design(one, priced(GRID), 3.0, target_rows(FAR.iloc[:1]), seeds=1)
    assert [p.row for p in by_rows.proposals] == [p.row for p in by_hand.proposals]
    assert by_rows.after == pytest.approx(by_hand.after) and by_rows.to_dict()["target"]["rows"] == 1  # type: ignore[index]
    assert "3 target rows" in design(one, priced(GRID), 3.0, target_rows(FAR), seeds=1).text()


def test_the_average_is_the_root_mean_square_of_the_intervals_and_each_run_the_best_for_it() -> None:
    one = fitted(measured(FIRST))
    free = GRID.drop(FIRST.index)
    found = design(one, priced(free), 2.0, target_rows(FAR), criterion="average", seeds=1)
    assert found.before == pytest.approx(np.sqrt(np.mean(halves(FIRST, FAR, one) ** 2)), rel=1e-4)
    so_far = FIRST
    for step in found.proposals:
        others = free.drop(so_far.index, errors="ignore")
        tried = {i: np.sqrt(np.mean(halves(pd.concat([so_far, others.loc[[i]]]), FAR, one) ** 2)) for i in others.index}
        assert step.expected == pytest.approx(min(tried.values()), rel=1e-4)
        so_far = pd.concat([so_far, free.iloc[[step.row]]])
    widest = design(one, priced(free), 2.0, target_rows(FAR), seeds=1)
    assert widest.before == pytest.approx(halves(FIRST, FAR, one).max(), rel=1e-4) and widest.before > found.before


def test_several_budgets_are_checkpoints_of_one_order() -> None:
    one = fitted(measured(FIRST))
    cells = priced(GRID.drop(FIRST.index), np.arange(1.0, 10.0))
    found = design(one, cells, [12.0, 5.0], "parameter=b", seeds=1)
    small = design(one, cells, 5.0, "parameter=b", seeds=1)
    first, last = found.checkpoints
    assert (first.budget, last.budget) == (5.0, 12.0) and found.budget == 12.0
    assert [p.row for p in found.proposals[: first.runs]] == [p.row for p in small.proposals]
    assert first.expected == pytest.approx(small.after) and last.expected == pytest.approx(found.after)
    assert first.cost <= 5 and last.cost <= 12 and last.runs == len(found.proposals)
    assert "within 5 cost:" in found.text()
    assert [one["budget"] for one in found.to_dict()["checkpoints"]] == [5.0, 12.0]  # type: ignore[attr-defined]


def test_a_budget_that_buys_nothing_useful_does_not_stop_the_larger_ones() -> None:
    one = fitted(measured(FIRST))  # without seeds, a further seed tells nothing
    cells = priced(pd.concat([FIRST.iloc[[0]], GRID.iloc[[14]]]), [1.0, 10.0])
    found = design(one, cells, [2.0, 12.0], "parameter=b")
    assert [one.runs for one in found.checkpoints] == [0, 1] and found.proposals[0].row == 1
    assert found.checkpoints[0].expected == found.before > found.checkpoints[1].expected


def test_an_exponent_of_zero_takes_the_most_telling_run_whatever_it_costs() -> None:
    one, cells = fitted(measured(FIRST)), priced(GRID.drop(FIRST.index))
    best = design(one, cells, 1.0, "parameter=b", seeds=1).proposals[0].row
    dear = cells.assign(cost=np.where(np.arange(len(cells)) == best, 30.0, 1.0))
    assert design(one, dear, 31.0, "parameter=b", seeds=1).proposals[0].row != best
    assert design(one, dear, 31.0, "parameter=b", seeds=1, cost_exponent=0.0).proposals[0].row == best


def test_the_whole_budget_is_spent_unless_it_is_said_what_is_enough() -> None:
    one = fitted(pd.concat([measured(FIRST), measured(FIRST, 1)]))
    cells = priced(GRID)
    whole = design(one, cells, 24.0, "parameter=b", seeds=3)
    short = design(one, cells, 24.0, "parameter=b", seeds=3, enough=0.1)
    assert whole.cost == 24.0 and 0 < short.cost < 24.0
    assert short.after <= whole.after * 1.1 and "less than 10%" in short.stopped
    assert short.checkpoints[0].runs == len(short.proposals)


TWO = "rfid = y^b * (1 + (a - x)^2)"  # at one x, a lies as well above it as below


def two_minima() -> Fit:
    cells = pd.DataFrame({"x": 2.0, "y": [1.0, 2.0, 3.0, 4.0, 5.0]})
    noise = np.random.default_rng(3).normal(0, 0.02, 5)
    rows = cells.assign(rfid=cells["y"] ** 0.5 * 2 * np.exp(noise))
    return fit(rows, TWO, bootstrap=0, starts=32, bounds={"a": (0, 4)}, start_ranges={"a": (0, 4), "b": (0, 1)})


def test_rival_minima_count_and_the_run_that_tells_them_apart_is_chosen() -> None:
    one = two_minima()
    cells = pd.DataFrame({"x": [2.0, 2.0, 3.5], "y": [9.0, 0.1, 1.0], "cost": [1.0, 1.0, 1.5]})
    far = target_rows(pd.DataFrame({"x": [5.0], "y": [1.0]}))
    alone = design(one, cells, 1.5, far, criterion="average", seeds=1, noise=0.02)
    both = design(one, cells, 1.5, far, criterion="average", optima=2, seeds=1, noise=0.02)
    # Minima at a = 1 and 3: 1 + 16 against 1 + 4, so half their logarithms' distance lies between them.
    between = np.log(17 / 5) / 2
    freedom = t.ppf(0.975, 5 - 2)
    assert both.before == pytest.approx(freedom * between, rel=0.1) and both.before > 5 * alone.before
    assert both.proposals[0].row == 2 and both.after < both.before / 5
    assert any("2 local minima" in note for note in both.notes) and both.weights == (1.0,)


def test_the_average_counts_what_rival_laws_disagree_about() -> None:
    rows = measured(GRID.query("x >= 2 and y < 9"))
    compared = compare_laws(rows, [LINE, "rfid = A * x^b * (1 + y)^c"], Options(bootstrap=0, starts=8))
    far = target_rows(pd.DataFrame({"x": [4.0], "y": [300.0]}))
    found = design(compared, priced(GRID), 3.0, far, criterion="average", seeds=1)
    single = [design(one, priced(GRID), 3.0, far, criterion="average", seeds=1) for one in compared.fits]
    logs = np.log([one.predict({"x": 4.0, "y": 300.0})[0][0] for one in compared.fits])
    shares = np.array(compared.weights)
    within = shares @ np.square([one.before for one in single])
    apart = shares @ (logs - shares @ logs) ** 2 * t.ppf(0.975, compared.fits[0].n_configurations - 3) ** 2
    assert found.before == pytest.approx(np.sqrt(within + apart), rel=1e-6) and found.after < found.before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "best"}, "criterion must be widest or average, got 'best'"),
        ({"cost_exponent": -1.0}, "cost_exponent must be 0 or more"),
        ({"optima": 0}, "optima.* must be at least 1; got 0"),
        ({"enough": 5.0}, "enough is a share between 0 and 1"),
        ({"budget": [3.0, -1.0]}, "budget .*above 0, got -1, 3"),
        ({"budget": []}, "budget .*above 0, got none"),
        ({"target": "parameter=b", "optima": 3}, "criterion and optima .*predict"),
        ({"target": target_rows(FAR.drop(columns="y"))}, "target rows have no column 'y'.*they have x, loss"),
        ({"target": target_rows(FAR.assign(y=[1, np.nan, 2]))}, "y is not a number in 1 of 3 rows, .*row 2"),
    ],
)
def test_bad_input_is_one_clear_error(options: dict[str, object], message: str) -> None:
    words = {"budget": 5.0, "target": "predict", "seeds": 1, **options}
    with pytest.raises(AnalysisError, match=message):
        design(fitted(measured(FIRST)), priced(GRID), **words)  # type: ignore[arg-type]


def test_a_table_without_target_rows_is_refused() -> None:
    with pytest.raises(AnalysisError, match="has no row"):
        target_rows(FAR.iloc[:0])
