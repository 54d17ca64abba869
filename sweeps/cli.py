"""The verbs of this room, from plan to clean. Everything else is imported when one runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsq.words import counted
from sweeps.shipped import configs_folder, shipped_files

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.cluster import Cluster
    from sweeps.folder import SweepFolder
    from sweeps.planning import Plan
    from sweeps.submission import Submission

SweepArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help=f"Sweep YAML, or the name of one that ships with gsq: {', '.join(shipped_files(configs_folder()))}.",
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a submitted sweep, or its YAML file.")]
MaybeNameArgument = Annotated[
    str | None,
    typer.Argument(metavar="[SWEEP]", help="Name of a submitted sweep, or its YAML file; without it, all are listed."),
]
ClusterOption = Annotated[
    str,
    typer.Option("--cluster", metavar="NAME", help="local (this machine), slurm (cluster defaults) or a cluster file."),
]
CellsOption = Annotated[
    int | None,
    typer.Option("--cells", metavar="N", min=1, help="Only the first N cells of the plan; of a search, N trials."),
]
PlanClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="local (this machine), slurm (cluster defaults) or a cluster file. [dim]\\[default: plan_for of the "
        "YAML, else local][/dim]",
    ),
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="Reckon with another GPU than the cluster file's: h100, a100, ..."),
]
AnchorsOption = Annotated[
    Path | None,
    typer.Option(
        "--anchors",
        metavar="FILE",
        help="Write a sweep file that trains a few finished cells once more (4, or --cells N), where gsq, packages or "
        "the device have changed since: gsq gather then says whether old and new runs may be pooled.",
    ),
]
RetryOption = Annotated[
    bool, typer.Option("--retry", help="Try cells again that failed as out_of_memory, diverged or error.")
]
OverBudgetOption = Annotated[
    bool, typer.Option("--over-budget", help="Go on where the estimate is above a limit of the YAML's budget.")
]
CanaryOption = Annotated[
    bool,
    typer.Option(
        "--canary",
        help="First run the largest cell of each resource class for 50 steps, to measure its memory and time.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SelectionArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SELECTION",
        help="Signatures or their beginnings, states or failure classes (running, failed, out_of_memory, ...), "
        "KEY=VALUE (groups=4). Words on one thing are alternatives; on different things, all must hold.",
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")]
AllOption = Annotated[bool, typer.Option("--all", help="Show every cell, however many there are.")]


def register(app: typer.Typer) -> None:
    """Add this room's verbs to ``app``, but ``plan``, to which gsq/cli.py adds what a law says of it."""
    app.command("submit")(submit_command)
    app.command("status")(status_command)
    app.command("logs")(logs_command)
    app.command("cancel")(cancel_command)
    app.command("retry")(retry_command)
    app.command("gather")(gather_command)
    app.command("clean")(clean_command)
    app.add_typer(results_app, name="results")


def make(source: str, cells: int | None, *, lenient: bool = False) -> Plan:
    from sweeps.planning import make_plan
    from sweeps.spec import load_spec

    plan = make_plan(load_spec(source), lenient=lenient)
    return plan if cells is None else plan.cut(cells)


def _slots(cluster: Cluster) -> int:
    from sweeps.cluster import local_workers

    return local_workers(cluster) if cluster.kind == "local" else cluster.parallel


def print_plan(
    sweep: str, cluster: str | None, gpu: str | None, cells: int | None, as_json: bool, show_all: bool
) -> None:
    """``gsq plan``: the cells of a sweep, what was left out, what is still to be run, and what is missing here."""
    from sweeps.cluster import load_cluster
    from sweeps.forecasting import by_class, forecast
    from sweeps.planning import derived

    plan = make(sweep, cells, lenient=True)
    target = load_cluster(cluster or plan.cluster or "local")
    if gpu is not None:
        target = replace(target, gpu=gpu, gpus=target.gpus or 1)
    found = forecast(plan, target)
    if as_json:
        rows = []
        classes = by_class(plan.cells, found.speed, target)
        resources = {cell.signature: asdict(r) for r, members in classes.items() for cell in members}
        for cell in plan.cells:
            wanted = found.estimates[cell.signature]
            rows.append(
                {
                    "signature": cell.signature,
                    "axes": cell.axes,
                    **derived(cell.config),
                    **vars(cell.cost),
                    "train_flops": cell.cost.train_flops,
                    "seconds": wanted.seconds,
                    "memory_bytes": wanted.memory_bytes,
                    "seconds_left": found.left.get(cell.signature, 0.0),
                    "resource_class": resources[cell.signature],
                }
            )
        dropped = [{"axes": axes, "where": text} for axes, text in plan.dropped]
        merged = [{"axes": axes, "signature": signature} for axes, signature in plan.merged]
        document = {
            "sweep": plan.name,
            "cells": rows,
            "dropped": dropped,
            "merged": merged,
            "data": [data.to_dict() for data in plan.data],
            "broken_images": plan.broken_images,
            "cluster": target.name,
            "missing": plan.missing,
            "provisional": plan.provisional,
            "speed": asdict(found.speed),
            "forecast": found.to_dict(),
        }
        if plan.search is not None and plan.search.search is not None:
            # The cells are examples then: the middle of the space, and random ones.
            document["search"] = asdict(plan.search.search)
        _print_json(document)
        return
    from rich.console import Console

    from sweeps import display

    console = Console()
    if plan.search is not None:
        display.print_search(console, plan, found)
    else:
        display.print_plan(console, plan, found, None if show_all else 60)
    if plan.cluster and cluster is None:
        console.print(f"reckoned for the cluster file {target.name}; --cluster names yours", highlight=False)
    display.print_missing(console, plan)


def print_anchors(sweep: str, cluster: str, cells: int | None, output: Path, as_json: bool) -> None:
    """``gsq plan --anchors``: finished cells to train once more, written to a sweep file."""
    from gsq.errors import UserError
    from gsq.record import write_text
    from sweeps.cluster import load_cluster, local_gpus
    from sweeps.display import brief, duration
    from sweeps.folder import sweep_folder
    from sweeps.outputs import output_problem
    from sweeps.planning import title
    from sweeps.pooling import ANCHORS, anchors_yaml, propose
    from sweeps.shipped import find_file

    source = find_file(sweep, configs_folder(), "sweep")
    if output.exists():
        raise UserError(f"--anchors: {output} is there already; name another file")
    if problem := output_problem(output):
        raise UserError(f"--anchors: {output} {problem}")
    folder = sweep_folder(sweep)
    target = load_cluster(cluster)
    device = "cpu" if target.kind == "local" and not local_gpus() else None
    chosen, others = propose(folder, device, cells or ANCHORS)
    repeat = 1 + max(cell.config.train.repeat for cell in folder.read_plan().cells)
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
        _print_json({"sweep": folder.name, "output": str(output), "made_otherwise": others, "anchors": rows})
        return
    typer.echo(
        f"{_cells(others)} of sweep '{folder.name}' {'was' if others == 1 else 'were'} made by other code, versions or "
        f"device than now; to repeat, in {output} ({duration(sum(seconds.values()))} of device time then):"
    )
    for run in chosen:
        typer.echo(f"  {run.cell.signature} {brief(title(run.cell.axes))}")
    typer.echo(f"gsq run {output} trains them, and gsq gather {folder.name} compares old with new")


def admitted(
    console: Console, plan: Plan, target: Cluster, retry: bool, over_budget: bool = False, canary: bool = False
) -> Plan:
    """Show what a submission will cost and run its canaries; returns the plan with the estimates to record.

    Raises UserError where it is over its budget, and leaves with exit code 1 where a canary has failed.
    """
    from gsq.errors import UserError
    from sweeps.canary import canary_plan, choose, run_canaries
    from sweeps.display import LiveView, print_canaries, print_forecast
    from sweeps.forecasting import TIMELESS, check_budget, forecast, with_estimates
    from sweeps.notes import check_images

    if canary and plan.search is not None:
        raise UserError("--canary measures the largest cells of a grid; of a search the first trials do, leave it out")
    check_images(plan)
    found = forecast(plan, target, retry=retry)
    if not over_budget:
        # What no measurement can change is said before one is made.
        check_budget(plan.name, found, TIMELESS if canary else None)
    print_forecast(console, found)
    chosen = choose(plan, target, retry=retry) if canary else []
    if chosen:
        console.print(f"canaries first: {len(chosen)} of {_cells(len(found.left))} to run", highlight=False)
        with LiveView(
            canary_plan(plan, chosen), _slots(target), target.device, console, target.kind == "local"
        ) as view:
            results = run_canaries(plan, target, retry=retry, chosen=chosen, on_update=view.update)
        found = forecast(plan, target, retry=retry)
        print_canaries(console, results, found)
        if any(result.failed for result in results):
            console.print("nothing else was submitted; without --canary it would be", highlight=False)
            raise typer.Exit(1)
        print_forecast(console, found)
    if not over_budget:
        check_budget(plan.name, found)
    return with_estimates(plan, found)


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

    from sweeps.cluster import load_cluster
    from sweeps.display import LiveView, still_stopping
    from sweeps.submission import submit

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
            console.print(f"submitted SLURM job {job_id}: {_cells(len(members))}", highlight=False)
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
        with LiveView(plan, _slots(target), target.device, console) as view:
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
    from sweeps.display import trial_table
    from sweeps.studies import describe, search_status

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
        from sweeps.cluster import load_cluster
        from sweeps.forecasting import forecast
        from sweeps.submission import dry_run as preview

        if plan.search is not None:
            typer.echo("A search draws its cells when it is submitted. For one from the middle of its space:")
            plan = replace(plan, cells=plan.cells[:1], search=None)
        target = load_cluster(cluster)
        texts = preview(plan, target, retry=retry)
        if count := len(forecast(plan, target, retry=retry).evaluations):
            texts.append(f"{_cells(count)} finished before, to evaluate as the sweep file now says")
        for text in texts or ["nothing to submit"]:
            typer.echo(text)
        return
    submission = submit_plan(plan, cluster, retry, over_budget, canary)
    unevaluated = submission.evaluations is not None and submission.evaluations.failed
    if unevaluated or submission.stopping or any(action.kind == "leave" for action in submission.actions):
        raise typer.Exit(1)


def status_command(
    sweep: MaybeNameArgument = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Draw it again every few seconds until all cells have ended.")
    ] = False,
    as_json: JsonOption = False,
    show_all: AllOption = False,
) -> None:
    """Show the state of every cell, from the run folders, squeue and sacct; of a search, the best so far, too.

    For cells that wait on SLURM it gives SLURM's reason, and says which will not start by themselves.

    Without a sweep: all sweeps, and the cells that run. A YAML file that has been edited since is compared with what
    was submitted, and cells that were not are named.

    Example: gsq status quickstart --watch
    """
    from gsq.errors import UserError
    from sweeps.monitoring import status

    if sweep is None:
        if watch or show_all:
            raise UserError("gsq status: --watch and --all are about one sweep, so name it: gsq status SWEEP --watch")
        _print_overview(as_json)
        return
    found = status(sweep)
    if as_json:
        _print_json(found.to_dict())
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
            while not found.ended:
                time.sleep(2 if found.local else 5)  # sacct is the cluster's, not ours alone.
                found = status(sweep)
                live.update(status_renderable(found, limit))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _print_overview(as_json: bool) -> None:
    """All sweeps, and the cells that run."""
    from gsq.record import runs_root
    from sweeps.listing import overview

    found = overview()
    if as_json:
        _print_json({"sweeps": [line.to_dict() for line in found]})
    elif not found:
        typer.echo(f"no sweep below {runs_root()} yet (gsq run or gsq submit makes one; $GSQ_RUNS names the folder)")
    else:
        from rich.console import Console

        from sweeps.display import overview_renderable

        Console().print(overview_renderable(found))


def _print_json(document: Mapping[str, Any]) -> None:
    """A line a key, and a line for each entry of a list: indented further, thousands of cells would take seconds."""
    parts = []
    for key, value in document.items():
        several = isinstance(value, list | tuple) and value
        text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if several else json.dumps(value)
        parts.append(f" {json.dumps(key)}: {text}")
    typer.echo("{\n" + ",\n".join(parts) + "\n}")


def _on_terminal() -> bool:
    return sys.stdin.isatty()


def _ask(question: str, yes: bool) -> None:
    """Leave with exit code 1 unless it is answered with yes; without a terminal nobody is asked."""
    if not yes and _on_terminal():
        typer.confirm(question, abort=True)


def _cells(count: int) -> str:
    return counted(count, "cell")


def _files(count: int) -> str:
    return "file " if count == 1 else "files"


def logs_command(
    sweep: MaybeNameArgument = None,
    cell: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CELL",
            help="A signature or its beginning, or another selection of one cell; default: the only cell that runs.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the cell ends; Ctrl-C leaves with exit code 130.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", min=1, help="Attempt by its number; default: the newest.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="Lines of the log's end.")] = 40,
    as_json: JsonOption = False,
) -> None:
    """Show what a cell printed: the end of its log, here or from SLURM, and where its training is.

    The first line says which attempt it is, its state, and why it failed; a traceback comes last. Without a sweep: all
    sweeps, and the cells that run.

    Example: gsq logs quickstart 3f9c -f
    """
    from gsq.errors import UserError
    from sweeps.logs import follow as follow_log
    from sweeps.logs import read_log

    if follow and (as_json or attempt is not None):
        raise UserError("--follow shows what is written from now on: leave out --json and --attempt")
    if sweep is None:
        _print_overview(as_json)
        return
    log = read_log(sweep, cell or (), attempt)
    tail = log.text.splitlines()[-lines:] if lines else []
    if as_json:
        values = {
            "signature": log.cell.signature,
            "axes": log.cell.title,
            "attempt": log.attempt,
            "attempts": log.cell.attempts,
            "state": log.state,
            "failure": log.failure,
            "message": log.message,
            "lines": tail,
            "curve": log.curve,
            "traceback": log.traceback,
            "files": [str(path) for path in log.files if path.exists()],
        }
        typer.echo(json.dumps(values, indent=1))
        return
    typer.echo(log.headline)
    for line in (*tail, *log.curve):
        typer.echo(line)
    if log.traceback:
        typer.echo(log.traceback.rstrip())
    if not follow:
        return
    try:
        for piece in follow_log(log):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


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
    from sweeps.control import cancel, cancellable

    # Nobody is asked where nobody can answer.
    if not yes and _on_terminal() and (count := len(cancellable(sweep, selection or ()))) > 1:
        _ask(f"Stop {_cells(count)}?", yes)
    done = cancel(sweep, selection or ())
    if as_json:
        typer.echo(json.dumps(asdict(done), indent=1))
        return
    if not done.waiting and not done.running:
        typer.echo(f"nothing to cancel: none of these cells waits or runs (gsq status {done.sweep})")
    if done.waiting:
        typer.echo(f"cancelled {_cells(len(done.waiting))} that waited")
    if done.running:
        asked = f"asked {_cells(len(done.running))} to stop after a checkpoint"
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
    from sweeps.control import failed_cells, last_cluster, stopping_cells
    from sweeps.display import still_stopping

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


def gather_command(
    sweep: NameArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Parquet file; default results/SWEEP.parquet.")
    ] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="Write the training curves, too, to SWEEP-curves.parquet beside the table.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Collect a sweep's runs into its results table, failed and missing cells included.

    Says what is done, what failed and how much device time was spent, and warns where failures go with an axis
    (Fisher's exact test, corrected for the number of axes): a law fitted to the rest would be biased.

    Example: gsq gather quickstart
    """
    from sweeps.gathering import gathered

    done = gathered(sweep, output)
    second = None
    if curves:
        from sweeps.curves import curves_path, gather_curves

        second = gather_curves(sweep, curves_path(done.table))
    if as_json:
        files = {"table": str(done.table), **({"curves": str(second)} if second else {})}
        more = {"problems": done.problems, "spent": done.spent.to_dict(), "comparisons": done.comparisons}
        _print_json({**files, **done.coverage.to_dict(), **more})
        return
    for problem in done.problems:
        typer.echo(f"warning: {problem}", err=True)
    for path in filter(None, (done.table, second)):
        typer.echo(f"wrote {path}")
    for line in filter(None, (*done.coverage.lines, done.spent.line, *done.comparisons)):
        typer.echo(line)


results_app = typer.Typer(no_args_is_help=True)


@results_app.callback()
def results_command() -> None:
    """What the columns of the results table mean.

    Example: gsq results describe
    """


@results_app.command("describe")
def results_describe_command(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="A Parquet file that gsq wrote; default: what gsq gather writes today."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Each column of the results table: its type, unit and meaning, and what kind of column it is.

    The same stands in the field metadata of the Parquet file.

    Example: gsq results describe results/groups.parquet
    """
    from gsq.errors import UserError
    from sweeps.schema import SCHEMA_VERSION, SchemaError, describe

    try:
        columns = describe(file)
    except SchemaError as error:
        raise UserError(str(error)) from error
    if as_json:
        _print_json({**({"version": SCHEMA_VERSION} if file is None else {}), "columns": [asdict(c) for c in columns]})
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("column", "type", "unit"):
        table.add_column(head, no_wrap=True)
    table.add_column("meaning", overflow="fold")
    role = ""
    for column in columns:
        if column.role != role:
            role = column.role
            table.add_row(f"[dim]{role}[/dim]")
        table.add_row(f"  {column.name}", column.type, column.unit, escape(column.description))
    Console().print(table, highlight=False)


def clean_command(
    sweep: Annotated[
        str | None, typer.Argument(metavar="SWEEP", help="Only this sweep's runs; default: all below $GSQ_RUNS.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
    orphans: Annotated[
        bool,
        typer.Option(
            "--orphans", help="Remove whole runs, too, that no sweep mentions (of gsq train, or of removed sweeps)."
        ),
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove files that nothing needs any more, and say what they were.

    Checkpoints of finished runs go (but for execution.keep_checkpoint), copies in earlier attempts, and half-written
    files of dead processes. Weights, curves, evaluations, configs and samples stay, and so does all that an unfinished
    run resumes from. Runs that may be alive are left alone.

    Example: gsq clean --dry-run
    """
    from sweeps.display import size
    from sweeps.housekeeping import KINDS, clean

    if orphans and not dry_run:
        lone = len(clean(sweep, orphans=True, dry_run=True).runs)
        if lone:
            _ask(f"Remove {lone} whole runs, with their results?", yes)
    done = clean(sweep, orphans=orphans, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), indent=1))
        return
    for kind, paths in done.files.items():
        if paths:
            typer.echo(f"{size(done.bytes[kind]):>9}  {len(paths):>6} {_files(len(paths))}  {KINDS[kind]}")
    total, count = size(sum(done.bytes.values())), sum(map(len, done.files.values()))
    typer.echo(f"{total:>9}  {count:>6} {_files(count)}  {'would be removed' if dry_run else 'removed'}")
