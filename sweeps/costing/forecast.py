"""The cost of submitting a plan: time, disk, the accuracy of past estimates, and the budget."""

from __future__ import annotations

import heapq
import math
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gsq.errors import Missing, UserError
from gsq.files import read_json
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import RunRecord
from gsq.runs.warm_start import planned_start
from gsq.sweeps.costing.cost import TIME_MARGIN, Estimate, Speed, estimate, evaluation_flops, probe_seconds, speed
from gsq.sweeps.costing.gpu_memory import memory_notes
from gsq.sweeps.costing.notes import branch_notes, evaluation_notes, image_notes, part_notes, start_notes
from gsq.sweeps.costing.resource_class import ResourceClass, resource_class
from gsq.sweeps.planning.cells import Cell, Lacking, Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.planning.horizons import branches, families
from gsq.sweeps.spec.cluster import Cluster, load_cluster, local_workers
from gsq.sweeps.spec.sweep import Budget
from gsq.sweeps.state.reconcile import reconcile
from gsq.words import counted

# Checkpoints of a running cell: the last two and the one being written.
CHECKPOINTS = 3
# Memory of the parent from which the cells of a shared job are forked.
WARM_BYTES = 260 << 20
# Budget limits that do not depend on a measured speed.
TIMELESS = ("disk_gb", "cells")


@dataclass(frozen=True)
class Accuracy:
    """Errors of the estimates that were recorded when cells were first submitted."""

    median_factor: float
    """1.12: half of the cells were off by a factor below 1.12, in either direction."""
    ninety_percent_factor: float
    cells: int


@dataclass(frozen=True)
class Forecast:
    """What is still to run of a plan, without finished cells and those that a submission would leave alone."""

    cells: int
    finished: int
    untried: frozenset[str]
    """Signatures without an attempt."""
    left: Mapping[str, float]
    """Device seconds left of each cell to run, by signature."""
    estimates: Mapping[str, Estimate]
    """Estimate of every cell from its beginning."""
    parallel: int
    """Cells that run at the same time."""
    wall_seconds: float
    """Time until the last cell ends in an empty queue, longest first."""
    end: float
    """That moment, in seconds since the epoch."""
    disk_bytes: int
    """Most bytes on disk: checkpoints of running cells, weights of all, and kept checkpoints."""
    disk_bytes_after: int
    free_bytes: int
    """Free space on the disk of the runs folder."""
    classes: int
    cells_in_turn: int
    """Most cells that one place of a job trains one after the other."""
    speed: Speed
    accuracy: Accuracy | None
    """None until a cell with a recorded estimate has finished."""
    budget: Budget
    evaluations: Mapping[str, float] = field(default_factory=dict)
    """Device seconds of the evaluations that each finished cell lacks, by signature."""
    notes: tuple[str, ...] = ()
    """What else to know before a submission, a sentence each."""

    @property
    def device_seconds(self) -> float:
        return sum(self.left.values()) + sum(self.evaluations.values())

    @property
    def memory_bytes(self) -> int:
        """Memory of the largest cell to run, or of the largest cell if none is."""
        return max(self.estimates[s].memory_bytes for s in self.left or self.estimates)

    @property
    def spent(self) -> dict[str, tuple[float, float]]:
        """Estimate and limit of each budget limit, by its name."""
        found = {
            "device_hours": self.device_seconds / 3600,
            "hours": self.wall_seconds / 3600,
            "disk_gb": self.disk_bytes / 1e9,
            "cells": len(self.left),
        }
        limits = asdict(self.budget)
        return {name: (value, limits[name]) for name, value in found.items() if limits[name] is not None}

    def over(self) -> dict[str, tuple[float, float]]:
        """Return the part of ``spent`` that exceeds its limit."""
        return {name: pair for name, pair in self.spent.items() if pair[0] > pair[1]}

    def to_dict(self) -> dict[str, Any]:
        """Return the totals for JSON."""
        return {
            "cells": self.cells,
            "finished": self.finished,
            "to_run": len(self.left),
            "to_evaluate": len(self.evaluations),
            "notes": list(self.notes),
            "device_seconds": self.device_seconds,
            "parallel": self.parallel,
            "wall_seconds": self.wall_seconds,
            "end": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.end)),
            "disk_bytes": self.disk_bytes,
            "disk_bytes_after": self.disk_bytes_after,
            "free_bytes": self.free_bytes,
            "memory_bytes": self.memory_bytes,
            "resource_classes": self.classes,
            "past_estimates": asdict(self.accuracy) if self.accuracy else None,
            "budget": {name: {"estimate": e, "limit": limit} for name, (e, limit) in self.spent.items()},
            "over_budget": sorted(self.over()),
        }


def forecast(
    plan: Plan, cluster: Cluster | str = "local", *, runs: Path | None = None, retry: bool = False
) -> Forecast:
    """Return the cost of submitting a plan now, from the run folders, without asking SLURM.

    retry: as for ``submit``. Raises UserError for an unknown cluster.
    """
    cluster = load_cluster(cluster)
    folder = SweepFolder(runs or runs_root(), plan.name)
    if plan.search is not None:
        return _of_search(plan, cluster, folder)
    signatures = [cell.signature for cell in plan.cells]
    records = folder.records(signatures)
    # Ask once, because this looks for GPUs.
    device = cluster.device
    rate = speed(plan.cells, records, device, folder, cluster.gpu)
    resumed = cluster.resumed("request" if retry else "submit")
    actions = reconcile(signatures, records, {}, time.time(), resumed=resumed)
    wanted = {action.cell.signature for action in actions if action.kind in ("submit", "wait")}
    todo = [cell for cell in plan.cells if cell.signature in wanted]
    estimates = {cell.signature: estimate(cell, rate, device) for cell in plan.cells}
    starts = _starts(todo, folder, records)
    steps = {cell.signature: records[cell.signature].step or starts.get(cell.signature, 0) for cell in todo}
    begun = {signature for signature in steps if records[signature].step}
    branched = {s: branch.step for s, branch in branches(families(todo), steps, begun).items()}
    steps |= branched
    left = {cell.signature: estimate(cell, rate, device, steps[cell.signature]).seconds for cell in todo}
    slots = local_workers(cluster) if cluster.kind == "local" else cluster.parallel * cluster.cells_per_job
    shared_by = cluster.nodes * cluster.processes_per_node
    lack = _lacking(plan, folder, records, wanted)
    evaluations = {c.signature: _evaluation_seconds(c, rate, lack) for c in lack.cells}
    classes = by_class(todo, rate, cluster)
    wall = wall_seconds([seconds / shared_by for seconds in _in_jobs(left, classes)], slots)
    wall += wall_seconds(evaluations.values(), slots)
    return Forecast(
        **_common(plan, folder, records, todo, rate, cluster, slots, wall, steps, classes),
        cells=len(plan.cells),
        finished=sum(record.state == DONE for record in records.values()),
        untried=frozenset(s for s, record in records.items() if not record.attempts),
        left=left,
        estimates=estimates,
        evaluations=evaluations,
        notes=(
            *image_notes(plan),
            *part_notes(plan, folder.parts()),
            *start_notes(todo, {s: step for s, step in starts.items() if s not in branched}),
            *branch_notes(todo, branched),
            *memory_notes(todo, rate, cluster),
            *evaluation_notes(lack, evaluations, rate.device),
        ),
    )


def _common(
    plan: Plan,
    folder: SweepFolder,
    records: Mapping[str, RunRecord],
    todo: Sequence[Cell],
    rate: Speed,
    cluster: Cluster,
    slots: int,
    wall: float,
    steps: Mapping[str, int] = MappingProxyType({}),
    classes: Mapping[ResourceClass, Sequence[Cell]] | None = None,
) -> dict[str, Any]:
    """Return the fields that grids and searches share. todo: the cells to run, ``slots`` at the same time. steps: those
    from which they start, by signature."""
    kept = {id(c): sum(step > steps.get(c.signature, 0) for step in c.config.kept_steps) for c in todo}
    after = sum(weight_bytes(c) + kept[id(c)] * checkpoint_bytes(c) for c in todo)
    classes = by_class(todo, rate, cluster) if classes is None else classes
    places = sum(-(-len(cells) // resources.cells_in_turn) for resources, cells in classes.items())
    return {
        "parallel": min(slots, places),
        "wall_seconds": wall,
        "end": time.time() + wall,
        "disk_bytes": after + CHECKPOINTS * sum(heapq.nlargest(slots, map(checkpoint_bytes, todo))),
        "disk_bytes_after": after,
        "free_bytes": shutil.disk_usage(next(p for p in (folder.runs, *folder.runs.parents) if p.exists())).free,
        "classes": len(classes),
        "cells_in_turn": max((one.cells_in_turn for one in classes), default=1),
        "speed": rate,
        "accuracy": accuracy(folder, records),
        "budget": plan.budget,
    }


def _starts(todo: Iterable[Cell], folder: SweepFolder, records: Mapping[str, RunRecord]) -> dict[str, int]:
    """Return the step from which each new cell starts, if another run keeps a checkpoint of it."""
    found: dict[str, int] = {}
    if not (folder.runs / "lineage").is_dir():
        return found
    for cell in todo:
        run = RunFolder.of(folder.runs, cell.signature)
        if records[cell.signature].step or cell.config.program:
            continue
        # Absent weights without a known hash raise Missing; the signature is then provisional.
        with suppress(Missing):
            if start := planned_start(run, cell.config, cell.data_label.rpartition(":")[2]):
                found[cell.signature] = start[0]
    return found


def _lacking(plan: Plan, folder: SweepFolder, records: Mapping[str, RunRecord], coming: Collection[str]) -> Lacking:
    if not folder.exists and not any(record.state == DONE for record in records.values()):
        return Lacking()
    # Protocols need numpy, and a user's own features need torch.
    from gsq.sweeps.planning.protocols import lacking

    return lacking(plan, folder, records, coming)


def _evaluation_seconds(cell: Cell, rate: Speed, lack: Lacking) -> float:
    """Return the device seconds of the evaluations that a finished cell lacks."""
    share = len(lack.sizes[cell.signature]) / max(1, len(cell.config.evaluation.resolutions))
    return (
        rate.startup_seconds
        + rate.evaluation[0]
        + share * rate.evaluation[1] * evaluation_flops(cell)
        + probe_seconds(cell, rate)
    )


def _of_search(plan: Plan, cluster: Cluster, folder: SweepFolder) -> Forecast:
    """Forecast a search as if its next trials were the plan's examples in turn and none were pruned."""
    from gsq.sweeps.state.study import parallel_trials, search_status

    assert plan.search is not None and plan.search.search is not None
    status = search_status(folder)
    states = [trial.state for trial in status.trials] if status else []
    count = max(0, plan.search.search.trials - sum(state != "running" for state in states))
    drawn = folder.read_plan().cells if folder.exists else ()
    records = folder.records([cell.signature for cell in drawn])
    device = cluster.device
    rate = speed(drawn or plan.cells, records, device, folder, cluster.gpu)
    todo = [plan.cells[i % len(plan.cells)] for i in range(count)]
    estimates = {cell.signature: estimate(cell, rate, device) for cell in plan.cells}
    trials = {f"trial {i}": estimates[cell.signature] for i, cell in enumerate(todo)}
    slots = parallel_trials(plan, cluster)
    wall = wall_seconds([one.seconds / (cluster.nodes * cluster.processes_per_node) for one in trials.values()], slots)
    return Forecast(
        **_common(plan, folder, records, todo, rate, cluster, slots, wall),
        cells=plan.search.search.trials,
        finished=len(states) - states.count("running"),
        untried=frozenset(),
        left={name: one.seconds for name, one in trials.items()},
        estimates={**estimates, **trials},
        notes=(*image_notes(plan), *memory_notes(plan.cells, rate, cluster)),
    )


def by_class(cells: Iterable[Cell], rate: Speed, cluster: Cluster) -> dict[ResourceClass, list[Cell]]:
    """Group cells by what their jobs request: the estimate rounded up, or what the cluster file says."""
    grouped: dict[ResourceClass, list[Cell]] = defaultdict(list)
    device = cluster.device
    for cell in cells:
        one = estimate(cell, rate, device)
        # Several processes need less memory for activations each, but a tight bound is not worth the effort.
        seconds = one.seconds / (cluster.nodes * cluster.processes_per_node)
        turns = _cells_in_turn(cluster, seconds)
        shared = one._replace(
            seconds=seconds * turns,
            memory_bytes=one.memory_bytes * cluster.processes_per_node * cluster.cells_per_job
            + (WARM_BYTES if cluster.shares else 0),
        )
        wanted = resource_class(shared, minutes=cluster.minutes, memory_gb=cluster.memory_gb, cell=cell)
        grouped[replace(wanted, cells_in_turn=turns)].append(cell)
    return dict(sorted(grouped.items()))


def _cells_in_turn(cluster: Cluster, seconds: float) -> int:
    """Return how many cells of an estimate one place of a job trains in turn. For auto a power of two, so that similar
    cells share a class."""
    if isinstance(cluster.cells_in_turn, int):
        return cluster.cells_in_turn
    assert isinstance(cluster.minutes, int)
    return int(2 ** max(0, math.floor(math.log2(60 * cluster.minutes / (TIME_MARGIN * max(seconds, 1e-3))))))


def _in_jobs(seconds: Mapping[str, float], classes: Mapping[ResourceClass, Sequence[Cell]]) -> list[float]:
    """Return how long each place of a job takes for its cells in turn. seconds: of each cell, by signature."""
    found = []
    for resources, cells in classes.items():
        each = [seconds[cell.signature] for cell in cells]
        found += [sum(each[i : i + resources.cells_in_turn]) for i in range(0, len(each), resources.cells_in_turn)]
    return found


def wall_seconds(seconds: Iterable[float], slots: int) -> float:
    """Return the time until the last job ends, with ``slots`` at a time and the longest first."""
    jobs = sorted(seconds, reverse=True)
    ends = [0.0] * max(1, min(slots, len(jobs)))
    for job in jobs:
        heapq.heapreplace(ends, ends[0] + job)
    return max(ends)


def checkpoint_bytes(cell: Cell) -> int:
    """Return the bytes of a checkpoint: weights, averages and two AdamW moments; no averages of the discriminator."""
    return 4 * (4 * cell.cost.parameters + 3 * cell.cost.discriminator_parameters)


def weight_bytes(cell: Cell) -> int:
    """Return the bytes of the averaged weights, which are kept."""
    return 4 * cell.cost.parameters


def accuracy(folder: SweepFolder, records: Mapping[str, RunRecord]) -> Accuracy | None:
    """Compare the device seconds of finished cells, over all attempts, with estimates.json.

    This skips cells that started from the checkpoint of another run.
    """
    recorded = (read_json(folder.path / "estimates.json") or {}).get("cells", {})
    errors = sorted(
        abs(math.log(record.seconds / recorded[signature]["seconds"]))
        for signature, record in records.items()
        if signature in recorded and record.state == DONE and record.seconds > 0 and not record.started_from
    )
    if not errors:
        return None
    ninety = errors[math.ceil(0.9 * len(errors)) - 1]
    return Accuracy(math.exp(statistics.median(errors)), math.exp(ninety), len(errors))


def admit(
    plan: Plan,
    cluster: Cluster | str = "local",
    *,
    runs: Path | None = None,
    retry: bool = False,
    over_budget: bool = False,
) -> Plan:
    """Return the plan with estimates of its untried cells, which writing it records in estimates.json.

    Raises UserError before anything is written if the plan exceeds its budget, unless ``over_budget``.
    """
    found = forecast(plan, cluster, runs=runs, retry=retry)
    if not over_budget:
        check_budget(plan.name, found)
    return with_estimates(plan, found)


def with_estimates(plan: Plan, found: Forecast) -> Plan:
    """Return the plan with estimates of its untried cells."""
    new = {s: e for s, e in found.estimates.items() if s in found.left and s in found.untried}
    return replace(plan, estimates={s: e._asdict() for s, e in new.items()})


def check_budget(name: str, found: Forecast, limits: Iterable[str] | None = None) -> None:
    """Raise UserError, naming each exceeded limit, if a forecast is over its budget. limits: check only these."""
    over = [
        f"{key} {needed:.4g} (limit {limit:g})"
        for key, (needed, limit) in found.over().items()
        if limits is None or key in limits
    ]
    if over:
        raise UserError(
            f"sweep '{name}' would be over its budget: {', '.join(over)}, for {counted(len(found.left), 'cell')} to "
            f"run, {found.parallel} at a time, time {found.speed.basis}; make it smaller (axes, where, steps, "
            "--cells), raise budget: in its YAML, or add --over-budget"
        )
