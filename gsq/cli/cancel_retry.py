"""``gsq cancel`` and ``gsq retry``."""

from __future__ import annotations

from dataclasses import asdict

import typer

from gsq import sweeps
from gsq.cli.options import (
    JsonOption,
    NameArgument,
    SelectionArgument,
    Submitting,
    YesOption,
    ask,
    on_terminal,
    print_json,
)
from gsq.cli.submit import submit_plan
from gsq.words import counted


def cancel_command(
    sweep: NameArgument,
    selection: SelectionArgument = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Stop queued and running cells of a sweep, here and on SLURM.

    A running cell ends its step and writes a checkpoint; a queued cell is not started. The next gsq submit, run or
    retry resumes from there. Exit code 2: SLURM does not report the state of some jobs, which were not cancelled.

    Example: gsq cancel quickstart running groups=4
    """
    from gsq.sweeps.running.cancel_retry import cancellable

    # Without a terminal nobody can answer, so the cells need not be counted.
    if not yes and on_terminal() and (count := len(cancellable(sweep, selection or ()))) > 1:
        ask(f"Stop {counted(count, 'cell')}?", yes)
    done = sweeps.cancel(sweep, selection or ())
    if as_json:
        print_json(asdict(done))
        return
    if not done.waiting and not done.running:
        typer.echo(f"nothing to cancel: none of these cells is queued or running (gsq status {done.sweep})")
    if done.waiting:
        typer.echo(f"cancelled {counted(len(done.waiting), 'queued cell')}")
    if done.running:
        asked = f"asked {counted(len(done.running), 'cell')} to stop after a checkpoint"
        typer.echo(f"{asked}; gsq status {done.sweep} shows when they have")


def retry_command(
    sweep: NameArgument,
    selection: SelectionArgument = None,
    cluster: str | None = None,
) -> None:
    """Submit failed cells again, whatever their failure class, and nothing else.

    Cells keep the settings of their last submission, even if the YAML has been edited since. To retry the whole sweep
    and run missing cells too, use gsq submit --retry. Exit code 1: cells failed again.

    Example: gsq retry quickstart out_of_memory --cluster big-gpu.yaml

    Options:
        --cluster NAME  local, slurm or a cluster file; default: as last submitted.
    """
    from gsq.cli.wording import still_stopping
    from gsq.sweeps.running.cancel_retry import failed_cells, last_cluster, stopping_cells

    plan = failed_cells(sweep, selection or ())
    if not plan.cells:
        if count := stopping_cells(sweep):
            typer.echo(still_stopping(count, plan.name))
            raise typer.Exit(1)
        typer.echo(f"nothing to retry: none of these cells failed (gsq status {plan.name})")
        return
    submission = submit_plan(plan, Submitting(cluster=cluster or last_cluster(sweep), retry=True))
    if any(action.kind == "leave" for action in submission.actions):
        raise typer.Exit(1)
