"""Checks whether the cells of a plan fit their GPU, and proposes a micro-batch that does."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from gsq.config.flops import cost
from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.sweeps.costing.cost import Speed
from gsq.sweeps.planning.cells import Cell
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


def memory_notes(cells: Sequence[Cell], rate: Speed, cluster: Cluster) -> tuple[str, ...]:
    """Return a sentence if cells need more memory than their GPU has, with a micro-batch that fits if there is one."""
    known = gpu_bytes(cluster)
    if known is None:
        return ()
    limit, name = known
    processes = cluster.nodes * cluster.processes_per_node

    def needed(config: RunConfig) -> float:
        share = max(1, config.train.batch_size // processes)
        held = min(config.execution.micro_batch or share, share)
        # A batch of the micro-batch's size needs the same memory, and is valid for every size.
        part = replace(
            config, train=replace(config.train, batch_size=held), execution=replace(config.execution, micro_batch=0)
        )
        return rate.memory[0] + rate.memory[1] * cost(part).memory_bytes

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
            way_out = f"set: {{execution.micro_batch: {micro}}} would fit ({most / 1e9:,.0f} GB)"
            return (f"{text} as they are; {way_out}, with the same result",)
    return (f"{text}, not even with execution.micro_batch: 1; use a larger GPU or more GPUs per run",)
