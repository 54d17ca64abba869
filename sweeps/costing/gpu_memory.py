"""Whether the cells of a plan fit the memory of their GPU, and with which micro-batch they would."""

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

# Share of the memory up to which a micro-batch is proposed, since estimates may be low.
ROOM = 0.9


@cache
def local_gpu_bytes() -> int | None:
    """Memory of this machine's smallest GPU, as nvidia-smi says; None where it does not."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return min(int(line) for line in done.stdout.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def gpu_bytes(cluster: Cluster) -> tuple[int, str] | None:
    """Memory of the GPU that each process has, and its name; None without one, or where it is not known."""
    if cluster.gpus:
        return GPU_MEMORY_GB[cluster.gpu] << 30, cluster.gpu.upper()
    if cluster.kind == "local" and local_gpus() and (found := local_gpu_bytes()):
        return found, "GPU of this machine"
    return None


def memory_notes(cells: Sequence[Cell], rate: Speed, cluster: Cluster) -> tuple[str, ...]:
    """A sentence where cells need more memory than their GPU has, with the micro-batch that would fit, if one does."""
    known = gpu_bytes(cluster)
    if known is None:
        return ()
    limit, name = known
    processes = cluster.nodes * cluster.processes_per_node

    def needed(config: RunConfig) -> float:
        share = max(1, config.train.batch_size // processes)
        held = min(config.execution.micro_batch or share, share)
        # By a batch of that size: what the arithmetic holds at a time, whether a micro-batch of it is allowed or not.
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
    return (f"{text}, not even with execution.micro_batch: 1; use a larger GPU, or more of them for each run",)
