"""The verbs of this room: plan, submit, status, gather. Everything else is imported when one runs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sweeps.cluster import Cluster
    from sweeps.planning import Plan
    from sweeps.submission import Submission

SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="Sweep YAML, or the name of one that ships with gsq (quickstart).")
]
NameArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a submitted sweep, or its YAML file.")]
ClusterOption = Annotated[
    str,
    typer.Option("--cluster", metavar="NAME", help="local (this machine), slurm (cluster defaults) or a cluster file."),
]
CellsOption = Annotated[
    int | None, typer.Option("--cells", metavar="N", min=1, help="Only the first N cells of the plan.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry", help="Try cells again that failed as out_of_memory, diverged or error.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
AllOption = Annotated[bool, typer.Option("--all", help="Show every cell, however many there are.")]


def register(app: typer.Typer) -> None:
    """Add this room's verbs to ``app``."""
    app.command("plan")(plan_command)
    app.command("submit")(submit_command)
    app.command("status")(status_command)
    app.command("gather")(gather_command)


def make(source: str, cells: int | None) -> Plan:
    from sweeps.planning import make_plan
    from sweeps.spec import load_spec

    plan = make_plan(load_spec(source))
    return plan if cells is None else plan.cut(cells)


def _slots(cluster: Cluster) -> int:
    from sweeps.cluster import local_workers

    return local_workers(cluster) if cluster.kind == "local" else cluster.parallel


def plan_command(
    sweep: SweepArgument,
    cluster: ClusterOption = "local",
    cells: CellsOption = None,
    as_json: JsonOption = False,
    show_all: AllOption = False,
) -> None:
    """Show the cells of a sweep and what they will cost. Runs nothing.

    Prints each cell with its signature, axes, bits per pixel, parameters, FLOPs, images, estimated time and
    memory; then the cells left out with the constraint that did it, and duplicates.

    Example: gsq plan sweeps/configs/quickstart.yaml
    """
    from gsq.record import runs_root
    from sweeps.cluster import load_cluster
    from sweeps.cost import estimate, resource_class, speed
    from sweeps.folder import SweepFolder
    from sweeps.planning import derived

    plan = make(sweep, cells)
    target = load_cluster(cluster)
    records = SweepFolder(runs_root(), plan.name).records([cell.signature for cell in plan.cells])
    rate = speed(plan.cells, records, target.device)
    if as_json:
        rows = []
        for cell in plan.cells:
            wanted = estimate(cell, rate, target.device)
            rows.append(
                {
                    "signature": cell.signature,
                    "axes": cell.axes,
                    **derived(cell.config),
                    **asdict(cell.cost),
                    "train_flops": cell.cost.train_flops,
                    "seconds": wanted.seconds,
                    "memory_bytes": wanted.memory_bytes,
                    "resource_class": asdict(resource_class(wanted)),
                }
            )
        dropped = [{"axes": axes, "where": text} for axes, text in plan.dropped]
        merged = [{"axes": axes, "signature": signature} for axes, signature in plan.merged]
        document = {
            "sweep": plan.name,
            "cells": rows,
            "dropped": dropped,
            "merged": merged,
            "broken_images": plan.broken_images,
            "speed": asdict(rate),
        }
        typer.echo(json.dumps(document, indent=1))
        return
    from rich.console import Console

    from sweeps.display import print_plan

    print_plan(Console(), plan, rate, target.device, _slots(target), None if show_all else 60)


def submit_plan(plan: Plan, cluster: str, retry: bool) -> Submission:
    """Submit with the live view of a local run. Ctrl-C says how to go on and leaves with exit code 130."""
    from rich.console import Console

    from sweeps.cluster import load_cluster
    from sweeps.display import LiveView
    from sweeps.submission import submit

    target = load_cluster(cluster)
    console = Console()
    if target.kind == "slurm":
        submission = submit(plan, target, retry=retry)
        for job_id, members in submission.arrays.items():
            console.print(f"submitted SLURM job {job_id}: {len(members)} cells", highlight=False)
        if not submission.arrays:
            console.print("nothing to submit: every cell is finished, waiting or given up (gsq status)")
        return submission
    try:
        with LiveView(plan, _slots(target), target.device, console) as view:
            return submit(plan, target, retry=retry, on_update=view.update)
    except KeyboardInterrupt:
        console.print("stopped; finished steps are kept. The same command goes on from there.")
        raise typer.Exit(130) from None


def submit_command(
    sweep: SweepArgument,
    cluster: ClusterOption = "local",
    cells: CellsOption = None,
    retry: RetryOption = False,
) -> None:
    """Run what is missing of a sweep, and nothing else.

    On this machine it blocks and shows progress; on SLURM it hands over one job array for each resource class and
    returns. Say it again after any interruption: finished cells are never trained twice.

    Example: gsq submit sweeps/configs/quickstart.yaml --cluster slurm
    """
    submission = submit_plan(make(sweep, cells), cluster, retry)
    if any(action.kind == "leave" for action in submission.actions):
        raise typer.Exit(1)


def status_command(
    sweep: NameArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    show_all: AllOption = False,
) -> None:
    """Show the state of every cell, from the run folders and one call of sacct.

    Example: gsq status quickstart --watch
    """
    from sweeps.monitoring import status

    found = status(sweep)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    from rich.console import Console
    from rich.live import Live

    from sweeps.display import status_renderable

    limit = None if show_all else 60
    if not watch:
        Console().print(status_renderable(found, limit))
        return
    try:
        with Live(status_renderable(found, limit), refresh_per_second=2) as live:
            while True:
                time.sleep(2)
                live.update(status_renderable(status(sweep), limit))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def gather_command(
    sweep: NameArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Parquet file; default results/SWEEP.parquet.")
    ] = None,
) -> None:
    """Collect a sweep's runs into its results table, failed and missing cells included.

    Example: gsq gather quickstart
    """
    from sweeps.gathering import gather

    typer.echo(f"wrote {gather(sweep, output)}")
