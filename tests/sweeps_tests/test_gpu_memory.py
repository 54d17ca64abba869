"""Whether a plan says that cells do not fit their GPU, and with which micro-batch they would."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from gsq.config.flops import cost
from gsq.sweeps import forecast
from gsq.sweeps.costing.gpu_memory import memory_notes
from gsq.sweeps.planning.cells import Cell, Plan
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.gpus import GPU_MEMORY_GB, GPU_PEAKS
from gsq.sweeps.spec.sweep import load_spec

PlanOf = Callable[..., Plan]
H100 = Cluster(kind="slurm", gpus=1, gpu="h100", name="one")


def paper(**changes: object) -> Plan:
    from gsq.sweeps.planning.cells import make_plan

    values = {"data.kind": "photos", "loss.perceptual": "efficientnet_lite0", **changes}
    return make_plan(load_spec({"name": "large", "base": "paper-f16", "set": values, "axes": {"groups": [1, 2]}}))


def told(plan: Plan, cluster: Cluster) -> str:
    """The note on memory, as forecast has it; empty where there is none."""
    return "".join(note for note in forecast(plan, cluster).notes if note.startswith("memory"))


def needed(cell: Cell, micro_batch: int) -> float:
    config = replace(cell.config, execution=replace(cell.config.execution, micro_batch=micro_batch))
    return cost(config).memory_bytes + (1 << 30)


def test_every_gpu_has_a_memory() -> None:
    assert GPU_MEMORY_GB.keys() == GPU_PEAKS.keys()


@pytest.mark.parametrize("gpu", ["h100", "a10", "t4", "b200"])
def test_the_largest_micro_batch_that_fits_is_named(gpu: str) -> None:
    plan = paper()
    note = told(plan, replace(H100, gpu=gpu))
    limit = GPU_MEMORY_GB[gpu] << 30
    assert "2 of 2 cells" in note and gpu.upper() in note and f"{GPU_MEMORY_GB[gpu]} GiB" in note
    (micro,) = (int(text) for text in re.findall(r"micro_batch: (\d+)", note))
    assert 256 % micro == 0
    assert all(needed(cell, micro) <= 0.9 * limit for cell in plan.cells)
    assert any(needed(cell, 2 * micro) > 0.9 * limit for cell in plan.cells)
    # Who follows it is not told again, with the same runs.
    followed = paper(**{"execution.micro_batch": micro})
    assert told(followed, replace(H100, gpu=gpu)) == ""
    assert [cell.signature for cell in followed.cells] == [cell.signature for cell in plan.cells]


def test_processes_share_a_batch() -> None:
    assert told(paper(), replace(H100, gpus=8)) == ""
    note = told(paper(), replace(H100, gpus=8, gpu="t4"))
    (micro,) = (int(text) for text in re.findall(r"micro_batch: (\d+)", note))
    assert 32 % micro == 0 and micro < 32


def test_where_no_micro_batch_helps_it_says_so() -> None:
    whole = told(paper(**{"quantizer.entropy_weight": 0.1}), H100)
    assert "micro-batch is not possible" in whole and "entropy_weight" in whole
    huge = told(paper(**{"model.channels": 2048, "model.norm_groups": 32}), replace(H100, gpu="t4"))
    assert "not even with execution.micro_batch: 1" in huge


def test_small_cells_and_cores_are_not_mentioned(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"seed": [0]})
    assert told(plan, H100) == told(plan, Cluster()) == told(paper(), Cluster()) == ""


def test_a_local_gpu_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsq.sweeps.costing.gpu_memory.local_gpus", lambda: ["0"])
    found = forecast(paper(), H100)
    for size, fits in ((24 << 30, False), (512 << 30, True), (None, True)):
        monkeypatch.setattr("gsq.sweeps.costing.gpu_memory.local_gpu_bytes", lambda size=size: size)
        assert bool(memory_notes(paper().cells, found.speed, Cluster())) is not fits
