"""Which evaluations finished runs lack, after the sweep file has changed and after gsq has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preamble import PlanOf, WriteRun

from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Cell, Lacking, Plan
from gsq.sweeps.planning.folder import ASKED_FILE, SweepFolder, read_asked
from gsq.sweeps.planning.protocols import asked, lacking, note_asked


def setting(plan_of: PlanOf, **evaluation: Any) -> Plan:
    return plan_of(set={"steps": 100, "evaluation": {"num_images": 16, **evaluation}}, axes={"seed": [0, 1]})


@pytest.fixture
def finished(write_run: WriteRun) -> Callable[..., RunFolder]:
    """finished(cell, "p1", "p2", steps=(50, 100)): a run that was evaluated by these protocols."""

    def make(cell: Cell, *protocols: str, steps: tuple[int, ...] = (100,), weights: bool = True) -> RunFolder:
        rows = tuple({"protocol": name, "step": step} for name in protocols for step in steps)
        run = write_run(cell, "done", 100, rows)
        if weights:
            (run.attempt_folders()[-1] / "model.safetensors").touch()
        return run

    return make


def lack(plan: Plan, folder: Path, coming: tuple[str, ...] = ()) -> Lacking:
    sweep = SweepFolder(folder / "runs", plan.name)
    return lacking(plan, sweep, sweep.records([cell.signature for cell in plan.cells]), coming)


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": 12},
        {"lpips": "alex"},
        {"features": "inception", "allow_small": True},
        {"reconstruction_dtype": "bfloat16"},
        {"resolutions": [64]},
    ],
)
def test_a_changed_key_leaves_the_run_and_lacks_an_evaluation(
    plan_of: PlanOf, finished: Callable[..., RunFolder], folder: Path, change: dict[str, Any]
) -> None:
    before, now = setting(plan_of), setting(plan_of, **change)
    first = before.cells[0].signature
    assert [cell.signature for cell in now.cells] == [cell.signature for cell in before.cells]
    finished(before.cells[0], *(one.protocol for one in asked(before)[first]))
    assert lack(before, folder) == Lacking()
    assert lack(now, folder).sizes == {first: tuple(one.size for one in asked(now)[first])}
    # What does not move a number does not ask for another.
    assert lack(setting(plan_of, batch_size=3), folder) == Lacking()


def test_only_the_sizes_that_are_missing(plan_of: PlanOf, finished: Callable[..., RunFolder], folder: Path) -> None:
    plan = setting(plan_of, resolutions=[32, 64, 96])
    first = plan.cells[0].signature
    finished(plan.cells[0], asked(plan)[first][1].protocol)
    assert lack(plan, folder).sizes == {first: (32, 96)}


def test_earlier_steps_are_named_and_only_the_last_is_evaluated(
    plan_of: PlanOf, finished: Callable[..., RunFolder], folder: Path
) -> None:
    before, now, other = setting(plan_of), setting(plan_of, every=40), setting(plan_of, every=40, num_images=12)
    first = before.cells[0].signature
    (protocol,) = (one.protocol for one in asked(before)[first])
    finished(before.cells[0], protocol)
    assert lack(now, folder) == Lacking(earlier_steps=frozenset({first}))
    found = lack(other, folder)
    assert (set(found.sizes), found.earlier_steps) == ({first}, {first})
    # Steps 40 and 80, and the last.
    finished(before.cells[0], protocol, steps=(40, 80))
    assert lack(now, folder) == Lacking()


def test_rows_of_an_earlier_gsq_stand_for_todays_unless_others_are_todays(
    plan_of: PlanOf, finished: Callable[..., RunFolder], folder: Path
) -> None:
    plan = setting(plan_of)
    old, other = plan.cells
    (one,) = asked(plan)[old.signature]
    finished(old, one.earlier)
    # Nothing is done again because gsq measures more exactly now.
    assert lack(plan, folder) == Lacking()
    # But the other cell will be evaluated by today's protocol, and one table holds one.
    found = lack(plan, folder, coming=(other.signature,))
    assert (set(found.sizes), found.again) == ({old.signature}, {old.signature})
    finished(other, one.protocol)
    assert lack(plan, folder).again == {old.signature}
    finished(old, one.protocol)
    assert lack(plan, folder) == Lacking()


def test_finished_cells_that_a_few_are_repeated_of_are_evaluated_like_these(
    plan_of: PlanOf, finished: Callable[..., RunFolder], folder: Path
) -> None:
    """Their table would be of two protocols else, and nothing of it could be compared."""
    plan = setting(plan_of)
    sweep = SweepFolder(folder / "runs", plan.name)
    sweep.write_plan(plan)
    old = plan.cells[0]
    (one,) = asked(plan)[old.signature]
    finished(old, one.earlier)
    repeats = plan_of(set={"steps": 100, "evaluation": {"num_images": 16}, "train.repeat": 1}, axes={"seed": [0]})
    (repeat,) = repeats.cells
    assert lack(repeats, folder) == Lacking()
    found = lack(repeats, folder, coming=(repeat.signature,))
    assert (found.cells, set(found.sizes), found.again) == ((old,), {old.signature}, {old.signature})
    # Another evaluation than theirs says nothing of them.
    fewer = plan_of(set={"steps": 100, "evaluation": {"num_images": 12}, "train.repeat": 1}, axes={"seed": [0]})
    assert lack(fewer, folder, coming=(repeat.signature,)) == Lacking()
    finished(old, one.protocol)
    assert lack(repeats, folder, coming=(repeat.signature,)) == Lacking()


def test_without_weights_nothing_can_be_evaluated(
    plan_of: PlanOf, finished: Callable[..., RunFolder], folder: Path
) -> None:
    plan = setting(plan_of, every=50)
    first = plan.cells[0].signature
    finished(plan.cells[0], "another", weights=False)
    assert lack(plan, folder) == Lacking(weightless=frozenset({first}))


def test_what_is_asked_is_kept_beside_the_plan(plan_of: PlanOf, folder: Path) -> None:
    plan = setting(plan_of)
    sweep = SweepFolder(folder / "runs", plan.name)
    assert read_asked(sweep) == {}
    sweep.write_plan(plan)
    note_asked(plan, sweep)
    wanted = {s: tuple((one.protocol, one.earlier) for one in ones) for s, ones in asked(plan).items()}
    assert read_asked(sweep) == wanted and len(wanted) == 2
    # A retry knows no images, and so no protocols.
    note_asked(Plan(plan.name, plan.cells[:1]), sweep)
    assert read_asked(sweep) == wanted
    # What an edited file no longer asks for is not asked for.
    edited = Plan(plan.name, setting(plan_of, num_images=12).cells[:1], data=plan.data)
    note_asked(edited, sweep)
    assert read_asked(sweep).keys() == {plan.cells[0].signature}
    assert read_asked(sweep)[plan.cells[0].signature] != wanted[plan.cells[0].signature]
    for damage in ("", "[]", '{"cells": {"a": [1]}}', '{"cells": 3}'):
        (sweep.path / ASKED_FILE).write_text(damage)
        assert read_asked(sweep) == {}
        note_asked(plan, sweep)
        assert read_asked(sweep) == wanted


def test_a_plan_without_its_images_asks_for_nothing(plan_of: PlanOf, folder: Path) -> None:
    plan = setting(plan_of)
    assert asked(Plan(plan.name, plan.cells)) == {}
