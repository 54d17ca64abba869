"""Whether a plan says that cells do not fit their GPU, and with which micro-batch they would."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from preamble import PlanOf

from gsq.config.flops import cost
from gsq.config.presets import PRESETS, preset
from gsq.errors import UserError
from gsq.sweeps import forecast
from gsq.sweeps.costing.cost import speed
from gsq.sweeps.costing.gpu_memory import ROOM, memory_notes, needed_bytes, with_micro_batch
from gsq.sweeps.planning.cells import Cell, Plan, make_plan
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.gpus import GPU_MEMORY_GB, GPU_PEAKS
from gsq.sweeps.spec.sweep import load_spec

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


RTX = Cluster(kind="slurm", gpus=1, gpu="rtx4090", name="small")


def test_auto_takes_the_largest_micro_batch_that_fits_and_keeps_the_signature() -> None:
    plan = paper()
    fitted = with_micro_batch(plan, "auto", RTX)
    assert told(plan, RTX) and not told(fitted, RTX)
    for before, after in zip(plan.cells, fitted.cells, strict=True):
        micro, room = after.config.execution.micro_batch, ROOM * (GPU_MEMORY_GB["rtx4090"] << 30)
        assert after.signature == before.signature and needed(before, micro) <= room < needed(before, 2 * micro)
    huge = Cluster(kind="slurm", gpus=1, gpu="b200", name="huge")
    tiny = make_plan(load_spec({"name": "t", "base": "cpu-tiny"}))
    assert with_micro_batch(tiny, "auto", huge).cells == tiny.cells


@pytest.mark.parametrize(
    ("text", "cluster", "words"),
    [
        ("auto", Cluster(), "'local' has none"),
        ("many", RTX, "'many' is neither"),
        ("0", RTX, "'0' is neither"),
        ("3", RTX, "does not divide"),
    ],
)
def test_a_wrong_micro_batch_is_named(text: str, cluster: Cluster, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsq.sweeps.costing.gpu_memory.local_gpus", list)
    with pytest.raises(UserError, match=words):
        with_micro_batch(paper(), text, cluster)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("gpu")])
def test_a_preset_for_one_gpu_fits_it_by_the_estimate_and_names_its_data(name: str) -> None:
    config = preset(name)
    limit = int(name[3:5]) << 30
    assert needed_bytes(config, speed([], {}, "gpu")) <= ROOM * limit
    assert config.data.path == "$IMAGENET" and config.data.image_size == int(name[6:])
