"""Which faults there are, which of them a round is dealt by its seed, and the table of what became of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

STEPS = 60
SWEEP = f"""\
name: faults
base: cpu-tiny
set:
  steps: {STEPS}
  batch_size: 4
  model: {{channels: 8, norm_groups: 4}}
  loss: {{perceptual: none, discriminator_start: 10}}
  evaluation: {{num_images: 8, every: 20}}
  execution: {{checkpoint_every: 4, log_every: 1}}
axes:
  groups: [1, 2, 4]
  codebook_size: [64, 256]
  seed: [0, 1]
"""
CLUSTER = "kind: slurm\npartition: test\nparallel: 4\nminutes: 10\nmemory_gb: 1\n"
# Two jobs at a time, each with several cells in turn, beside the parent that they are forked from.
IN_TURN = "kind: slurm\npartition: test\nparallel: 2\nminutes: 10\nmemory_gb: 2\ncells_in_turn: {}\n"
DISK = "400m"
# Cells that run out of memory, one that diverges, one that meets an error.
SHRINKING, DIVERGING, BROKEN = (0, 5), 3, 8


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how often, when, and what may become of the attempt that it hits."""

    weight: int
    moments: tuple[str, ...]
    outcomes: tuple[str, ...]


ANYWHERE = ("start", "attempt", "step", "step", "step", "checkpoint", "checksum", "evaluation")
BETWEEN = ("start", "step", "step", "step", "evaluation")
STEP = ("step",)
KINDS = {
    "kill": Kind(8, ANYWHERE, ("lost",)),
    "scancel": Kind(4, BETWEEN, ("cancelled",)),
    "requeue": Kind(3, BETWEEN, ("requeued",)),
    "preempt": Kind(4, BETWEEN, ("preempted",)),
    "walltime": Kind(1, STEP, ("preempted", "timeout")),
    "walltime_hang": Kind(1, STEP, ("timeout",)),
    # Done, where the job ended before SLURM gave the node up; its processes run on.
    "node_failure": Kind(1, STEP, ("node_failure", "requeued", "done")),
    "allocate": Kind(2, STEP, ("lost", "out_of_memory")),
    "truncate": Kind(4, STEP, ("lost",)),
    "torn_line": Kind(3, STEP, ("lost",)),
    "stale": Kind(3, STEP, ("lost",)),
    "full_disk": Kind(2, STEP, ("disk_full",)),
    "clock": Kind(3, BETWEEN, ("unharmed",)),
    "slurmd": Kind(2, STEP, ("unharmed",)),
    "controller": Kind(2, STEP, ("unharmed",)),
    "second_attempt": Kind(3, STEP, ("unharmed",)),
    "squeue_silent": Kind(3, BETWEEN, ("unharmed",)),
    # Only where the round says so, and on the cells named above.
    "memory_error": Kind(0, ("step", "evaluation"), ("out_of_memory",)),
    "nan": Kind(0, STEP, ("diverged",)),
    "error": Kind(0, STEP, ("error",)),
    # Faults of the driver.
    "two_drivers": Kind(0, (), ("one job each",)),
    "driver_killed": Kind(0, (), ("submitted by the next",)),
    "controller_away": Kind(0, (), ("submitted by the next",)),
    # Faults of the cluster, and of jobs before Python begins.
    "ids_reused": Kind(0, (), ("ours alone",)),
    "dies_before_python": Kind(0, (), ("error",)),
}
DRIVERS = ("two_drivers", "driver_killed", "controller_away")
# Jobs of a round that die before Python, and times that numbers of jobs are given again.
DOOMED, REUSES = 2, 2
# One more process than SLURM knows of may run a cell after these.
OVERLAPPING = ("second_attempt", "node_failure")
# A fault that hits several cells at once.
COLLATERAL = {"full_disk": ("disk_full",), "node_failure": ("requeued", "node_failure")}


@dataclass
class Fault:
    """One that was carried out."""

    kind: str
    moment: str
    signature: str = ""
    attempt: int = 0
    outcome: str = ""


def deal(seed: int, count: int) -> tuple[dict[int, list[dict[str, Any]]], list[str]]:
    """Orders by cell, and the driver's faults: ``count`` of both together, and some more in case cells end early."""
    draw = random.Random(seed)
    drivers = list(DRIVERS) * max(1, count // 30)
    names = [name for name, kind in KINDS.items() if kind.weight]
    extra = max(2, count // 8)
    special = 2 * len(SHRINKING) + 3 + DOOMED + REUSES
    room = count + extra - special - len(drivers)
    drawn = names[: max(0, room)]
    drawn += draw.choices(names, [KINDS[name].weight for name in names], k=max(0, room - len(drawn)))
    draw.shuffle(drawn)
    cells: dict[int, list[str]] = {cell: [] for cell in range(12)}
    for i, name in enumerate(drawn):
        cells[i % 12].append(name)
    for cell in SHRINKING:
        for _ in range(2):
            cells[cell].insert(draw.randrange(len(cells[cell]) + 1), "memory_error")
    # Early, while steps are left to diverge in; and once more when it is tried again.
    cells[DIVERGING + 1] += cells[DIVERGING][1:]
    cells[DIVERGING] = [*cells[DIVERGING][:1], "nan", "nan"]
    cells[BROKEN].append("error")
    draw.shuffle(drivers)
    if drivers[-1] == "controller_away":
        # The first submission makes the sweep.
        drivers.insert(0, drivers.pop())
    orders = {
        cell: [
            {"kind": name, "moment": draw.choice(KINDS[name].moments), "after": draw.randrange(0, 9)} for name in kinds
        ]
        for cell, kinds in cells.items()
    }
    for order in orders[DIVERGING][-2:]:
        order["after"] = draw.randrange(0, 3)
    return orders, drivers


def table(faults: list[Fault]) -> str:
    """Faults by kind and outcome, as Markdown."""
    lines = ["| fault | number | moments | what became of the attempt |", "|---|---|---|---|"]
    for kind in KINDS:
        mine = [f for f in faults if f.kind == kind]
        if mine:
            counts = [
                ", ".join(f"{name} {n}" for name, n in sorted(Counter(words).items()))
                for words in ([f.moment for f in mine], [f.outcome for f in mine])
            ]
            lines.append(f"| {kind} | {len(mine)} | {counts[0]} | {counts[1]} |")
    lines.append(f"| all | {len(faults)} | | |")
    return "\n".join(lines)
