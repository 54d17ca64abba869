"""Canaries: the largest cell of each resource class runs a few steps first, to measure memory and time.

A canary is an ordinary run of a sweep named ``<sweep>-canary``. It keeps its checkpoint, from which the full cell
continues.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import RunRecord, smallest_micro_batch
from gsq.runs.identity import identity
from gsq.sweeps.costing.cost import TIMED_STEPS, Estimate, canary_folder, estimate, speed, step_seconds
from gsq.sweeps.costing.forecast import by_class
from gsq.sweeps.planning.cells import Cell, Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.submit import submit
from gsq.sweeps.spec.cluster import Cluster, load_cluster
from gsq.sweeps.state.reconcile import OnUpdate, no_update, reconcile
from gsq.sweeps.state.slurm import slurm_jobs
from gsq.sweeps.state.status import CellStatus, status

STEPS = 50
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Canary:
    """A canary before it runs, with the estimate for its cell."""

    cell: Cell
    """The cell of the sweep that it represents."""
    short: Cell
    """The shortened cell, which runs."""
    members: int
    """Number of cells in the resource class."""
    step_seconds: float
    expected: Estimate


@dataclass(frozen=True)
class Result:
    """A canary after it ran."""

    canary: Canary
    state: CellStatus
    record: RunRecord
    advice: str | None
    """Advice if it failed or ran out of memory, even if a smaller micro-batch helped."""

    @property
    def failed(self) -> bool:
        return self.state.state == "failed"


def choose(
    plan: Plan, cluster: Cluster | str = "local", *, runs: Path | None = None, retry: bool = False
) -> list[Canary]:
    """Choose a canary for each resource class of a submission: its largest cell, by memory, then by time.

    A cell that has been timed needs none. Raises UserError for an unknown cluster.
    """
    if plan.cells and plan.cells[0].config.program:
        raise UserError(
            f"--canary shortens gsq's own training, which {plan.cells[0].config.program} is not; leave it out, and run "
            "one cell first (--cells 1), whose time the later estimates use"
        )
    cluster = load_cluster(cluster)
    folder = SweepFolder(runs or runs_root(), plan.name)
    signatures = [cell.signature for cell in plan.cells]
    records = folder.records(signatures)
    resumed = cluster.resumed("request" if retry else "submit")
    actions = reconcile(signatures, records, slurm_jobs(folder), time.time(), resumed=resumed)
    wanted = {action.cell.signature for action in actions if action.kind == "submit"}
    rate = speed(plan.cells, records, cluster.device, folder, cluster.gpu)
    # Arithmetic alone gives the classes, so that measurements do not change the choice of the same command.
    classes = by_class(
        (c for c in plan.cells if c.signature in wanted), speed((), {}, cluster.device, gpu=cluster.gpu), cluster
    )
    chosen = []
    for cells in classes.values():
        largest = max(cells, key=lambda c: (c.cost.memory_bytes, c.cost.train_flops / c.cost.images))
        if records[largest.signature].timed_steps < TIMED_STEPS:
            expected = estimate(largest, rate, cluster.device)
            chosen.append(Canary(largest, shortened(largest), len(cells), step_seconds(largest, rate), expected))
    return chosen


def shortened(cell: Cell) -> Cell:
    """Return a cell with the first STEPS steps and the least evaluation; a cell without more steps stays as it is.

    A later discriminator starts at once, because its memory and time must be measured too; the cell then cannot
    continue from its canary.
    """
    config = cell.config
    if config.train.steps <= STEPS:
        return cell
    loss = config.loss
    if config.discriminator.kind != "none" and STEPS <= loss.discriminator_start < config.train.steps:
        loss = replace(loss, discriminator_start=0)
    config = replace(
        config,
        loss=loss,
        optimizer=config.optimizer.trunk,
        train=replace(config.train, steps=STEPS),
        evaluation=replace(config.evaluation, num_images=2, every=0, allow_small=True),
        execution=replace(config.execution, keep_checkpoint=True),
    )
    signature = identity(config, manifest(config.data))
    return replace(cell, signature=signature, axes={**cell.axes, "steps": STEPS}, config=config)


def run_canaries(
    plan: Plan,
    cluster: Cluster | str = "local",
    *,
    runs: Path | None = None,
    retry: bool = False,
    chosen: list[Canary] | None = None,
    on_update: OnUpdate = no_update,
) -> list[Result]:
    """Run the canaries of a submission and wait for them. Later estimates use their measurements.

    Failed canaries run again, finished ones do not. chosen: from ``choose``. On SLURM KeyboardInterrupt leaves the jobs
    alone, and the next call waits for them. Raises UserError like ``submit``.
    """
    cluster = load_cluster(cluster)
    chosen = choose(plan, cluster, runs=runs, retry=retry) if chosen is None else chosen
    if not chosen:
        return []
    folder = canary_folder(SweepFolder(runs or runs_root(), plan.name))
    short = canary_plan(plan, chosen)
    # Each is measured alone.
    alone = replace(cluster, cells_in_turn=1)
    submit(short, alone, runs=folder.runs, retry=True, over_budget=True, on_update=on_update)
    if cluster.kind == "slurm":
        wait(folder, short, on_update)
    states = {cell.signature: cell for cell in status(folder).cells}
    records = folder.records([cell.signature for cell in short.cells])
    return [_result(c, states[c.short.signature], records[c.short.signature], folder) for c in chosen]


def canary_plan(plan: Plan, chosen: list[Canary]) -> Plan:
    """Return the plan of the canaries."""
    return Plan(f"{plan.name}-canary", tuple({c.short.signature: c.short for c in chosen}.values()))


def wait(folder: SweepFolder, plan: Plan, on_update: OnUpdate = no_update) -> None:
    """Poll until no job of the plan is waiting or running on SLURM."""
    signatures = [cell.signature for cell in plan.cells]
    while True:
        records = folder.records(signatures)
        actions = reconcile(signatures, records, slurm_jobs(folder), time.time(), resumed=())
        on_update(actions, records)
        if not any(action.kind == "wait" for action in actions):
            return
        time.sleep(POLL_SECONDS)


def _result(canary: Canary, state: CellStatus, record: RunRecord, folder: SweepFolder) -> Result:
    smaller = smallest_micro_batch(RunFolder.of(folder.runs, record.signature))
    if state.failure == "out_of_memory":
        # If SLURM killed it, the record does not have this yet.
        smaller = smaller or record.next_micro_batch
    fix = f"set: {{execution.micro_batch: {smaller}}} in the sweep's YAML (the losses are the same), or "
    advice = None
    if state.state != "failed":
        if smaller:
            advice = f"ran out of memory at first, and continued with a smaller micro-batch: {fix}more memory"
    elif state.failure == "out_of_memory":
        advice = f"ran out of memory: {fix if smaller else ''}memory_gb: more in the cluster file, or a larger device"
    else:
        advice = f"failed as {state.failure}: {state.message}; gsq logs {folder.name} {record.signature}"
    return Result(canary, state, record, advice)
