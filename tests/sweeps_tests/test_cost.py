"""Estimates before a run, and the resource classes they are rounded up to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from gsq.record import RunRecord
from sweeps.cluster import Cluster
from sweeps.cost import (
    ASSUMED_FLOPS_PER_SECOND,
    MEMORY_STEPS_GB,
    MINUTE_STEPS,
    STARTUP_SECONDS,
    Estimate,
    ResourceClass,
    estimate,
    resource_class,
    speed,
)
from sweeps.planning import Plan
from sweeps.submission import resource_classes

PlanOf = Callable[..., Plan]


def record(signature: str, seconds: float, state: str = "done", attempts: int = 1) -> RunRecord:
    return RunRecord(signature, state, step=1, steps=1, attempts=attempts, seconds=seconds)


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
    assert assumed.flops_per_second == ASSUMED_FLOPS_PER_SECOND["cpu"] and "assumed" in assumed.basis
    first = plan.cells[0]
    measured = speed(plan.cells, {first.signature: record(first.signature, 104.0)}, "cpu")
    assert "measured on 1" in measured.basis
    assert estimate(first, measured, "cpu").seconds == pytest.approx(104.0)
    # Half the speed, twice the time for the cells to come.
    slower = speed(plan.cells, {first.signature: record(first.signature, 204.0)}, "cpu")
    assert estimate(plan.cells[1], slower, "cpu").seconds > 1.9 * (estimate(plan.cells[1], measured, "cpu").seconds - 4)


def test_the_median_of_whole_runs_counts(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": [0, 1, 2, 3, 4]})
    seconds = [104.0, 104.0, 9004.0]
    records = {c.signature: record(c.signature, s) for c, s in zip(plan.cells, seconds, strict=False)}
    # Neither an interrupted run, nor one that is not done, tells the speed of a whole one.
    records[plan.cells[3].signature] = record(plan.cells[3].signature, 5.5, attempts=2)
    records[plan.cells[4].signature] = record(plan.cells[4].signature, 5.5, state="running")
    found = speed(plan.cells, records, "cpu")
    assert estimate(plan.cells[0], found, "cpu").seconds == pytest.approx(104.0)
    assert "3 finished cells" in found.basis


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
    classes = resource_classes(list(plan.cells), {}, Cluster())
    assert len(classes) <= 4
    assert sorted(c.signature for cells in classes.values() for c in cells) == sorted(c.signature for c in plan.cells)
    fixed = resource_classes(list(plan.cells), {}, Cluster(memory_gb=9, minutes=77))
    assert list(fixed) == [ResourceClass(9, 77)]
