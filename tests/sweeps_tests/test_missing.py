"""What is missing from a sweep, and whether failure goes with an axis."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import comb
from typing import Any

import pytest
from preamble import PlanOf, WriteRun
from typer.testing import CliRunner

from gsq import sweeps
from gsq.cli.main import app
from gsq.records.folder import runs_root
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state.reconcile import CellState
from gsq.sweeps.state.status import Survey
from gsq.sweeps.tables.gather import gather
from gsq.sweeps.tables.missing import Coverage, coverage_of


def judged(plan: Plan, state_of: Callable[[dict[str, Any]], str]) -> Coverage:
    """Coverage of a plan whose cells have the state that their axes are given; failures are out of memory."""
    states = {}
    for cell in plan.cells:
        state = state_of(cell.axes)
        states[cell.signature] = CellState(cell.signature, state, "out_of_memory" if state == "failed" else None)
    return coverage_of(plan.name, Survey(plan, {}, {}, states))


def test_two_values_are_tested_as_by_hand(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"codebook_size": [16, 256], "seed": {"range": [0, 9]}})
    # All that fails is of one value: 5 of its 10 cells, and none of the other 10.
    found = judged(plan, lambda axes: "failed" if axes["codebook_size"] == 256 and axes["seed"] < 5 else "done")
    size, seed = found.axes
    assert size.p_value == pytest.approx(2 * comb(10, 5) / comb(20, 5), rel=1e-9)
    assert (size.failed, size.done) == ({"16": 0, "256": 5}, {"16": 10, "256": 5})
    assert (size.group, size.group_failed, size.group_done) == ("codebook_size=256", 5, 5)
    # Ten values of a number are split at their median.
    assert set(seed.failed) == {"seed<5", "seed>=5"} and sum(seed.failed.values()) == 5
    assert size.adjusted_p <= 2 * size.p_value + 1e-12 and size.adjusted_p >= size.p_value


def test_more_values_are_tested_to_the_accuracy_of_the_draws(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4], "seed": {"range": [0, 3]}})

    def state(axes: dict[str, Any]) -> str:
        return "failed" if axes["groups"] == 4 and axes["seed"] < 3 else "done"

    groups, _ = judged(plan, state).axes
    # The table seen and its two like are the least probable of all.
    assert groups.p_value == pytest.approx(3 * comb(4, 3) / comb(12, 3), abs=0.004)
    assert groups.p_value == judged(plan, state).axes[0].p_value


def test_failures_of_one_value_are_said_to_bias_a_fit(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"codebook_size": [16, 64, 256, 1024], "seed": {"range": [0, 5]}})
    found = judged(plan, lambda axes: "failed" if axes["codebook_size"] == 1024 else "done")
    (sentence,) = found.biased
    assert sentence.startswith("of 6 failed cells 6 have codebook_size=1024 (p = ")
    assert sentence.endswith("says nothing about codebook_size=1024")
    assert found.lines == ("24 cells planned: 18 done, 6 failed (6 out_of_memory)",)
    # Those above a limit, but for one.
    found = judged(plan, lambda axes: "failed" if axes["codebook_size"] + axes["seed"] > 256 else "done")
    (sentence,) = found.biased
    assert "of 11 failed cells 11 have codebook_size>=256" in sentence
    assert sentence.endswith("on 1 of 12 cells")


def test_failures_all_over_bias_nothing(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"codebook_size": [16, 256], "groups": [1, 2], "seed": {"range": [0, 3]}})
    found = judged(plan, lambda axes: "failed" if axes["seed"] == 0 else "done")
    # A whole seed, though: with four cells of sixteen that is no chance.
    assert len(found.biased) == 1 and "seed=0" in found.biased[0]
    found = judged(plan, lambda axes: "failed" if (axes["codebook_size"] == 16) == (axes["seed"] == 1) else "done")
    assert not found.biased and found.lines[1].startswith("failure depends on no axis (exact tests; least p = ")


def test_cells_that_have_not_ended_are_counted_and_not_tested(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"codebook_size": [16, 256], "seed": {"range": [0, 3]}})
    found = judged(plan, lambda axes: "running" if axes["codebook_size"] == 256 else "done")
    assert not found.axes and found.lines == ("8 cells planned: 4 done, 4 running",)
    found = judged(plan, lambda axes: "planned" if axes["codebook_size"] == 256 else "failed")
    assert not found.axes
    assert found.lines == ("8 cells planned: 0 done, 4 failed (4 out_of_memory), 4 not started",)
    # An axis of which only one value has ended cannot be told from chance.
    states = {0: "failed", 1: "done", 2: "done", 3: "done"}
    found = judged(plan, lambda axes: "planned" if axes["codebook_size"] == 256 else states[axes["seed"]])
    assert [test.axis for test in found.axes] == ["seed"] and found.axes[0].adjusted_p == found.axes[0].p_value == 1


def test_an_axis_that_came_with_a_later_yaml_takes_the_value_of_the_config(
    plan_of: PlanOf, write_run: WriteRun
) -> None:
    sweep = SweepFolder(runs_root(), "small")
    sweep.write_plan(plan_of(axes={"seed": {"range": [0, 5]}}))
    sweep.write_plan(plan_of(axes={"groups": [4], "seed": {"range": [0, 5]}}))
    for cell in sweep.read_plan().cells:
        late = "groups" in cell.axes
        write_run(cell, "failed" if late else "done", 350, failure="diverged" if late else None)
    found = sweeps.missing("small")
    by_axis = {test.axis: test for test in found.axes}
    assert by_axis["groups"].group == "groups=4" and by_axis["groups"].group_done == 0
    assert len(by_axis["groups"].failed) == 2 and found.failures == {"diverged": 6}


def test_gather_prints_it_and_an_unchanged_table_keeps_it(
    plan_of: PlanOf, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsq.sweeps.tables.gather.SETTLED_SECONDS", -1.0)
    plan = plan_of(axes={"codebook_size": [16, 256], "seed": {"range": [0, 5]}})
    SweepFolder(runs_root(), plan.name).write_plan(plan)
    for cell in plan.cells:
        lost = cell.axes["codebook_size"] == 256
        write_run(cell, "failed" if lost else "done", 350, failure="out_of_memory" if lost else None)
    outputs = [CliRunner().invoke(app, ["gather", "small"]) for _ in range(2)]
    for result in outputs:
        assert result.exit_code == 0
        assert "12 cells planned: 6 done, 6 failed (6 out_of_memory)\n" in result.stdout
        (warning,) = result.stderr.splitlines()
        assert warning.startswith("warning: of 6 failed cells 6 have codebook_size=256")
    found = json.loads(CliRunner().invoke(app, ["gather", "small", "--json"]).stdout)
    assert (found["planned"], found["counts"]["done"], found["failures"]) == (12, 6, {"out_of_memory": 6})
    assert found["table"] == "results/small.parquet" and found["problems"] == found["biased"]
    assert Coverage.from_dict(found) == sweeps.missing("small")
    said: list[str] = []
    gather("small", warn=said.append)
    assert said == found["biased"]
