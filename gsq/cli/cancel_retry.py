"""``gsq cancel`` and ``gsq retry``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass

from gsq.cli.options import JsonOption, NameArgument, SelectionArgument, YesOption, ask, count_cells, on_terminal
from gsq.cli.submit import submit_plan


def cancel_command(
    sweep: NameArgument,
    selection: SelectionArgument = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop queued and running cells of a sweep, here and on SLURM.

    A running cell ends its step and writes a checkpoint; no queue starts one that waits. The next gsq submit, run or
    retry goes on from there. Exit code 2: SLURM does not say what became of some jobs, which were not cancelled.

    Example: gsq cancel quickstart running groups=4
    """
    from gsq.sweeps.running.cancel_retry import cancel, cancellable

    # Nobody is asked where nobody can answer.
    if not yes and on_terminal() and (count := len(cancellable(sweep, selection or ()))) > 1:
        ask(f"Stop {count_cells(count)}?", yes)
    done = cancel(sweep, selection or ())
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=1))
        return
    if not done.waiting and not done.running:
        typer.echo(f"nothing to cancel: none of these cells waits or runs (gsq status {done.sweep})")
    if done.waiting:
        typer.echo(f"cancelled {count_cells(len(done.waiting))} that waited")
    if done.running:
        asked = f"asked {count_cells(len(done.running))} to stop after a checkpoint"
        typer.echo(f"{asked}; gsq status {done.sweep} shows when they have")


def retry_command(
    sweep: NameArgument,
    selection: SelectionArgument = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="local, slurm or a cluster file; default: where the sweep was last submitted to.",
        ),
    ] = None,
) -> None:
    """Submit failed cells again, whatever they failed of, and nothing else.

    Cells are those that were submitted before, not those of an edited YAML. gsq submit --retry does the same for the
    whole sweep, with what is missing besides. Exit code 1: cells have failed again.

    Example: gsq retry quickstart out_of_memory --cluster big-gpu.yaml
    """
    from gsq.cli.wording import still_stopping
    from gsq.sweeps.running.cancel_retry import failed_cells, last_cluster, stopping_cells

    plan = failed_cells(sweep, selection or ())
    if not plan.cells:
        if count := stopping_cells(sweep):
            typer.echo(still_stopping(count, plan.name))
            raise typer.Exit(1)
        typer.echo(f"nothing to retry: none of these cells has failed (gsq status {plan.name})")
        return
    submission = submit_plan(plan, cluster or last_cluster(sweep), retry=True)
    if any(action.kind == "leave" for action in submission.actions):
        raise typer.Exit(1)
