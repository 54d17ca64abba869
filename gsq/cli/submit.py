"""``gsq submit``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gsq.sweeps.planning.cells import Plan
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.running.slurm_arrays import Submission

from gsq.cli.options import (
    CanaryOption,
    CellsOption,
    ClusterOption,
    OverBudgetOption,
    RetryOption,
    SweepArgument,
    count_cells,
)
from gsq.cli.planning import admitted, make, slots


def evaluation_printer(console: Console) -> Callable[[int, dict[str, Any]], None]:
    """A line for each evaluation of a finished cell (on_evaluation of ``submit``)."""

    def show(over: int, result: dict[str, Any]) -> None:
        console.print(
            f"evaluated {result['signature']} at step {result['step']}: rFID {result['rfid']:.4g} in "
            f"{result['features']} over {result['num_images']} images of {result['resolution']} pixels",
            highlight=False,
            soft_wrap=True,
        )

    return show


def print_evaluations(console: Console, submission: Submission) -> bool:
    """What became of the evaluations of finished cells; whether one has failed."""
    from rich.markup import escape

    done = submission.evaluations
    if done is None:
        return False
    for array, signatures in done.arrays.items():
        console.print(f"submitted SLURM job {array}: {len(signatures)} finished cells to evaluate", highlight=False)
    if done.waiting:
        console.print(f"{done.waiting} finished cells wait for their evaluation, or are evaluated", highlight=False)
    if done.ended:
        console.print(f"{len(done.ended)} earlier evaluations ended without a result; logs in {done.logs}")
    for message in done.failed.values():
        console.print(f"[yellow]warning:[/yellow] not evaluated: {escape(message)}", highlight=False, soft_wrap=True)
    return bool(done.failed)


def submit_plan(plan: Plan, cluster: str, retry: bool, over_budget: bool = False, canary: bool = False) -> Submission:
    """Submit with the live view of a local run. Ctrl-C says how to go on and leaves with exit code 130."""
    from rich.console import Console

    from gsq.cli.live import LiveView
    from gsq.cli.wording import still_stopping
    from gsq.sweeps.running.submit import submit
    from gsq.sweeps.spec.cluster import load_cluster

    target = load_cluster(cluster)
    console = Console()
    try:
        plan = admitted(console, plan, target, retry, over_budget, canary)
    except KeyboardInterrupt:
        going_on = "canaries run on" if target.kind == "slurm" else "finished steps are kept"
        console.print(f"stopped; {going_on}. The same command goes on from there.")
        raise typer.Exit(130) from None
    if target.kind == "slurm":
        submission = submit(plan, target, retry=retry, over_budget=True)
        for job_id, members in submission.arrays.items():
            console.print(f"submitted SLURM job {job_id}: {count_cells(len(members))}", highlight=False)
        print_evaluations(console, submission)
        if submission.stopping:
            console.print(still_stopping(len(submission.stopping), plan.name), highlight=False, soft_wrap=True)
        elif not submission.arrays and submission.evaluations is None:
            console.print(
                f"nothing to submit: every cell is finished, waiting or given up; gsq status {plan.name} shows which, "
                f"gsq retry {plan.name} tries again what has failed",
                highlight=False,
                soft_wrap=True,
            )
        if plan.search is not None:
            print_trials(console, submission.folder)
            console.print(
                "run the command again to tell the study what has ended and to draw further trials; gsq run does so"
            )
        return submission
    try:
        with LiveView(plan, slots(target), target.device, console) as view:
            submission = submit(
                plan,
                target,
                retry=retry,
                over_budget=True,
                on_update=view.update,
                on_evaluation=evaluation_printer(console),
            )
        print_evaluations(console, submission)
        if plan.search is not None:
            print_trials(console, submission.folder)
        return submission
    except KeyboardInterrupt:
        console.print("stopped; finished steps are kept. The same command goes on from there.")
        raise typer.Exit(130) from None


def print_trials(console: Console, folder: SweepFolder) -> None:
    """The trials of a search, how far it is, and the best it found."""
    from gsq.cli.show_status import trial_table
    from gsq.sweeps.state.study import describe, search_status

    found = search_status(folder)
    if found is None:
        return
    console.print(trial_table(found))
    for line in describe(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def submit_command(
    sweep: SweepArgument,
    cluster: ClusterOption = "local",
    cells: CellsOption = None,
    retry: RetryOption = False,
    over_budget: OverBudgetOption = False,
    canary: CanaryOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the job scripts, or the cells that would run here; submit nothing.")
    ] = False,
) -> None:
    """Run what is missing of a sweep, and nothing else.

    On this machine it blocks and shows progress; on SLURM it hands over one job array for each resource class and
    returns. Say it again after any interruption: finished cells are never trained twice. Finished cells that were not
    evaluated as the YAML's evaluation keys now say are evaluated, without training. What would be over the YAML's
    budget is refused with exit code 2. Of a search, it goes on until the study has its trials; on SLURM
    a call is one pass: results are told, and further trials drawn and submitted.

    Example: gsq submit sweeps/configs/quickstart.yaml --cluster slurm
    """
    plan = make(sweep, cells)
    if dry_run:
        from gsq.sweeps.costing.forecast import forecast
        from gsq.sweeps.running.slurm_arrays import dry_run as preview
        from gsq.sweeps.spec.cluster import load_cluster

        if plan.search is not None:
            typer.echo("A search draws its cells when it is submitted. For one from the middle of its space:")
            plan = replace(plan, cells=plan.cells[:1], search=None)
        target = load_cluster(cluster)
        texts = preview(plan, target, retry=retry)
        if count := len(forecast(plan, target, retry=retry).evaluations):
            texts.append(f"{count_cells(count)} finished before, to evaluate as the sweep file now says")
        for text in texts or ["nothing to submit"]:
            typer.echo(text)
        return
    submission = submit_plan(plan, cluster, retry, over_budget, canary)
    unevaluated = submission.evaluations is not None and submission.evaluations.failed
    if unevaluated or submission.stopping or any(action.kind == "leave" for action in submission.actions):
        raise typer.Exit(1)
