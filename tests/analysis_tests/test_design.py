"""Designs, expected intervals and replays: against the formulas written out, simulations, and the paper's points."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2, t

from gsq.analysis import (
    LAWS,
    AnalysisError,
    Fit,
    Law,
    compare_laws,
    design,
    design_figure,
    fit,
    power,
    read_target,
    replay,
    replay_figure,
)
from gsq.analysis.designing.information import Cells, State
from gsq.analysis.fitting.fit import Options
from gsq.config.flops import cost
from gsq.config.overrides import Overrides
from gsq.config.presets import preset

LINE = "rfid = A * x^b * y^c"  # in logarithms a plane, so that nothing is approximate
KNOWN = {"A": 3.0, "b": -0.7, "c": 0.2}
GRID = pd.DataFrame([(x, y) for x in (1.0, 2.0, 4.0, 8.0, 16.0) for y in (1.0, 3.0, 9.0)], columns=["x", "y"])
FIRST = GRID.iloc[[0, 2, 4, 5, 7, 9]]


def measured(cells: pd.DataFrame, noise: float = 0.1, random: int = 0, misfit: float = 0.0) -> pd.DataFrame:
    """Runs of the cells (repeated rows are seeds) about the plane, each configuration off it by ``misfit`` as well."""
    rng = np.random.default_rng(random)
    value = KNOWN["A"] * cells["x"] ** KNOWN["b"] * cells["y"] ** KNOWN["c"]
    lost = pd.Series(rng.normal(0, misfit, len(GRID)), GRID.index).reindex(cells.index).to_numpy()
    return cells.assign(rfid=value * np.exp(lost + rng.normal(0, noise, len(cells)))).reset_index(drop=True)


def fitted(rows: pd.DataFrame, law: str | Law = LINE, **options: object) -> Fit:
    return fit(rows, law, bootstrap=0, starts=8, **options)  # type: ignore[arg-type]


@cache
def plane() -> Fit:
    """The law fitted to one run of each of FIRST."""
    return fitted(measured(FIRST))


def priced(cells: pd.DataFrame = GRID, cost: float = 1.0) -> pd.DataFrame:
    return cells.assign(cost=cost).reset_index(drop=True)


def matrix(cells: pd.DataFrame) -> np.ndarray:
    """Slopes of ln rfid in ln A, b and c."""
    return np.stack([np.ones(len(cells)), np.log(cells["x"]), np.log(cells["y"])], axis=1)


def scatter(rows: pd.DataFrame) -> float:
    """Scatter of configurations about the fitted plane, for one run or equally many of each."""
    j, y = matrix(rows), np.log(rows["rfid"])
    left = y - j @ np.linalg.lstsq(j, y, rcond=None)[0]
    of = left.groupby([rows["x"], rows["y"]])
    return float(np.sqrt((of.size() * of.mean() ** 2).sum() / (of.ngroups - 3)))


def half(cells: pd.DataFrame, scatter: float, wanted: np.ndarray) -> float:
    """t s sqrt(g' (J'J)^-1 g), written out."""
    j = matrix(cells)
    freedom = len(cells.drop_duplicates()) - 3
    return float(t.ppf(0.975, freedom) * scatter * np.sqrt(wanted @ np.linalg.solve(j.T @ j, wanted)))


def test_the_interval_is_that_of_the_normal_equations_and_the_best_cell_that_of_trying_all() -> None:
    one = plane()
    slope = np.array([0.0, 1.0, 0.0])
    found = design(one, priced(GRID.drop(FIRST.index)), 3.0, "parameter=b")
    assert found.before == pytest.approx(half(FIRST, one.scatter, slope), rel=1e-4)
    low, high = one.profile_intervals["b"]
    assert found.before == pytest.approx((high - low) / 2, rel=1e-4), "as the fit's own interval has it"
    so_far = FIRST
    for step in found.proposals:
        others = GRID.drop(so_far.index)
        tried = {i: half(pd.concat([so_far, others.loc[[i]]]), one.scatter, slope) for i in others.index}
        best = min(tried, key=lambda i: tried[i])
        assert step.expected == pytest.approx(tried[best], rel=1e-4)
        assert tuple(step.cell.values()) == tuple(GRID.loc[best]) or step.expected == pytest.approx(tried[best])
        chosen = GRID[(GRID["x"] == step.cell["x"]) & (GRID["y"] == step.cell["y"])]
        so_far = pd.concat([so_far, chosen])
    assert [p.total for p in found.proposals] == [1.0, 2.0, 3.0] and found.cost == 3.0
    assert found.after == found.proposals[-1].expected < found.before


def test_a_prediction_at_one_cell_and_at_all_of_them() -> None:
    one = plane()
    at = design(one, priced(), 2.0, "predict x=16, y=2**3", seeds=1)
    wanted = np.array([1, np.log(16), np.log(8)])
    assert at.before == pytest.approx(half(FIRST, one.scatter, wanted), rel=1e-4)
    low, high = at.expectations[0].before
    _, fit_low, fit_high = one.predict({"x": 16.0, "y": 8.0})
    assert (low, high) == pytest.approx((fit_low[0], fit_high[0]), rel=1e-3)
    everywhere = design(one, priced(), 2.0, "predict", seeds=1)
    widest = max(half(FIRST, one.scatter, g) for g in matrix(GRID))
    assert everywhere.before == pytest.approx(widest, rel=1e-4)


def test_what_is_expected_is_what_comes() -> None:
    ratios = []
    for random in range(8):
        rows = measured(FIRST, random=random)
        found = design(fitted(rows), priced(), 6.0, "parameter=b", noise=0.1, seeds=1)
        bought = GRID.iloc[[p.row for p in found.proposals]]
        later = pd.concat([rows, measured(bought, random=1000 + random)], ignore_index=True)
        ratios.append(half(later, scatter(later), np.array([0.0, 1.0, 0.0])) / found.after)
    # The scatter of few rows is itself uncertain; on the average it is right.
    assert np.mean(np.square(ratios)) ** 0.5 == pytest.approx(1, abs=0.2)


def test_cost_counts() -> None:
    one = plane()
    free = priced(GRID.drop(FIRST.index))
    first = design(one, free, 100.0, "parameter=b", seeds=1).proposals[0]
    dear = free.assign(cost=np.where(np.arange(len(free)) == first.row, 30.0, 1.0))
    order = [p.row for p in design(one, dear, 100.0, "parameter=b", seeds=1).proposals]
    assert order[0] != first.row, "what tells the most is not worth thirty times the price of the next"
    spent = design(one, dear, 8.0, "parameter=b", seeds=1)
    assert spent.cost <= 8 and first.row not in [p.row for p in spent.proposals]


@pytest.mark.parametrize(("misfit", "again"), [(0.0, True), (0.4, False)])
def test_a_further_seed_is_worth_what_it_averages_out(misfit: float, again: bool) -> None:
    twice = pd.concat([FIRST, FIRST])
    rows = measured(twice, noise=0.2 if not misfit else 0.02, misfit=misfit)
    one = fitted(rows)
    dear = priced(pd.concat([FIRST.iloc[[0, -1]], GRID.drop(FIRST.index)])).assign(
        cost=[1.0, 1.0] + [3.0] * (len(GRID) - len(FIRST))
    )
    found = design(one, dear, 30.0, "parameter=b", seeds=4, enough=0.05)
    seeds = [p for p in found.proposals if p.runs_before]
    assert bool(seeds) == again and found.noise is not None and "6 degrees of freedom" in found.noise_source
    assert max(p.runs_before for p in found.proposals) <= 3, "four at the most, those measured included"
    assert (found.scatter > 0.2) == (misfit > 0)


def test_without_seeds_or_a_noise_no_further_seed_is_proposed_but_for_the_noise_itself() -> None:
    one = plane()
    found = design(one, priced(FIRST), 10.0, "parameter=b")
    assert found.noise is None and not found.proposals and "no seeds" in found.notes[-1]
    noise = design(one, priced(), 30.0, "noise", until=1.0)
    assert {p.runs_before for p in noise.proposals} <= {1, 2} and noise.stopped == "the target is met"
    freedom = len(noise.proposals)
    assert noise.after == pytest.approx(np.log(chi2.ppf(0.975, freedom) / chi2.ppf(0.025, freedom)) / 4)
    assert np.expm1(noise.after) <= 1 and noise.open_before and not noise.open_after
    rows = pd.concat([measured(FIRST), measured(FIRST, random=1)])
    known = design(fitted(rows), priced(), 1.0, "noise")
    assert known.expectations[0].central == pytest.approx(known.noise)


def test_it_stops_when_the_target_is_met_and_drops_what_is_not_needed() -> None:
    one = plane()
    whole = design(one, priced(), 100.0, "parameter=b", seeds=1)
    until = (whole.before + whole.after) / 2
    found = design(one, priced(), 100.0, "parameter=b", seeds=1, until=until)
    assert found.stopped == "the target is met" and found.after <= until
    assert 0 < len(found.proposals) < len(whole.proposals)
    assert "until +-" in found.text() and found.proposals[-1].expected == found.after
    already = design(one, priced(), 100.0, "parameter=b", until=10.0)
    assert not already.proposals and already.stopped == "the target is met already"
    never = design(one, priced(), 100.0, "parameter=b", seeds=1, until=1e-6)
    assert "the target is not met" in never.stopped


def test_what_no_run_can_determine_is_open() -> None:
    cells = pd.DataFrame([(8, d, 1, 2**v) for d in (8, 16, 32) for v in (8, 10, 12, 14)])
    cells.columns = pd.Index(["downsample", "latent_dim", "groups", "codebook_size"])
    rfid = 50 / np.log2(cells["codebook_size"]) ** 1.8 / cells["latent_dim"] ** 0.1
    one = fitted(cells.assign(rfid=rfid), "paper_eq14", bounds={"beta": (0.1, 2)})
    assert one.parameters["C"] == pytest.approx(0, abs=1e-9), "the term of beta is switched off"
    found = design(one, priced(cells), 5.0, "parameter=beta", seeds=1, noise=0.01)
    assert found.open_before and found.open_after and not found.proposals and found.to_dict()["after"] is None
    assert "Now open" in found.text() and "95% interval now open, then open" in found.text()
    assert not design(one, priced(cells), 5.0, "parameter=alpha", noise=0.01).open_before


def test_laws_are_told_apart_where_they_differ() -> None:
    rows = measured(GRID.query("x >= 2 and y < 9"), noise=0.05)
    laws = [LINE, "rfid = A * x^b * (1 + y)^c"]
    compared = compare_laws(rows, laws, Options(bootstrap=0, starts=8))
    assert min(compared.weights) > 0.02
    wide = priced(pd.DataFrame({"x": [4.0] * 5, "y": [1.5, 2.0, 2.5, 3.0, 300.0]}))
    found = design(compared, wide, 2.0, "discriminate", noise=0.05)
    assert found.proposals[0].cell["y"] == 300 and found.after < found.before
    assert found.before == pytest.approx(1 - np.sum(np.square(compared.weights)))
    both = design(compared, wide, 2.0, "predict x=4,y=300", noise=0.05)
    own = [one.predict({"x": 4.0, "y": 300.0})[0][0] for one in compared.fits]
    shares, logs = np.array(compared.weights), np.log(own)
    apart = np.expm1(np.sqrt(shares @ (logs - shares @ logs) ** 2))
    assert f"differ by up to {apart:.1%}" in both.notes[-1]
    assert found.weights == compared.weights and "of the weight on wrong laws" in found.text()


def test_chi_squares_of_one_run_after_the_other_are_those_of_the_batch() -> None:
    rows = measured(FIRST, noise=0.05)
    compared = compare_laws(rows, [LINE, "rfid = A * x^b"], Options(bootstrap=0, starts=8))
    cells = Cells(
        pd.concat([FIRST, GRID.iloc[[12, 13, 14]]], ignore_index=True),
        np.array([1.0] * 6 + [0.0] * 3),
        np.ones(9),
        np.arange(9),
        np.ones(9) * 3,
    )
    state = State(compared.fits, compared.weights, read_target("discriminate"), cells, 0.05, [])
    start = state.copy()
    for cell in (6, 8, 6, 7):
        state.add(cell)
    for i, right in enumerate(start.rivals):
        for j, rival in enumerate(start.rivals):
            new = [6, 7, 8]
            noise = np.diag([right.tau2 + right.sigma2 / runs for runs in (2, 1, 1)])
            spread = noise + rival.slopes[new] @ start.covariances[j] @ rival.slopes[new].T
            gap = right.value[new] - rival.value[new]
            assert state.chi2[i, j] == pytest.approx(gap @ np.linalg.solve(spread, gap) if i != j else 0, rel=1e-6)


def test_the_tables_that_it_prints_and_writes(tmp_path: Path) -> None:
    one = plane()
    found = design(one, priced(), 2.0, "predict x=16, y=9", cost="cost", unit="days", until=0.05)
    text, document = found.text(), json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "Target: the prediction at x=16 y=9, until +-5.00%" in text and "days" in text
    assert [run["total"] for run in document["runs"]] == [p.total for p in found.proposals]
    assert document["after"] == pytest.approx(np.expm1(found.after))
    assert list(found.table.columns) == ["x", "y", "run", "cost", "total", "expected"]
    drawn = design_figure(found, tmp_path / "figures" / "next.png")
    (axes,) = drawn.axes
    assert "days" in axes.get_xlabel() and "rfid" in axes.get_ylabel()
    assert (tmp_path / "figures" / "next.svg").is_file()
    design_figure(design(one, priced(), 30.0, "noise"))


@pytest.mark.parametrize(
    ("target", "cells", "options", "message"),
    [
        ("parameter=alpha", {}, {}, r"no law has a parameter 'alpha'; A \* x\^b \* y\^c has A, b, c"),
        ("parameter", {}, {}, "is none of: parameter=NAME; predict AXIS=NUMBER"),
        ("predict x=2", {}, {}, "reads y, .*add it \\(y=...\\)"),
        ("predict x=2,z=3", {}, {}, "there is no axis 'z'"),
        ("predict x=two,y=1", {}, {}, "'x=two' is not AXIS=NUMBER"),
        ("parameter=b", {"drop": "y"}, {}, "the candidates lack y, which A .* reads; they have x, cost"),
        ("parameter=b", {"drop": "cost"}, {}, "no column 'cost'.*--cost COLUMN"),
        ("parameter=b", {"cost": 0.0}, {}, "must be a number above 0 for every candidate; 15 of 15"),
        ("parameter=b", {"cost": np.nan}, {}, "must be a number above 0"),
        ("parameter=b", {"none": True}, {}, "there are no candidate cells"),
        ("parameter=b", {}, {"budget": 0.5}, "a budget of 0.5 affords none of 9 candidates; the cheapest costs 1"),
        ("parameter=b", {}, {"budget": -1.0}, "budget .*above 0, got -1"),
        ("parameter=b", {}, {"until": -1.0}, "until .*above 0, got -1"),
        ("parameter=b", {}, {"noise": 0.0}, "noise .*above 0; got 0"),
        ("parameter=b", {}, {"seeds": 0}, "must be at least 1; got 0"),
        ("discriminate", {}, {}, "needs two laws or more"),
    ],
)
def test_bad_input_is_one_clear_error(
    target: str, cells: dict[str, object], options: dict[str, float], message: str
) -> None:
    frame = priced(cost=cells.get("cost", 1.0))  # type: ignore[arg-type]
    frame = frame.drop(columns=cells["drop"]) if "drop" in cells else frame.iloc[:0] if "none" in cells else frame
    with pytest.raises(AnalysisError, match=message):
        design(plane(), frame, **{"budget": 5.0, "target": target, "seeds": 1, **options})  # type: ignore[arg-type]


def test_laws_hold_for_some_cells_only(fig4: pd.DataFrame) -> None:
    one = fitted(fig4, "multiplicative")
    cells = pd.DataFrame({"latent_dim": [16, 128], "groups": [4, 1], "codebook_size": [2**12] * 2, "downsample": 8})
    found = design(one, cells.assign(cost=1.0), 5.0, "parameter=b")
    assert [p.cell["latent_dim"] for p in found.proposals] == [128]
    assert any("1 candidate" in note and "multiplicative holds for groups = 1 only" in note for note in found.notes)
    with pytest.raises(AnalysisError, match="no candidate is left"):
        design(one, cells.iloc[:1].assign(cost=1.0), 5.0, "parameter=b")
    with pytest.raises(AnalysisError, match="holds for groups = 1 only"):
        design(one, cells.assign(cost=1.0), 5.0, "predict latent_dim=16,codebook_size=2**18,groups=8")
    with pytest.raises(AnalysisError, match="choose one law"):
        design([fitted(fig4, "power_law_bpp"), fitted(fig4, "inverse_bpp")], cells.assign(cost=1.0), 5.0, "parameter=c")
    with pytest.raises(AnalysisError, match="same rows"):
        design([one, fitted(fig4.iloc[1:], "multiplicative")], cells.assign(cost=1.0), 5.0, "predict")
    with pytest.raises(AnalysisError, match="least_squares"):
        design(fitted(fig4, "multiplicative", loss="cauchy"), cells.assign(cost=1.0), 5.0, "predict")


def test_the_interval_to_expect_of_a_grid_is_the_one_that_it_gets() -> None:
    grid = pd.concat([GRID, GRID])  # two seeds
    expected = power(grid, LINE, coefficients=KNOWN, noise=0.05)
    assert (expected.configurations, expected.runs) == (15, 30)
    one = measured(grid, 0.05)
    slope, (low, high) = np.array([0.0, 1.0, 0.0]), fitted(one).profile_intervals["b"]
    assert half(grid, scatter(one), slope) == pytest.approx((high - low) / 2, rel=1e-4)
    widths = [half(grid, scatter(measured(grid, 0.05, i)), slope) for i in range(200)]
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(expected.half["b"], rel=0.05)
    once = power(GRID, LINE, coefficients=KNOWN, noise=0.05)
    assert once.half["b"] / expected.half["b"] == pytest.approx(np.sqrt(2), rel=1e-9)
    assert power(grid, LINE, coefficients=KNOWN, noise=0.1).half["b"] == pytest.approx(2 * expected.half["b"])
    assert "+-" in expected.text() and json.dumps(expected.to_dict(), allow_nan=False)


def test_a_grid_that_leaves_a_parameter_open_says_so() -> None:
    cells = pd.DataFrame(
        {"latent_dim": 64, "groups": 1, "downsample": 8, "codebook_size": [2**i for i in range(8, 16)]}
    )
    found = power(cells, "saturating")
    assert np.isinf(found.half["s"]) and np.isfinite(found.half["c"])
    assert "s = 3.205  open" in found.text()
    assert found.to_dict()["parameters"]["s"]["half"] is None  # type: ignore[index]


def test_coefficients_to_plan_with_are_those_of_the_papers_numbers(fig4: pd.DataFrame, joint: pd.DataFrame) -> None:
    having = {name: law for name, law in LAWS.items() if law.reference}
    assert {"power_law_bpp", "paper_eq14", "saturating"} <= set(having)
    for name, law in having.items():
        rows = fig4 if "groups" in law.holds_for else joint
        # Equation 15 of the paper, as it was fitted there.
        found = fit(rows, law, residuals="linear" if name == "paper_eq14" else "log", bootstrap=0)
        assert law.reference == pytest.approx(found.parameters, rel=5e-3)


@pytest.mark.parametrize(
    ("law", "options", "message"),
    [
        ("chinchilla", {}, "no reference coefficients for E, A"),
        ("power_law_bpp", {"coefficients": {"beta": 1.0}}, "no parameter 'beta'; it has c, alpha"),
        ("power_law_bpp", {"noise": 0.0}, "above 0"),
        ("paper_eq14", {}, "holds for groups = 1 only"),
        ("power_law_bpp", {"coefficients": {"c": -1.0}}, "no positive, finite value"),
    ],
)
def test_expecting_refuses_what_it_cannot_do(law: str, options: dict[str, object], message: str) -> None:
    cells = pd.DataFrame({"latent_dim": 8, "groups": [1, 2, 4, 8], "downsample": 4, "codebook_size": 256})
    with pytest.raises(AnalysisError, match=message):
        power(cells, law, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def costed(joint: pd.DataFrame) -> pd.DataFrame:
    """The paper's 41 points with the training FLOPs of its settings."""
    change, axes = Overrides(preset("paper-f8")), ["downsample", "latent_dim", "groups", "codebook_size"]
    cells = joint[axes].astype(int).to_dict("records")
    return joint.assign(train_flops=[cost(change(cell)).train_flops for cell in cells])


def test_a_designed_order_of_the_papers_points_needs_half_the_cost_of_a_random_one(
    costed: pd.DataFrame, tmp_path: Path
) -> None:
    start = np.argsort(costed["train_flops"].to_numpy(), kind="stable")[:8]
    found = replay(costed, "saturating", "train_flops", start, orders=30, starts=4)
    assert found.ratio() <= 0.5 and found.ratio(first=True) <= 0.5
    assert found.error[-1] < 1e-6 and np.allclose(found.random_error[:, -1], found.error[-1], atol=1e-6)
    assert np.allclose(found.random_cost[:, -1], found.cost[-1])
    assert sorted([*found.start, *found.order]) == list(range(41))
    at = int(np.argmax(found.cost >= found.reached()))
    assert (found.error[at:] <= 0.05).all() and found.error[at - 1] > 0.05
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["for_good"]["ratio"] == pytest.approx(found.ratio())
    figure = replay_figure(found, tmp_path / "replay", cost="FLOPs")
    assert "FLOPs" in figure.axes[0].get_xlabel() and (tmp_path / "replay.png").is_file()
    # What a run will show is not known before it is made.
    late = found.order[20]
    other = costed.assign(rfid=np.where(np.arange(41) == late, 2 * costed["rfid"], costed["rfid"]))
    assert replay(other, "saturating", "train_flops", start, orders=1, starts=4).order[:20] == found.order[:20]


def test_replay_refuses_what_it_cannot_use(costed: pd.DataFrame) -> None:
    with pytest.raises(AnalysisError, match=r"some, but not all, .*row numbers"):
        replay(costed, "saturating", "train_flops", range(41))
    with pytest.raises(AnalysisError, match="one number above 0 for each of 41 rows"):
        replay(costed, "saturating", np.zeros(41), range(8))
    holes = costed.assign(rfid=costed["rfid"].where(costed["rfid"] > 0.04))
    with pytest.raises(AnalysisError, match="needs every row"):
        replay(holes, "saturating", "train_flops", range(8))
