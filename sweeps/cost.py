"""How long a cell will take and how much memory, before it runs; and the resource class to ask for."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gsq.config import RunConfig
from gsq.record import DONE, RunRecord
from sweeps.planning import Cell

# Effective training speed assumed until a run of the sweep has been measured. CPU: one thread of a 2-core AMD
# EPYC virtual machine on the cpu-tiny preset. GPU: a third of an A100's dense bfloat16 peak, not measured.
ASSUMED_FLOPS_PER_SECOND = {"cpu": 4.0e10, "gpu": 1.0e14}
# Start-up (imports, weights, images), and evaluation per image over a training image's time.
STARTUP_SECONDS = {"cpu": 4.0, "gpu": 30.0}
# The interpreter with torch and the feature network, on top of the model's own memory.
FRAMEWORK_BYTES = {"cpu": 600 << 20, "gpu": 1 << 30}


@dataclass(frozen=True)
class Speed:
    """Training FLOPs a second of one device, and where the number comes from."""

    flops_per_second: float
    basis: str


class Estimate(NamedTuple):
    seconds: float
    """Device seconds of the whole cell: start-up, training, evaluation."""
    memory_bytes: int


def speed(cells: Iterable[Cell], records: Mapping[str, RunRecord], device: str) -> Speed:
    """Median over the finished cells of the sweep; before there are any, an assumption that says so."""
    measured = []
    for cell in cells:
        record = records.get(cell.signature)
        if record is not None and record.state == DONE and record.attempts == 1:
            seconds = record.seconds - STARTUP_SECONDS[device]
            if seconds > 1:
                measured.append(_flops(cell.config, cell) / seconds)
    if measured:
        return Speed(statistics.median(measured), f"measured on {len(measured)} finished cells of this sweep")
    return Speed(ASSUMED_FLOPS_PER_SECOND[device], f"assumed for a {device}; finished cells will correct it")


def _flops(config: RunConfig, cell: Cell) -> float:
    """Training, and evaluation at one forward pass an image beside the features."""
    cost = cell.cost
    per_image = (cost.generator_flops + cost.perceptual_flops) / cost.images / 3
    return cost.train_flops + 2 * config.evaluation.num_images * per_image


def estimate(cell: Cell, rate: Speed, device: str) -> Estimate:
    """Time and peak memory of one cell on one device."""
    seconds = STARTUP_SECONDS[device] + _flops(cell.config, cell) / rate.flops_per_second
    return Estimate(seconds, cell.cost.memory_bytes + FRAMEWORK_BYTES[device])


@dataclass(frozen=True, order=True)
class ResourceClass:
    """What a job asks for. Cells are rounded up to few classes, each one job array."""

    memory_gb: int
    minutes: int


MEMORY_STEPS_GB = (2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024)
MINUTE_STEPS = (15, 30, 60, 120, 240, 480, 720, 1440, 2880, 5760, 10080)
# Room for estimates that are too low.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 2.0


def resource_class(wanted: Estimate) -> ResourceClass:
    """The smallest class that holds an estimate with its margins; the largest where none does."""
    memory_gb = wanted.memory_bytes * MEMORY_MARGIN / 2**30
    minutes = wanted.seconds * TIME_MARGIN / 60
    return ResourceClass(
        next((step for step in MEMORY_STEPS_GB if step >= memory_gb), MEMORY_STEPS_GB[-1]),
        next((step for step in MINUTE_STEPS if step >= minutes), MINUTE_STEPS[-1]),
    )
