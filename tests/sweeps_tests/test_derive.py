"""Keys by formula: their values, their signatures, and one error for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import yaml
from preamble import PlanOf
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.errors import UserError
from gsq.sweeps.costing.cost import Estimate
from gsq.sweeps.costing.resource_class import ResourceExpression
from gsq.sweeps.planning.cells import CellMaker, make_plan, other_axes
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.derive import Derivation
from gsq.sweeps.spec.expressions import Constraint
from gsq.sweeps.spec.sweep import load_spec

RATE = "1e-3 * (batch_size / 8)^0.5 * (16 / width)^0.5"
STEPS = "flops_budget / flops_per_step"


def test_values_are_those_written_by_hand(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"width": [8, 16], "batch_size": [4, 8]}, derive={"learning_rate": RATE})
    rates = [0.001, 0.00141421, 0.000707107, 0.001]
    assert [cell.axes["learning_rate"] for cell in plan.cells] == rates
    assert [cell.config.optimizer.learning_rate for cell in plan.cells] == rates
    written = plan_of(cases=[dict(cell.axes) for cell in plan.cells])
    assert [cell.signature for cell in written.cells] == [cell.signature for cell in plan.cells]
    assert [cell.config for cell in written.cells] == [cell.config for cell in plan.cells]


def test_a_key_may_follow_from_another_derived_one_in_any_order(plan_of: PlanOf) -> None:
    derive = {
        "train.seed": "steps % 7",
        "steps": "10 * optimizer.warmup_steps",
        "optimizer.warmup_steps": "width + 0.4",
    }
    (cell,) = plan_of(axes={"width": [8]}, derive=derive).cells
    assert cell.axes == {"width": 8, "optimizer.warmup_steps": 8, "steps": 80, "train.seed": 3}
    assert (cell.config.train.seed, cell.config.train.steps) == (3, 80)


@pytest.mark.parametrize("start", [None, "steps / 2"])
def test_an_axis_of_budgets_gives_an_isoflop_grid(plan_of: PlanOf, start: str | None) -> None:
    budgets = [2e11, 4e11, 8e11]
    derive = {"steps": STEPS} | ({"loss.discriminator_start": start} if start else {})
    plan = plan_of(axes={"flops_budget": budgets, "width": [8, 16, 24]}, derive=derive)
    assert len(plan.cells) == 9
    for cell in plan.cells:
        assert cell.cost.train_flops == pytest.approx(cell.axes["flops_budget"], rel=0.03)
        assert json.loads(other_axes(cell.axes))["flops_budget"] == cell.axes["flops_budget"]
        if start:
            assert cell.config.loss.discriminator_start == round(cell.config.train.steps / 2)


@pytest.mark.parametrize("budget", [8e11, 1e12, 2e12, 3e12])
def test_a_discriminator_that_costs_more_than_the_rest_keeps_the_budget(plan_of: PlanOf, budget: float) -> None:
    late = {"width": 8, "discriminator.kind": "stylegan", "loss.discriminator_start": 1000}
    (cell,) = plan_of(set=late, axes={"flops_budget": [budget]}, derive={"steps": STEPS}).cells
    assert cell.config.train.steps > 1000 and cell.cost.train_flops == pytest.approx(budget, rel=0.01)


def test_constraints_see_derived_keys_and_spare_formulas_of_cells_left_out(plan_of: PlanOf) -> None:
    axes = {"width": [8, 16, 32], "goal": [1]}
    derive = {"steps": "goal * 100 / (32 - width)"}
    plan = plan_of(axes=axes, derive=derive, where=["steps > 4", "width < 32", "goal == 1"])
    assert [cell.axes for cell in plan.cells] == [{"width": 16, "goal": 1, "steps": 6}]
    assert plan.dropped == (
        ({"width": 8, "goal": 1}, "steps > 4"),
        ({"width": 32, "goal": 1}, "width < 32"),
    )


def test_a_case_may_give_a_derived_key_itself(plan_of: PlanOf) -> None:
    plan = plan_of(cases=[{"width": 8}, {"width": 8, "train.steps": 77}], derive={"steps": "width * 10"})
    assert [cell.config.train.steps for cell in plan.cells] == [80, 77]


def test_plans_are_read_back_and_searches_derive_too(plan_of: PlanOf, folder: Path) -> None:
    plan = plan_of(axes={"flops_budget": [2e11], "width": [8, 16]}, derive={"steps": STEPS})
    there = SweepFolder(folder / "runs", plan.name)
    there.write_plan(plan)
    read = there.read_plan()
    assert [(c.signature, c.axes, c.config) for c in read.cells] == [
        (c.signature, c.axes, c.config) for c in plan.cells
    ]
    space = {"width": {"choice": [8, 16]}}
    spec = load_spec(
        {
            "name": "s",
            "base": "cpu-tiny",
            "derive": {"steps": "10 * width"},
            "search": {"trials": 2, "space": space},
        }
    )
    assert spec.search is not None
    cell = CellMaker(spec)(spec.search.draw(Random(0)))
    assert not isinstance(cell, str)
    assert cell.config.train.steps == 10 * cell.config.model.channels
    assert all(one.config.train.steps == 10 * one.config.model.channels for one in make_plan(spec).cells)


MISTAKES = {
    "circle": ({"steps": "batch_size * 2", "batch_size": "steps / 4"}, ("circle", "steps = batch_size * 2")),
    "own circle": ({"batch_size": "1e9 / flops_per_step"}, ("circle", "batch_size")),
    "unknown name": ({"steps": "batch_sze * 2"}, ("'batch_sze'", "'batch_size'")),
    "unknown key": ({"stepz": "2"}, ("'stepz'", "'steps'")),
    "refused value": ({"steps": "16 - width"}, ("cell width=16", "train.steps", "steps = 16 - width is 0")),
    "too large a float": ({"learning_rate": "10^400"}, ("learning_rate", "larger than any float")),
    "too large a count": ({"seed": "10^400"}, ("train.seed", "does not fit")),
    "no solution": ({"steps": "5 if flops_per_step > 9e8 else 3000"}, ("steps", "no solution")),
    "no steps": ({"steps": "1e3 / flops_per_step"}, ("cell width=8", "train.steps", "is 0")),
    "division by 0": ({"steps": "1 / (16 - width)^2 * 99"}, ("cell width=16", "steps", "division by zero")),
    "root of a negative": ({"learning_rate": "1e-3 * (12 - width)^0.5"}, ("cell width=16", "learning_rate")),
    "wrong type": ({"quantizer": "width"}, ("cell width=8", "quantizer", "gives 8")),
    "no formula": ({"steps": 5}, ("steps: 5", "set")),
    "given twice": ({"width": "8"}, ("'width'", "axes")),
    "no mapping": (["steps"], ("derive", "mapping")),
    "a call": ({"steps": "open('x')"}, ("derive: steps", "a call", "sqrt")),
}


@pytest.mark.parametrize(("derive", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_error(plan_of: PlanOf, derive: object, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(axes={"width": [8, 16]}, derive=derive)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"flop_budget": [1e12]}, ("'flop_budget'", "'flops_budget'")),
        ({"flops_budget": [True]}, ("flops_budget: True",)),
        ({"flops_budget": ["much"]}, ("flops_budget=much", "steps")),
        ({"parameters": [8]}, ("'parameters'", "not a config key")),
    ],
)
def test_axes_that_are_no_keys_are_checked(plan_of: PlanOf, axes: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(axes=axes, derive={"steps": STEPS})
    assert [word for word in words if word not in str(caught.value)] == [], caught.value
    with pytest.raises(UserError, match="'rfid'"):
        plan_of(axes={"rfid": [1]}, derive={"steps": "rfid"})


def test_set_and_derive_may_not_give_one_key(plan_of: PlanOf) -> None:
    for values in ({"steps": 4}, {"train": {"steps": 4}}):
        with pytest.raises(UserError, match="'steps'"):
            plan_of(set=values, derive={"steps": "width"})


def test_gsq_plan_says_what_is_derived_and_draws_it(folder: Path) -> None:
    values = {
        "name": "iso",
        "base": "cpu-tiny",
        "axes": {"flops_budget": [2e11, 4e11], "width": [8, 16]},
        "derive": {"steps": STEPS, "learning_rate": RATE},
    }
    Path("iso.yaml").write_text(yaml.safe_dump(values))
    shown = CliRunner().invoke(app, ["plan", "iso.yaml", "--figure", "figures/iso"])
    assert shown.exit_code == 0, shown.output
    assert STEPS in shown.output
    assert "a whole number" in shown.output
    assert (folder / "figures/iso.png").stat().st_size > 10_000
    document = json.loads(CliRunner().invoke(app, ["plan", "iso.yaml", "--json"]).stdout)
    assert document["derived"][1] == {"key": "train.steps", "formula": STEPS, "rounded_to": "a whole number"}
    assert document["cells"][0]["axes"].keys() == {"flops_budget", "width", "steps", "learning_rate"}


def test_a_power_is_a_power_in_every_file() -> None:
    assert Constraint("groups^3 == 8").holds({"groups": 2}.__getitem__)
    assert ResourceExpression("minutes", "minutes + 2^5").value(Estimate(60, 2**30), None) == 33


def test_a_formula_names_what_it_is_rounded_to(plan_of: PlanOf) -> None:
    found: dict[str, Derivation] = {
        one.name: one for one in load_spec(
            {"name": "s", "base": "cpu-tiny", "derive": {"optimizer.betas": "[0.9, 1 - 0.1 / 3]", "seed": "2.6"}}
        ).derive
    }  # fmt: skip
    assert found["seed"].rounded(2.6) == 3
    assert found["optimizer.betas"].rounded([0.9, 1 - 0.1 / 3]) == [0.9, 0.966667]
    (cell,) = plan_of(derive={"optimizer.betas": "[0.9, 1 - 0.1 / 3]"}).cells
    assert cell.config.optimizer.betas == (0.9, 0.966667)
