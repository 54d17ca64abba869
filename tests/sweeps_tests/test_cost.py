"""Estimates before a run, what measured runs make of them, and the resource classes they are rounded up to."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preamble import PlanOf, WriteRun

from gsq.config.overrides import to_dict
from gsq.errors import UserError
from gsq.records.read import RunRecord
from gsq.sweeps.costing.cost import (
    ASSUMED_CPU_FLOPS,
    FRAMEWORK_BYTES,
    STARTUP_SECONDS,
    TIME_MARGIN,
    Estimate,
    estimate,
    evaluation_flops,
    evaluations,
    fit,
    speed,
    step_seconds,
)
from gsq.sweeps.costing.forecast import by_class
from gsq.sweeps.costing.resource_class import (
    MEMORY_STEPS_GB,
    MINUTE_STEPS,
    ResourceClass,
    ResourceExpression,
    resource_class,
)
from gsq.sweeps.planning.cells import Cell
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.resources import RESOURCE_NAMES


def record(cell: Cell, a_step: float, state: str = "done", **more: Any) -> RunRecord:
    """A run on a CPU that took ``a_step`` seconds for each step."""
    steps = cell.config.train.steps
    values: dict[str, Any] = {"step": steps, "device": "cpu", "startup_seconds": 3.0, "timed_steps": steps - 1, **more}
    return RunRecord(cell.signature, state, steps=steps, attempts=1, step_seconds=a_step, **values)


def dense_flops(cell: Cell) -> float:
    """Multiply-adds of a step, without the look-up."""
    return (cell.cost.train_flops - cell.cost.lookup_flops) / cell.config.train.steps


@pytest.mark.parametrize("axis", ["steps", "width", "batch_size", "image_size"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_estimates_grow(plan_of: PlanOf, axis: str, device: str) -> None:
    values = {"steps": [100, 200, 400], "width": [16, 32, 64], "batch_size": [4, 8, 16], "image_size": [32, 64, 128]}
    plan = plan_of(axes={axis: values[axis]})
    found = [estimate(cell, speed(plan.cells, {}, device), device) for cell in plan.cells]
    seconds = [e.seconds for e in found]
    assert seconds[0] < seconds[1] < seconds[2]
    memory = [e.memory_bytes for e in found]
    assert memory == sorted(memory) and (axis == "steps" or memory[0] < memory[2])


def test_training_time_is_proportional_to_steps(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"steps": [10_000, 20_000]}, set={"evaluation.num_images": 2, "loss.discriminator_start": 0})
    rate = speed(plan.cells, {}, "cpu")
    one, two = (estimate(cell, rate, "cpu").seconds - STARTUP_SECONDS["cpu"] for cell in plan.cells)
    assert two / one == pytest.approx(2, rel=1e-3)


def test_a_measured_speed_replaces_the_assumption(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    assumed = speed(plan.cells, {}, "cpu")
    assert assumed.step[1] == 1 / ASSUMED_CPU_FLOPS and "assumed" in assumed.basis and assumed.runs == 0
    first, second, _ = plan.cells
    measured = speed(plan.cells, {first.signature: record(first, 0.25, evaluation_seconds=7.0)}, "cpu")
    assert measured.basis == "measured on 1 run of this sweep" and measured.runs == 1
    assert step_seconds(first, measured) == pytest.approx(0.25)
    steps = first.config.train.steps
    assert estimate(first, measured, "cpu").seconds == pytest.approx(3.0 + 0.25 * steps + 7.0)
    # Half the speed, twice the time for the cells to come.
    slower = speed(plan.cells, {first.signature: record(first, 0.5)}, "cpu")
    assert step_seconds(second, slower) == pytest.approx(2 * step_seconds(second, measured))


def test_what_tells_nothing_of_this_device_or_has_hardly_begun_is_left_out(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": [0, 1, 2, 3, 4]})
    a, b, c, d, e = plan.cells
    records = {
        a.signature: record(a, 0.2),
        b.signature: record(b, 0.01, device="cuda"),
        c.signature: record(c, 9.0, state="running", timed_steps=3),
        d.signature: RunRecord(d.signature, "failed", "error", attempts=1),
    }
    found = speed(plan.cells, records, "cpu")
    assert found.runs == 1 and step_seconds(e, found) == pytest.approx(0.2)
    # What runs and has a rate counts as what is finished.
    records[c.signature] = record(c, 0.4, state="running", timed_steps=20)
    assert step_seconds(e, speed(plan.cells, records, "cpu")) == pytest.approx(0.3)
    assert step_seconds(e, speed(plan.cells, records, "gpu")) == pytest.approx(0.01)


def test_a_line_is_fitted_where_small_models_are_slower_for_each_flop(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"width": [16, 24, 32, 48, 64], "seed": [0, 1]}, set={"loss.discriminator_start": 0})
    *known, unknown, _ = plan.cells

    def truth(cell: Cell) -> float:
        return 0.05 + dense_flops(cell) / 2e10

    records = {c.signature: record(c, truth(c)) for c in known}
    # One of them was disturbed.
    records[known[3].signature] = record(known[3], 10 * truth(known[3]))
    found = speed(plan.cells, records, "cpu")
    assert step_seconds(unknown, found) == pytest.approx(truth(unknown), rel=0.02)
    assert found.step[0] == pytest.approx(0.05, rel=0.1)


def test_the_look_up_has_a_rate_of_its_own_where_that_predicts_better(plan_of: PlanOf) -> None:
    axes = {"codebook_size": [64, 1024, 16384], "width": [16, 32, 64]}
    plan = plan_of(axes=axes, set={"loss.discriminator_start": 0})

    def truth(cell: Cell) -> float:
        return dense_flops(cell) / 2e10 + cell.cost.lookup_flops / cell.config.train.steps / 2e9

    *known, unknown = plan.cells
    found = speed(plan.cells, {c.signature: record(c, truth(c)) for c in known}, "cpu")
    assert step_seconds(unknown, found) == pytest.approx(truth(unknown), rel=0.02)


def test_steps_before_the_discriminator_are_told_apart(plan_of: PlanOf) -> None:
    """A run that is at the beginning tells what the steps cost that it has made, not those to come."""
    plan = plan_of(axes={"seed": [0, 1]}, set={"loss.discriminator_start": 150, "steps": 300})
    begun, other = plan.cells
    rate = 1e-10
    dense = (begun.cost.generator_flops + begun.cost.perceptual_flops + begun.cost.lookup_flops) / 300
    records = {begun.signature: record(begun, rate * dense, "running", step=100)}
    found = speed(plan.cells, records, "cpu")
    assert step_seconds(other, found) == pytest.approx(rate * other.cost.train_flops / 300)
    assert other.cost.discriminator_flops > 0


def test_estimates_of_evaluations_start_up_and_what_is_left(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"evaluation.every": [0]}, set={"steps": 100, "loss.discriminator_start": 0})
    (cell,) = plan.cells
    (often,) = plan_of(axes={"evaluation.every": [30]}, set={"steps": 100, "loss.discriminator_start": 0}).cells
    assert (evaluations(cell), evaluations(often)) == (1, 4)
    found = speed([cell], {cell.signature: record(cell, 1.0, evaluation_seconds=20.0)}, "cpu")
    assert estimate(cell, found, "cpu").seconds == pytest.approx(3 + 100 + 20)
    assert estimate(often, found, "cpu").seconds == pytest.approx(3 + 100 + 80)
    assert estimate(often, found, "cpu", 70).seconds == pytest.approx(3 + 30 + 40)
    assert estimate(cell, found, "cpu", 100).seconds == pytest.approx(3 + 20)


def test_an_evaluation_costs_what_it_measures(plan_of: PlanOf) -> None:
    def macs(**changes: object) -> float:
        (cell,) = plan_of(set={"evaluation": {"num_images": 2, **changes}}, axes={"seed": [0]}).cells
        return evaluation_flops(cell) / 4

    small, inception = macs(), macs(features="inception", allow_small=True)
    # Inception always looks at 299 x 299 pixels, LPIPS at both images.
    assert inception - small > 5e9
    assert macs(lpips="vgg") - small == pytest.approx(2 * 15_346_630_656 * (32 / 224) ** 2, rel=1e-6)
    assert macs(resolutions=[32, 64]) == pytest.approx(5 * small, rel=1e-3)


def test_an_evaluation_of_two_images_is_mostly_its_constant(plan_of: PlanOf) -> None:
    """A record as a canary makes it: an evaluation of 400 images does not take 200 times as long."""
    short, whole = plan_of(axes={"evaluation.num_images": [2]}), plan_of(axes={"evaluation.num_images": [400]})
    found = speed(short.cells, {c.signature: record(c, 0.1, evaluation_seconds=2.0) for c in short.cells}, "cpu")
    with_constant = [estimate(p.cells[0], found, "cpu").seconds for p in (short, whole)]
    assert with_constant[1] - with_constant[0] < 100


def test_memory_is_corrected_by_measured_peaks(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"width": [16, 32, 64, 128]}, set={"loss.discriminator_start": 0})
    framework = FRAMEWORK_BYTES["cpu"]

    def found(peak: Callable[[int], float], count: int = 2) -> list[int]:
        cells = plan.cells[:count]
        records = {c.signature: record(c, 0.1, peak_memory_bytes=round(peak(c.cost.memory_bytes))) for c in cells}
        rate = speed(plan.cells, records, "cpu")
        return [estimate(c, rate, "cpu").memory_bytes for c in plan.cells]

    arithmetic = [c.cost.memory_bytes for c in plan.cells]
    assert found(lambda x: x + framework) == pytest.approx([x + framework for x in arithmetic])
    # A smaller constant; a larger one.
    assert found(lambda x: x + 3e8) == pytest.approx([x + 3e8 for x in arithmetic])
    assert found(lambda x: x + 5e9) == pytest.approx([x + 5e9 for x in arithmetic])
    # With runs enough, a line: activations that take half of what was thought, or twice as much.
    for factor in (0.5, 2.0):
        line = [4e8 + factor * x for x in arithmetic]
        assert found(lambda x, factor=factor: 4e8 + factor * x, 4) == pytest.approx(line, rel=0.01)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("state", "start", "counts"), [("running", 0, False), ("done", 300, False), ("done", 150, True)]
)
def test_memory_counts_once_the_discriminator_and_the_evaluation_have_come(
    plan_of: PlanOf, state: str, start: int, counts: bool
) -> None:
    plan = plan_of(axes={"seed": [0, 1]}, set={"loss.discriminator_start": start, "steps": 300})
    cell = plan.cells[0]
    records = {cell.signature: record(cell, 0.1, state, step=300, peak_memory_bytes=10 << 30)}
    seen = estimate(cell, speed(plan.cells, records, "cpu"), "cpu").memory_bytes
    assert (seen == pytest.approx(10 << 30)) == counts


def other_run(write_run: WriteRun, cell: Cell, device: str, a_step: float) -> None:
    steps = cell.config.train.steps
    timing = {"training_seconds": a_step * (steps - 1), "trained_steps": steps - 1, "startup_seconds": 3.0}
    run = write_run(cell, "done", steps, environment={"device": device}, device="cpu", **timing)
    run.write_config({**to_dict(cell.config), "data_label": cell.data_label})


def test_runs_of_other_sweeps_on_the_commonest_device_stand_in(
    plan_of: PlanOf, write_run: WriteRun, folder: Path
) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    here = SweepFolder(folder / "runs", plan.name)
    others = plan_of("others", axes={"width": [16, 24, 32], "seed": [7]}, set={"loss.discriminator_start": 0})
    for cell in others.cells:
        other_run(write_run, cell, "fast cpu", dense_flops(cell) / 1e10)
    (odd,) = plan_of("odd", axes={"seed": [8]}).cells
    other_run(write_run, odd, "slow cpu", 99.0)
    found = speed(plan.cells, {}, "cpu", here)
    assert found.basis == "measured on 3 runs of other sweeps on fast cpu"
    cell = plan.cells[0]
    expected = cell.cost.train_flops / cell.config.train.steps / 1e10
    assert step_seconds(cell, found) == pytest.approx(expected, rel=0.02)
    assert "assumed" in speed(plan.cells, {}, "gpu", here).basis
    # A run of its own sets the level.
    records = {cell.signature: record(cell, 3 * expected)}
    both = speed(plan.cells, records, "cpu", here)
    assert both.basis == "measured on 1 run of this sweep and 3 runs of other sweeps on fast cpu"
    assert step_seconds(cell, both) == pytest.approx(3 * expected)
    # With enough of them, the others are not asked.
    many = plan_of(axes={"seed": [0, 1, 2, 3]})
    alone = speed(many.cells, {c.signature: record(c, 0.2) for c in many.cells}, "cpu", here)
    assert alone.basis == "measured on 4 runs of this sweep"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(1e6, 1e14), st.floats(1e-4, 1e3)), min_size=1, max_size=20))
def test_whatever_is_measured_coefficients_are_finite_and_not_negative(pairs: list[tuple[float, float]]) -> None:
    found = fit([(1.0, x) for x, _ in pairs], [y for _, y in pairs], ((1,), (0, 1)))
    assert all(math.isfinite(c) and c >= 0 for c in found) and sum(found) > 0


def test_a_line_through_noise_is_no_better_than_one_rate() -> None:
    random.seed(3)
    rows = [(1.0, 10.0 ** random.uniform(9, 11)) for _ in range(20)]
    measured = [row[1] * 1e-10 * math.exp(random.gauss(0, 0.2)) for row in rows]
    constant, rate = fit(rows, measured, ((1,), (0, 1)))
    assert constant < 0.1 and rate == pytest.approx(1e-10, rel=0.2)


def test_classes_hold_what_they_were_made_for() -> None:
    for megabytes in (1, 700, 1400, 5000, 20_000, 300_000):
        for seconds in (1.0, 400.0, 500.0, 4000.0, 90_000.0):
            wanted = Estimate(seconds, megabytes << 20)
            found = resource_class(wanted)
            assert found.memory_gb in MEMORY_STEPS_GB and found.minutes in MINUTE_STEPS
            assert found.memory_gb * 2**30 > wanted.memory_bytes and found.minutes * 60 > wanted.seconds
    assert resource_class(Estimate(1, 1)) == ResourceClass(MEMORY_STEPS_GB[0], MINUTE_STEPS[0])
    assert resource_class(Estimate(1e12, 1 << 60)) == ResourceClass(MEMORY_STEPS_GB[-1], MINUTE_STEPS[-1])


def test_more_never_gets_less() -> None:
    classes = [resource_class(Estimate(10.0 * 1.3**i, int(2e8 * 1.3**i))) for i in range(40)]
    assert classes == sorted(classes)
    assert all(a.minutes <= b.minutes and a.memory_gb <= b.memory_gb for a, b in pairwise(classes))


def test_a_large_sweep_falls_into_few_classes_and_no_cell_is_lost(plan_of: PlanOf) -> None:
    axes = {"width": [16, 32, 64], "groups": [1, 2, 4], "codebook_size": {"log2": [6, 12]}, "seed": {"range": [0, 2]}}
    plan = plan_of(axes=axes)
    assert len(plan.cells) == 189
    rate = speed(plan.cells, {}, "cpu")
    classes = by_class(plan.cells, rate, Cluster())
    assert len(classes) <= 4
    assert sorted(c.signature for cells in classes.values() for c in cells) == sorted(c.signature for c in plan.cells)
    fixed = by_class(plan.cells, rate, Cluster(memory_gb=9, minutes=77))
    assert list(fixed) == [ResourceClass(9, 77)]
    asked = by_class(plan.cells, rate, Cluster(memory_gb="4 + memory_gb", minutes="max(30, 3 * minutes)"))
    assert 1 <= len(asked) <= 8 and all(r.memory_gb >= 5 and r.minutes >= 30 for r in asked)


def test_cells_in_turn_make_jobs_longer_and_fewer(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": {"range": [0, 39]}, "steps": [100, 6400]})
    rate, short = speed(plan.cells, {}, "cpu"), plan.cells[0]
    seconds = estimate(short, rate, "cpu").seconds
    alone, many = (next(iter(by_class([short], rate, Cluster(kind="slurm", cells_in_turn=n)))) for n in (1, 100))
    assert (alone.cells_in_turn, many.cells_in_turn) == (1, 100)
    assert many.minutes >= 100 * seconds * TIME_MARGIN / 60 > alone.minutes
    # An expression is of the job's estimate, that of all its cells.
    asked = next(iter(by_class([short], rate, Cluster(kind="slurm", cells_in_turn=100, minutes="minutes"))))
    assert asked.minutes >= 100 * seconds / 60
    # There are as many as the wall time holds: more of the short ones.
    auto = by_class(plan.cells, rate, Cluster(kind="slurm", cells_in_turn="auto", minutes=60))
    turns = {cell.config.train.steps: one.cells_in_turn for one, cells in auto.items() for cell in cells}
    assert turns[100] > turns[6400] >= 1 and {one.minutes for one in auto} == {60}
    for cells in auto.values():
        total = turns[cells[0].config.train.steps] * estimate(cells[0], rate, "cpu").seconds * TIME_MARGIN
        assert 1800 < total <= 3600 or turns[cells[0].config.train.steps] == 1


# Expressions of the estimate


WANTED = Estimate(7200.0, 5 << 30)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90),
        ("max(30, 3 * minutes)", 3 * 128),
        ("min(2 * minutes, 200)", 200),
        ("ceil(seconds / 3600) * 60", 180),
        ("memory_gb + 4", 10),
        ("30 if minutes < 60 else 720", 720),
        ("(steps + images) // downsample", (300 + 2400) // 4),
        ("groups * 10 + parameters / 1e9", 21),
        ("60 if quantizer == 'gsq' else 1", 60),
    ],
)
def test_a_resource_may_be_an_expression(plan_of: PlanOf, text: str, value: int) -> None:
    (cell,) = plan_of(axes={"groups": [2]}, set={"steps": 300, "batch_size": 8, "downsample": 4}).cells
    found = resource_class(WANTED, minutes=text, cell=cell)
    assert found == ResourceClass(resource_class(WANTED).memory_gb, value)
    assert resource_class(WANTED, memory_gb=text, minutes=77, cell=cell) == ResourceClass(value, 77)


def test_cells_alike_get_alike_resources(plan_of: PlanOf) -> None:
    """Expressions give few classes, and never less than the estimate itself."""
    values = [Estimate(3600 * 1.01**i, 1 << 30) for i in range(40)]
    found = [resource_class(v, minutes="minutes", memory_gb=8) for v in values]
    assert len(set(found)) <= 3
    assert all(c.minutes >= v.seconds / 60 for c, v in zip(found, values, strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3 * minuts", ["minutes: '3 * minuts'", "unknown name 'minuts'", "did you mean 'minutes'", "memory_gb"]),
        ("open('x')", ["'open('x')' is a call", "min, max, ceil"]),
        ("minutes.real", ["not allowed"]),
        ("(lambda: 1)()", ["is a call"]),
        ("max(minutes", ["never closed"]),
        ("min", ["unknown name 'min'"]),
        ("-minutes", ["not a positive number"]),
        ("minutes / 0", ["division by zero"]),
        ("minutes > 3", ["True, not a number"]),
        ("'long'", ["not a number"]),
        ("max()", ["max"]),
        ("max(minutes, key=1)", ["is a call"]),
        ("1e300 * 1e300", ["not a positive number"]),
        ("[1]", ["minutes: '[1]'"]),
        ("", ["minutes: ''"]),
    ],
)
def test_a_wrong_expression_says_what_is_allowed(plan_of: PlanOf, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        resource_class(WANTED, minutes=text, cell=plan_of(axes={"groups": [1]}).cells[0])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@settings(max_examples=150, deadline=None)
@given(st.text("minutes max(30, *+-/%.[]'\"_) if else", max_size=30))
def test_whatever_is_written_is_a_number_or_a_user_error(text: str) -> None:
    with suppress(UserError):
        assert ResourceExpression("minutes", text).value(WANTED, None) >= 1


def test_names_are_known_for_every_cell(plan_of: PlanOf) -> None:
    (cell,) = plan_of(axes={"groups": [1]}).cells
    for name in RESOURCE_NAMES:
        assert ResourceExpression("minutes", f"9 if {name} == {name} else 1").value(WANTED, cell) == 9
    with pytest.raises(UserError, match="steps"):
        ResourceExpression("minutes", "steps").value(WANTED, None)
