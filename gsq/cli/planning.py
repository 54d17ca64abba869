"""Print a plan for ``gsq plan``, and check a plan before submission."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gsq import analysis, sweeps
from gsq.errors import UserError
from gsq.files import write_text
from gsq.sweeps.spec.shipped import configs_folder, find_file

if TYPE_CHECKING:
    from rich.console import Console

    from gsq.cli.live import LiveView

from gsq.cli.options import Submitting, line, print_json
from gsq.cli.table_options import drawn, require_outputs
from gsq.words import counted


def make(
    source: str,
    cells: int | None,
    *,
    lenient: bool = False,
    micro_batch: str | None = None,
    cluster: sweeps.Cluster | None = None,
) -> sweeps.Plan:
    """Return the plan of a sweep. micro_batch: of ``--micro-batch``, which may ask for the memory of ``cluster``."""
    from gsq.sweeps.planning.cells import make_plan

    plan = make_plan(sweeps.load_spec(source), lenient=lenient)
    plan = plan if cells is None else plan.cut(cells)
    if micro_batch is None or cluster is None:
        return plan
    from gsq.sweeps.costing.gpu_memory import with_micro_batch

    return with_micro_batch(plan, micro_batch, cluster)


def live_view(console: Console, plan: sweeps.Plan, target: sweeps.Cluster) -> LiveView:
    """Return the display of a submission to ``target``."""
    from gsq.cli.live import LiveView
    from gsq.sweeps.spec.cluster import local_workers
    from gsq.sweeps.state.study import parallel_trials

    local = target.kind == "local"
    slots = parallel_trials(plan, target) if plan.search else local_workers(target) if local else target.parallel
    return LiveView(plan, slots, target.device, console, local)


def print_plan(
    sweep: str,
    cluster: str | None,
    gpu: str | None,
    how: Submitting,
    as_json: bool,
    show_all: bool,
    figure: Path | None = None,
) -> None:
    """Run ``gsq plan``: print the cells of a sweep, those left out, what is still to run and what is missing here."""
    from gsq.cli.power import cells_frame
    from gsq.cli.show_derived import budget_axis, derived_document
    from gsq.sweeps.costing.forecast import by_class
    from gsq.sweeps.planning.cells import derived

    plan = make(sweep, how.cells, lenient=True)
    target = sweeps.load_cluster(cluster or plan.cluster or "local")
    if gpu is not None:
        target = replace(target, gpu=gpu, gpus=target.gpus or 1)
    if how.micro_batch is not None:
        from gsq.sweeps.costing.gpu_memory import with_micro_batch

        plan = with_micro_batch(plan, how.micro_batch, target)
    found = sweeps.forecast(plan, target)
    drawing = drawn(lambda path: analysis.plan_figure(cells_frame(plan), budget_axis(plan), path, plan.name), figure)
    if as_json:
        classes = by_class(plan.cells, found.speed, target)
        resources = {cell.signature: asdict(r) for r, members in classes.items() for cell in members}
        rows = [
            {
                "signature": cell.signature,
                "axes": cell.axes,
                **derived(cell.config),
                **vars(cell.cost),
                "train_flops": cell.cost.train_flops,
                **found.estimates[cell.signature]._asdict(),
                "seconds_left": found.left.get(cell.signature, 0.0),
                "resource_class": resources[cell.signature],
            }
            for cell in plan.cells
        ]
        document = {
            "sweep": plan.name,
            "cells": rows,
            "dropped": [{"axes": axes, "where": text} for axes, text in plan.dropped],
            "derived": derived_document(plan),
            "merged": [{"axes": axes, "signature": signature} for axes, signature in plan.merged],
            "data": [data.to_dict() for data in plan.data],
            "broken_images": plan.broken_images,
            "cluster": target.name,
            "missing": plan.missing,
            "provisional": plan.provisional,
            "speed": asdict(found.speed),
            "forecast": found.to_dict(),
        }
        if plan.search is not None and plan.search.search is not None:
            # The cells are examples here: the middle of the space and random draws.
            document["search"] = asdict(plan.search.search)
        print_json(document)
        return
    from rich.console import Console

    from gsq.cli import show_plan as display

    console = Console(emoji=False)
    if plan.search is not None:
        display.print_search(console, plan, found)
    else:
        display.print_plan(console, plan, found, None if show_all else 60)
    if plan.cluster and cluster is None:
        line(console, f"estimated for the cluster file {target.name}; --cluster names yours")
    display.print_missing(console, plan)
    for saved in drawing:
        line(console, saved)


def print_anchors(sweep: str, cluster: str, cells: int | None, output: Path, as_json: bool) -> None:
    """Run ``gsq plan --anchors``: write a sweep file that repeats finished cells."""
    from gsq.cli.wording import brief, duration
    from gsq.sweeps.planning.cells import title
    from gsq.sweeps.planning.folder import sweep_folder
    from gsq.sweeps.spec.cluster import local_gpus
    from gsq.sweeps.tables.pooling import ANCHORS, anchors_yaml, propose

    source = find_file(sweep, configs_folder(), "sweep")
    if output.exists():
        raise UserError(f"--anchors: {output} already exists; name another file")
    require_outputs({"--anchors": output})
    folder = sweep_folder(sweep)
    target = sweeps.load_cluster(cluster)
    device = "cpu" if target.kind == "local" and not local_gpus() else None
    chosen, others = propose(folder, device, cells or ANCHORS)
    repeat = 1 + max(cell.config.train.repeat for cell in folder.read_plan().cells)
    if chosen and chosen[0].cell.config.program:
        raise UserError(f"--anchors: repeats gsq's own training; {chosen[0].cell.config.program} has no repeat")
    if not chosen:
        raise UserError(f"sweep '{folder.name}': all old cells have been repeated; gsq gather {folder.name} compares")
    records = folder.records([run.cell.signature for run in chosen])
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, anchors_yaml(source, folder.name, chosen, repeat, output.parent))
    seconds = {signature: record.seconds for signature, record in records.items()}
    if as_json:
        rows = [
            {**run.cell.axes, "signature": run.cell.signature, "seconds": seconds[run.cell.signature]} for run in chosen
        ]
        print_json({"sweep": folder.name, "output": str(output), "made_otherwise": others, "anchors": rows})
        return
    typer.echo(
        f"{counted(others, 'cell')} of sweep '{folder.name}' {'was' if others == 1 else 'were'} made by other code, "
        f"versions or device than now; {output} repeats ({duration(sum(seconds.values()))} of device time before):"
    )
    for run in chosen:
        typer.echo(f"  {run.cell.signature} {brief(title(run.cell.axes))}")
    typer.echo(f"gsq run {output} trains them, and gsq gather {folder.name} compares old with new")


def admitted(console: Console, plan: sweeps.Plan, target: sweeps.Cluster, how: Submitting) -> sweeps.Plan:
    """Show what a submission will cost and run its canaries. Returns the plan with the estimates to record.

    Raises UserError if the plan exceeds its budget, and exits with code 1 if a canary failed.
    """
    from gsq.cli.show_plan import print_canaries, print_forecast
    from gsq.sweeps.costing.forecast import TIMELESS, check_budget, with_estimates
    from gsq.sweeps.costing.notes import check_images
    from gsq.sweeps.running.canary import canary_plan, choose

    if how.canary and plan.search is not None:
        raise UserError(
            "--canary measures the largest cells of a grid; leave it out for a search, which measures its first trials"
        )
    check_images(plan)
    found = sweeps.forecast(plan, target, retry=how.retry)
    if not how.over_budget:
        # Check the limits that no measurement can change before running a canary.
        check_budget(plan.name, found, TIMELESS if how.canary else None)
    print_forecast(console, found)
    chosen = choose(plan, target, retry=how.retry) if how.canary else []
    if chosen:
        line(console, f"canaries first: {len(chosen)} of {counted(len(found.left), 'cell')} to run")
        with live_view(console, canary_plan(plan, chosen), target) as view:
            results = sweeps.run_canaries(plan, target, retry=how.retry, chosen=chosen, on_update=view.update)
        found = sweeps.forecast(plan, target, retry=how.retry)
        print_canaries(console, results, found)
        if any(result.failed for result in results):
            line(console, "nothing else was submitted; leave out --canary to submit the sweep anyway")
            raise typer.Exit(1)
        print_forecast(console, found)
    if not how.over_budget:
        check_budget(plan.name, found)
    return with_estimates(plan, found)
