"""Cells by signature, state, failure class and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from preamble import PlanOf

from gsq import sweeps
from gsq.errors import UserError
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state.cancellation import marked
from gsq.sweeps.state.selection import select, select_one
from gsq.sweeps.state.status import status

pytestmark = pytest.mark.usefixtures("cpu")


def chosen(plan: Plan, *words: str) -> list[int]:
    signatures = [cell.signature for cell in plan.cells]
    return [signatures.index(cell.signature) for cell in select(plan, status(plan.name), words)]


# Selections


def test_a_selection_by_signature_state_failure_and_value(four: Plan) -> None:
    a, b, _, _ = (cell.signature for cell in four.cells)
    assert chosen(four) == [0, 1, 2, 3]
    assert chosen(four, a) == chosen(four, a[:6]) == [0]
    assert chosen(four, a, b[:7]) == [0, 1]
    assert chosen(four, "failed") == chosen(four, "cancelled", "out_of_memory") == [1, 2]
    # A cell that waits is queued to its user, and planned to the reconciler.
    assert chosen(four, "queued") == chosen(four, "planned") == [3]
    assert chosen(four, "running") == chosen(four, "diverged") == []
    assert chosen(four, "stopped") == chosen(four, "cancelled") == [2]
    assert chosen(four, "groups=1") == chosen(four, "quantizer.groups=1") == [0, 1]
    assert chosen(four, "groups=2", "width=32") == [3]
    assert chosen(four, "groups=2", "groups=1", "model.channels=16.0") == [0, 2]
    assert chosen(four, "failed", "groups=2") == [2]
    # Also by what is no axis.
    assert chosen(four, "quantizer=gsq", "data.kind=photos", "model.adaptive_norm=true") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        (
            "zzz",
            ["'zzz'", "not a signature", "states: ", "failed (2)", "out_of_memory (1)", "groups=1|2", "signatures:"],
        ),
        ("faild", ["did you mean 'failed'"]),
        ("groups=3", ["groups=3", "groups is 1 (2 cells), 2 (2 cells)"]),
        ("grups=1", ["'grups' is not a config key", "did you mean 'groups'"]),
        ("", ["''", "states: "]),
    ],
)
def test_an_unknown_selection_says_what_there_is(four: Plan, word: str, parts: list[str]) -> None:
    for act in (lambda: sweeps.cancel(four.name, [word]), lambda: sweeps.retry(four.name, [word])):
        with pytest.raises(UserError) as error:
            act()
        assert all(part in str(error.value) for part in parts), str(error.value)
    assert marked(SweepFolder(Path("runs").absolute(), four.name)) == set()


def test_one_cell_is_named_by_what_fits_no_other(four: Plan) -> None:
    found = status(four.name)
    assert select_one(four, found, ["groups=1", "done"]).signature == four.cells[0].signature
    with pytest.raises(UserError, match=r"'groups=1' matches 2 cells .* name one: .* groups=1 model.channels=16;"):
        select_one(four, found, ["groups=1"])
    with pytest.raises(UserError, match=r"'small' .*running; .*states"):
        select_one(four, found, ["running"])


def test_a_beginning_that_fits_several_cells_is_refused(plan_of: PlanOf, folder: Path) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4, 8], "seed": {"range": [0, 9]}})
    SweepFolder(folder / "runs", plan.name).write_plan(plan)
    first = next(c for c in "0123456789abcdef" if sum(cell.signature[0] == c for cell in plan.cells) > 1)
    with pytest.raises(UserError, match=rf"'{first}', .*more characters.*: {first}"):
        chosen(plan, first)


def test_levels_and_floats_are_values_too(folder: Path, plan_of: PlanOf) -> None:
    cases = [
        {"quantizer": "fsq", "latent_dim": 2, "groups": 2, "codebook_size": 8, "quantizer.levels": [8, 5]},
        {"learning_rate": 0.0005},
    ]
    plan = plan_of(cases=cases)
    SweepFolder(folder / "runs", plan.name).write_plan(plan)
    assert chosen(plan, "quantizer.levels=8x5") == chosen(plan, "quantizer.levels=[8, 5]") == [0]
    assert chosen(plan, "learning_rate=5e-4") == [1]
