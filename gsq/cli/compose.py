"""``gsq run`` and ``gsq report``, which need all three rooms at once."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gsq.errors import UserError, nearest
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import newest_file, read_metrics

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from gsq.sweeps.planning.cells import Plan
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.spec.cluster import Cluster

    _Case = tuple[dict[str, Any], int]
    """Axes of a cell as its sweep writes them, and its seed."""


def run_sweep(
    sweep: str,
    cluster: str,
    cells: int | None,
    retry: bool,
    output: Path | None,
    command: str,
    over_budget: bool = False,
    canary: bool = False,
) -> int:
    """Plan, submit, wait, gather, fit and plot. Returns the exit code: 0, 1 where cells have failed, 130 on Ctrl-C.

    Raises UserError before anything is written where the sweep or the cluster is wrong, or it is over its budget.
    """
    from rich.console import Console
    from rich.markup import escape

    from gsq.cli.live import LiveView
    from gsq.cli.planning import admitted, make
    from gsq.cli.submit import evaluation_printer
    from gsq.cli.wording import duration, still_stopping
    from gsq.data.manifest import KINDS
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.running.canary import wait
    from gsq.sweeps.running.reevaluate import evaluate_missing, wait_for_evaluations
    from gsq.sweeps.running.submit import submit
    from gsq.sweeps.spec.cluster import load_cluster, local_workers
    from gsq.sweeps.tables.gather import RESULTS, gather

    unevaluated: dict[str, str] = {}
    # Figures and fits use the same cores as nothing else by then; threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    console = Console()
    if output is not None:
        require_output("--output", output)
    plan = make(sweep, cells)
    require_output("results table", output or RESULTS / f"{plan.name}.parquet")
    target = load_cluster(cluster)
    slots = local_workers(target) if target.kind == "local" else target.parallel
    folder = SweepFolder(runs_root(), plan.name)
    for data in plan.data:
        if data.left_out:
            counts = ", ".join(f"{count:,} {KINDS[kind]}" for kind, count in data.counts().items())
            console.print(f"[yellow]left out of the images: {counts} (gsq plan names them)[/yellow]", highlight=False)
    try:
        plan = admitted(console, plan, target, retry, over_budget, canary)
        if plan.search is not None:
            return _run_search(console, plan, target, retry, output, begun)
        with LiveView(plan, slots, target.device, console, target.kind == "local") as view:
            submission = submit(
                plan,
                target,
                retry=retry,
                over_budget=True,
                on_update=view.update,
                on_evaluation=evaluation_printer(console),
            )
            if target.kind == "slurm":
                if submission.stopping:
                    line = still_stopping(len(submission.stopping), plan.name)
                    console.print(line, highlight=False, soft_wrap=True)
                wait(folder, plan, view.update)
                # What was trained meanwhile by an earlier version of the sweep file, too.
                evaluate_missing(plan, target)
                unevaluated = wait_for_evaluations(plan)
    except KeyboardInterrupt:
        going_on = "SLURM jobs run on" if target.kind == "slurm" else "finished steps are kept"
        console.print(f"\nstopped; {going_on}. To go on: {escape(command)}", highlight=False, soft_wrap=True)
        return 130
    if target.kind == "local":
        unevaluated = dict(submission.evaluations.failed) if submission.evaluations else {}
    for message in unevaluated.values():
        console.print(f"[yellow]warning:[/yellow] not evaluated: {escape(message)}", highlight=False, soft_wrap=True)
    table = gather(folder, output)
    failed = _report(console, table, folder, plan) + len(unevaluated)
    console.print(f"{duration(time.monotonic() - begun)} in all", style="dim")
    return 1 if failed else 0


def require_output(option: str, path: Path) -> None:
    """Raise UserError where no file can be written at ``path``, naming ``option``, before anything is computed."""
    from gsq.outputs import output_problem

    if problem := output_problem(path):
        raise UserError(f"{option}: {path} {problem}")


def _run_search(console: Console, plan: Plan, cluster: Cluster, retry: bool, output: Path | None, begun: float) -> int:
    """Trials until the study has them all, their table, and the best of them."""
    from gsq.cli.live import LiveView
    from gsq.cli.submit import print_trials
    from gsq.cli.wording import duration
    from gsq.sweeps.running.search import submit_search
    from gsq.sweeps.state.study import parallel_trials
    from gsq.sweeps.tables.gather import gather

    slots = parallel_trials(plan, cluster)
    with LiveView(plan, slots, cluster.device, console, cluster.kind == "local") as view:
        submission = submit_search(plan, cluster, retry=retry, over_budget=True, on_update=view.update, wait=True)
    table = gather(submission.folder, output)
    print_trials(console, submission.folder)
    console.print(f"results table: [bold]{table}[/bold]", highlight=False, soft_wrap=True)
    console.print(f"{duration(time.monotonic() - begun)} in all", style="dim")
    return 1 if any(action.kind == "leave" for action in submission.actions) else 0


def _report(console: Console, table: Path, folder: SweepFolder, plan: Plan) -> int:
    """Print the table, the laws and the paths of what was written; returns how many cells of the plan have no result.

    The table may hold more cells: those of earlier versions of the sweep stay in it.
    """
    import pandas as pd
    from rich.markup import escape

    from gsq.analysis.errors import AnalysisError
    from gsq.analysis.figures.scaling import scaling_figure
    from gsq.analysis.figures.style import saved_files
    from gsq.analysis.tables.table import as_asked, load_results, protocol_counts, results_table
    from gsq.cli.fit import load_and_fit, print_fit
    from gsq.cli.wording import failed_advice
    from gsq.sweeps.spec.states import CANCELLED
    from gsq.sweeps.state.reconcile import STOPPED, shown_state

    everything = load_results(table)
    frame = as_asked(everything)
    shown = results_table(frame)
    _print_frame(console, shown, frame)
    if others := protocol_counts(everything).keys() - protocol_counts(frame).keys():
        console.print(f"the table has rows of other protocols, too: {', '.join(sorted(others))}", style="dim")
    planned = frame["signature"].isin([cell.signature for cell in plan.cells])
    failed = frame[planned & (frame["state"] != "done")]
    for _, row in failed.drop_duplicates("signature").iterrows():
        state = shown_state(row["state"], row["failure"] if pd.notna(row["failure"]) else None)
        words = [str(row[name]) for name in ("failure", "message") if pd.notna(row[name])]
        words = words[1:] if state == STOPPED else words
        reason = f"{row['signature']}: {': '.join(words) or 'it was not started, or was stopped before it began'}"
        console.print(f"[red]{state}[/red] {escape(reason)}", highlight=False, soft_wrap=True)
    failures = {str(name) for name in failed["failure"].dropna()}
    if failures - {CANCELLED}:
        console.print(failed_advice(folder.name, failures - {CANCELLED}), highlight=False, soft_wrap=True)
    written: list[tuple[str, Path]] = [("results table", table)]
    try:
        frame, fits, reasons = load_and_fit(table)
        console.print()
        for fit in fits:
            print_fit(fit)
        for reason in reasons.values():
            console.print(f"Not fitted: {reason}.", style="dim", highlight=False)
        stem = table.with_name(f"{table.stem}-scaling")
        scaling_figure(frame, fits, stem)
        written.append(("scaling figure", saved_files(stem)[0]))
        pictures = _best_and_worst(frame, folder, table)
        if pictures:
            written.append(("originals above reconstructions", pictures))
    except AnalysisError as error:
        console.print(f"no law and no figure: {escape(str(error))}", highlight=False, soft_wrap=True)
    console.print()
    for what, path in written:
        console.print(f"{what}: [bold]{path}[/bold]", highlight=False, soft_wrap=True)
    return int(failed["signature"].nunique())


FORMATS = {"device_seconds": ".0f", "psnr_db": ".2f", "usage": ".3f", "perplexity": ".1f"}


def _print_frame(console: Console, shown: pd.DataFrame, frame: pd.DataFrame) -> None:
    from gsq.cli.tables import fitting_table, head_of

    columns = {head_of(column): [_cell_text(column, value) for value in shown[column]] for column in shown.columns}
    console.print(fitting_table(console, columns))
    for (features, images, protocol), _ in frame.dropna(subset="protocol").groupby(
        ["features", "num_images", "protocol"]
    ):
        console.print(f"rFID in {features} features over {images} images (protocol {protocol})", style="dim")


def _cell_text(column: str, value: object) -> str:
    if value is None or value != value or str(value) == "<NA>":
        return "-"
    return format(value, FORMATS.get(column, ".4g")) if isinstance(value, float) else str(value)


def _best_and_worst(frame: pd.DataFrame, folder: SweepFolder, table: Path) -> Path | None:
    """Originals above reconstructions of the cells with the lowest and the highest rFID."""
    from gsq.analysis.figures.reconstructions import reconstruction_figure
    from gsq.analysis.tables.table import measured, varying

    rows = measured(frame)[0].sort_values("rfid")
    entries = []
    for word, (_, row) in zip(("best", "worst"), (*rows.head(1).iterrows(), *rows.tail(1).iterrows()), strict=False):
        picture = newest_file(RunFolder.of(folder.runs, row["signature"]), "samples.png")
        axes = ", ".join(f"{name} {row[name]}" for name in varying(rows))
        if picture:
            entries.append((f"{word}: rFID {row['rfid']:.4g}, {axes}", picture))
    if not entries:
        return None
    path = table.with_name(f"{table.stem}-samples.png")
    reconstruction_figure(entries, path)
    return path


@dataclass(frozen=True)
class Runs:
    """Curves and pictures of the runs below a runs folder, for a report."""

    root: Path

    def curve(self, signature: str) -> list[dict[str, float]]:
        return read_metrics(RunFolder.of(self.root, signature))

    def picture(self, signature: str) -> Path | None:
        return newest_file(RunFolder.of(self.root, signature), "samples.png")


def write_report(
    sweep: str, output: Path | None = None, laws: list[str] | None = None, protocol: str | None = None
) -> tuple[Path, Path]:
    """Write the report of a sweep, or of a results table, as one HTML page. Returns the paths of page and table.

    sweep: the name or YAML file of a submitted sweep, which is gathered first; or a results table, by its file or as
    the NAME of results/NAME.parquet. The page lies beside the table as NAME-report.html, or where ``output`` says.
    Raises UserError where there is neither a sweep nor a table, and AnalysisError where the table cannot be read.
    """
    from gsq.analysis.reporting.page import write_page
    from gsq.analysis.reporting.report import make_report
    from gsq.analysis.tables.table import load_table
    from gsq.cli.table_options import table_path
    from gsq.sweeps.planning.folder import SweepFolder, sweep_folder, sweep_names
    from gsq.sweeps.tables.gather import gathered

    if output is not None:
        require_output("--output", output)
    root = runs_root()
    notes: tuple[str, ...] = ()
    table = table_path(sweep)
    yaml = sweep.endswith((".yaml", ".yml"))
    if yaml or (not Path(sweep).is_file() and SweepFolder(root, sweep).exists):
        done = gathered(sweep_folder(sweep))
        table, notes = done.table, done.problems
    elif not table.is_file() and table.stem == sweep:
        there = sweep_names(root)
        raise UserError(
            f"no sweep '{sweep}' below {root}{nearest(sweep, there)}, and no table {table}; there are: "
            f"{', '.join(there) or 'none yet'} (gsq run or gsq submit makes one)"
        )
    page = output or table.with_name(f"{table.stem}-report.html")
    frame = load_table(table)
    require_output("report", page)
    report = make_report(frame, table.stem, Runs(root), protocol=protocol, laws=laws, notes=notes)
    return write_page(report, page), table


def run_command_line(
    sweep: str, cluster: str, cells: int | None, retry: bool, output: Path | None, over_budget: bool, canary: bool
) -> None:
    """``gsq run``."""
    # As it was typed, but for the interpreter's folder where that is on the PATH.
    if shutil.which("gsq") == sys.argv[0]:
        program = ["gsq"]
    elif Path(sys.argv[0]).parent.name == "cli":
        program = ["python", "-m", "gsq.cli"]
    else:
        program = [os.path.relpath(sys.argv[0])]
    command = shlex.join([*program, *sys.argv[1:]])
    code = run_sweep(sweep, cluster, cells, retry, output, command, over_budget, canary)
    if code:
        raise typer.Exit(code)
