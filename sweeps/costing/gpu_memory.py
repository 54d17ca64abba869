"""Checks whether the cells of a plan fit their GPU, and proposes a micro-batch that does."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from gsq.config.flops import cost
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.records.folder import runs_root
from gsq.sweeps.costing.cost import Speed, speed
from gsq.sweeps.planning.cells import Cell, Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.cluster import Cluster, local_gpus
from gsq.sweeps.spec.gpus import GPU_MEMORY_GB

# Share of the memory that a proposed micro-batch may use, because estimates may be low.
ROOM = 0.9


@cache
def local_gpu_bytes() -> int | None:
    """Return the memory of this machine's smallest GPU from nvidia-smi; None without an answer."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return min(int(line) for line in done.stdout.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def gpu_bytes(cluster: Cluster) -> tuple[int, str] | None:
    """Return memory and name of each process's GPU; None without one, or if it is unknown."""
    if cluster.gpus:
        return GPU_MEMORY_GB[cluster.gpu] << 30, cluster.gpu.upper()
    if cluster.kind == "local" and local_gpus() and (found := local_gpu_bytes()):
        return found, "GPU of this machine"
    return None


def needed_bytes(config: RunConfig, rate: Speed, processes: int = 1) -> float:
    """Return the memory that a run needs on each of its devices, by the estimate."""
    share = max(1, config.train.batch_size // processes)
    held = min(config.execution.micro_batch or share, share)
    # A batch of the micro-batch's size needs the same memory, and is valid for every size.
    part = replace(
        config, train=replace(config.train, batch_size=held), execution=replace(config.execution, micro_batch=0)
    )
    return rate.memory[0] + rate.memory[1] * cost(part).memory_bytes


def fitting(config: RunConfig, rate: Speed, limit: float, processes: int = 1) -> RunConfig:
    """Return a config as it is if it fits ``limit`` bytes, else with its largest micro-batch that does.

    Raises UserError if none fits, or the config allows no micro-batch.
    """
    if needed_bytes(config, rate, processes) <= ROOM * limit:
        return config
    share = max(1, config.train.batch_size // processes)
    for micro in (n for n in range(share, 0, -1) if share % n == 0):
        smaller = replace(config, execution=replace(config.execution, micro_batch=micro))
        if needed_bytes(smaller, rate, processes) <= ROOM * limit:
            return smaller
    raise UserError(
        f"--micro-batch: auto: not even one image a pass fits {limit / 2**30:.0f} GiB (about "
        f"{needed_bytes(smaller, rate, processes) / 1e9:,.0f} GB); use a larger GPU, or a smaller model or image"
    )


def read_micro_batch(text: str) -> int | None:
    """Return the number of ``--micro-batch``, None for auto. Raises UserError for anything else."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--micro-batch: {text!r} is neither a number of images, such as 16, nor auto")
    return int(text)


def with_micro_batch(plan: Plan, text: str, cluster: Cluster, runs: Path | None = None) -> Plan:
    """Return a plan whose cells have the micro-batch of ``--micro-batch``: a number, or auto.

    A micro-batch changes no result, so that signatures stay. Raises UserError for another text, for a search, for auto
    where no GPU's memory is known, and for cells that cannot have it.
    """
    number = read_micro_batch(text)
    if plan.search is not None:
        raise UserError("--micro-batch: a search draws its cells later; write set: {execution.micro_batch: N} instead")
    if number is not None:
        return replace(plan, cells=tuple(_held(cell, number) for cell in plan.cells))
    known = gpu_bytes(cluster)
    if known is None:
        raise UserError(
            f"--micro-batch: auto fits the memory of a GPU, and '{cluster.name}' has none that is known; name a "
            "cluster file with gpus and gpu, or give a number"
        )
    folder = SweepFolder(runs or runs_root(), plan.name)
    records = folder.records([cell.signature for cell in plan.cells])
    rate = speed(plan.cells, records, cluster.device, folder, cluster.gpu)
    processes = cluster.nodes * cluster.processes_per_node
    return replace(
        plan, cells=tuple(replace(c, config=fitting(c.config, rate, known[0], processes)) for c in plan.cells)
    )


def _held(cell: Cell, number: int) -> Cell:
    return replace(cell, config=replace(cell.config, execution=replace(cell.config.execution, micro_batch=number)))


def memory_notes(cells: Sequence[Cell], rate: Speed, cluster: Cluster) -> tuple[str, ...]:
    """Return a sentence if cells need more memory than their GPU has, with a micro-batch that fits if there is one."""
    known = gpu_bytes(cluster)
    if known is None:
        return ()
    limit, name = known
    processes = cluster.nodes * cluster.processes_per_node

    def needed(config: RunConfig) -> float:
        return needed_bytes(config, rate, processes)

    wanted = {cell.signature: needed(cell.config) for cell in cells}
    large = [cell for cell in cells if wanted[cell.signature] > limit]
    if not large:
        return ()
    largest = max(large, key=lambda cell: wanted[cell.signature])
    count, gigabytes = len(large), wanted[largest.signature] / 1e9
    text = (
        f"memory: {count} of {len(cells)} cells need more than one {name} has ({limit / 2**30:.0f} GiB): up to "
        f"{gigabytes:,.0f} GB, {largest.title}. They do not fit"
    )
    share = math.gcd(*(max(1, cell.config.train.batch_size // processes) for cell in large))
    for micro in (n for n in range(share, 0, -1) if share % n == 0):
        try:
            configs = [replace(c.config, execution=replace(c.config.execution, micro_batch=micro)) for c in large]
        except UserError as error:
            return (f"{text}, and a smaller micro-batch is not possible: {error}",)
        most = max(map(needed, configs))
        if most <= ROOM * limit:
            way_out = f"set: {{execution.micro_batch: {micro}}} would fit ({most / 1e9:,.0f} GB; --micro-batch auto)"
            return (f"{text} as they are; {way_out}, with the same result",)
    return (f"{text}, not even with execution.micro_batch: 1; use a larger GPU or more GPUs per run",)
