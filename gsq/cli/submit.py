"""``gsq submit``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from gsq import sweeps

if TYPE_CHECKING:
    from rich.console import Console

    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.running.evaluations import Evaluations

from gsq.cli.options import (
    Submitting,
    SweepArgument,
    line,
)
from gsq.cli.planning import admitted, live_view, make
from gsq.cli.taking import takes
from gsq.words import counted


def evaluation_printer(console: Console) -> Callable[[int, dict[str, Any]], None]:
    """Return a callback that prints a line for each evaluation of a finished cell."""

    def show(over: int, result: dict[str, Any]) -> None:
        line(
            console,
            f"evaluated {result['signature']} at step {result['step']}: rFID {result['rfid']:.4g} in "
            f"{result['features']} over {result['num_images']} images of {result['resolution']} pixels",
        )

    return show


def print_evaluations(console: Console, done: Evaluations | None) -> None:
    """Print what became of the evaluations of finished cells."""
    from rich.markup import escape

    if done is None:
        return
    for array, signatures in done.arrays.items():
        line(console, f"submitted SLURM job {array}: {counted(len(signatures), 'finished cell')} to evaluate")
    if done.waiting:
        line(console, f"evaluations waiting or running: {counted(done.waiting, 'finished cell')}")
    if done.ended:
        line(console, f"{counted(len(done.ended), 'earlier evaluation')} ended without a result; logs in {done.logs}")
    for message in done.failed.values():
        line(console, f"[yellow]warning:[/yellow] not evaluated: {escape(message)}")


def submit_plan(plan: sweeps.Plan, how: Submitting) -> sweeps.Submission:
    """Submit, with a live view of a local run. On Ctrl-C say how to resume and exit with code 130."""
    from rich.console import Console

    from gsq.cli.wording import still_stopping

    target = sweeps.load_cluster(how.cluster)
    console = Console(emoji=False)
    kept = "canaries keep running" if target.kind == "slurm" else "finished steps are kept"
    try:
        plan = admitted(console, plan, target, how)
        kept = "finished steps are kept"
        if target.kind == "local":
            with live_view(console, plan, target) as view:
                submission = sweeps.submit(
                    plan,
                    target,
                    retry=how.retry,
                    over_budget=True,
                    on_update=view.update,
                    on_evaluation=evaluation_printer(console),
                )
    except KeyboardInterrupt:
        line(console, f"stopped; {kept}. The same command resumes.")
        raise typer.Exit(130) from None
    if target.kind == "slurm":
        submission = sweeps.submit(plan, target, retry=how.retry, over_budget=True)
        for job_id, members in submission.arrays.items():
            in_turn = _in_turn(submission, job_id)
            line(console, f"submitted SLURM job {job_id}: {counted(len(members), 'cell')}{in_turn}")
    print_evaluations(console, submission.evaluations)
    if target.kind == "slurm" and submission.stopping:
        line(console, still_stopping(len(submission.stopping), plan.name))
    elif target.kind == "slurm" and not submission.arrays and submission.evaluations is None:
        line(
            console,
            f"nothing to submit: every cell is finished, waiting or given up; gsq status {plan.name} shows which, "
            f"gsq retry {plan.name} retries failed cells",
        )
    if plan.search is not None:
        print_trials(console, submission.folder)
        if target.kind == "slurm":
            line(console, "run the command again to record finished trials and draw new ones; gsq run does so itself")
    return submission


def _in_turn(submission: sweeps.Submission, job_id: str) -> str:
    """Return how the cells of an array share its tasks, if they take turns there."""
    from gsq.sweeps.state import journal

    entry = next((one for one in journal.entries(submission.folder) if one.job == job_id), None)
    if entry is None or entry.cells_in_turn == 1:
        return ""
    tasks = -(-len(entry.signatures) // entry.share)
    return f", in {counted(tasks, 'task')} of up to {entry.share}, {entry.cells_per_job} at a time"


def print_trials(console: Console, folder: SweepFolder) -> None:
    """Print the trials of a search, its progress and the best trial."""
    from gsq.cli.show_status import trial_table
    from gsq.sweeps.state.study import describe, search_status

    if found := search_status(folder):
        console.print(trial_table(found))
        for text in describe(found):
            console.print(text, highlight=False, markup=False, soft_wrap=True)


@takes(Submitting)
def submit_command(sweep: SweepArgument, *, how: Submitting, dry_run: bool = False) -> None:
    """Run the cells of a sweep that are missing, and nothing else.

    On this machine the command blocks and shows progress; on SLURM it submits one job array for each resource class
    and returns. Run it again after any interruption: it never trains a finished cell twice. If the YAML's evaluation
    keys have changed, it evaluates finished cells again without training. It refuses a sweep that exceeds the YAML's
    budget with exit code 2. A search runs until the study has its trials; on SLURM each call makes one pass, which
    records finished trials and submits new ones.

    Example: gsq submit sweeps/configs/quickstart.yaml --cluster slurm

    Options:
        --dry-run  Print the job scripts, or the cells that would run here; submit nothing.
    """
    target = sweeps.load_cluster(how.cluster)
    plan = make(sweep, how.cells, micro_batch=how.micro_batch, cluster=target)
    if dry_run:
        from gsq.sweeps.running.slurm_arrays import dry_run as preview

        if plan.search is not None:
            typer.echo("A search draws its cells when it runs. This is the job of a cell in the middle of its space:")
            plan = replace(plan, cells=plan.cells[:1], search=None)
        texts = preview(plan, target, retry=how.retry)
        if count := len(sweeps.forecast(plan, target, retry=how.retry).evaluations):
            texts.append(f"{counted(count, 'finished cell')} to evaluate as the sweep file now says")
        for text in texts or ["nothing to submit"]:
            typer.echo(text)
        return
    submission = submit_plan(plan, how)
    unevaluated = submission.evaluations is not None and submission.evaluations.failed
    if unevaluated or submission.stopping or any(action.kind == "leave" for action in submission.actions):
        raise typer.Exit(1)
