"""What needs several rooms at once. Imported by gsq/cli.py alone."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gsq.errors import UserError, nearest
from gsq.record import RunFolder, newest_file, read_metrics, runs_root

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from sweeps.cluster import Cluster
    from sweeps.folder import SweepFolder
    from sweeps.planning import Plan


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

    from sweeps.canary import wait
    from sweeps.cli import admitted, make
    from sweeps.cluster import load_cluster, local_workers
    from sweeps.display import LiveView, duration
    from sweeps.folder import SweepFolder
    from sweeps.gathering import gather
    from sweeps.submission import submit

    # Figures and fits use the same cores as nothing else by then; threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    console = Console()
    plan = make(sweep, cells)
    target = load_cluster(cluster)
    slots = local_workers(target) if target.kind == "local" else target.parallel
    folder = SweepFolder(runs_root(), plan.name)
    if plan.broken_images:
        console.print(f"[yellow]{len(plan.broken_images)} broken images are left out (gsq plan names them)[/yellow]")
    try:
        plan = admitted(console, plan, target, retry, over_budget, canary)
        if plan.search is not None:
            return _run_search(console, plan, target, retry, output, begun)
        with LiveView(plan, slots, target.device, console) as view:
            submit(plan, target, retry=retry, over_budget=True, on_update=view.update)
            if target.kind == "slurm":
                wait(folder, plan, view.update)
    except KeyboardInterrupt:
        going_on = "SLURM jobs run on" if target.kind == "slurm" else "finished steps are kept"
        console.print(f"\nstopped; {going_on}. To go on: {escape(command)}", highlight=False, soft_wrap=True)
        return 130
    table = gather(folder, output)
    failed = _report(console, table, folder, plan)
    console.print(f"{duration(time.monotonic() - begun)} in all", style="dim")
    return 1 if failed else 0


def _run_search(console: Console, plan: Plan, cluster: Cluster, retry: bool, output: Path | None, begun: float) -> int:
    """Trials until the study has them all, their table, and the best of them."""
    from sweeps.cli import print_trials
    from sweeps.display import LiveView, duration
    from sweeps.gathering import gather
    from sweeps.searching import submit_search
    from sweeps.studies import parallel_trials

    slots = parallel_trials(plan, cluster)
    with LiveView(plan, slots, cluster.device, console) as view:
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
    from rich.markup import escape

    from analysis.cli import load_and_fit, print_fit
    from analysis.drawing import saved_files
    from analysis.errors import AnalysisError
    from analysis.figures import scaling_figure
    from analysis.table import load_results, results_table

    frame = load_results(table)
    shown = results_table(frame)
    _print_frame(console, shown, frame)
    planned = frame["signature"].isin([cell.signature for cell in plan.cells])
    failed = frame[planned & (frame["state"] != "done")]
    for _, row in failed.drop_duplicates("signature").iterrows():
        reason = f"{row['signature']}: {row['failure'] or ''} {row['message'] or ''}"
        console.print(f"[red]{row['state']}[/red] {escape(reason)}", highlight=False, soft_wrap=True)
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


HEADS = {
    "bits_per_pixel": "bits/ pixel",
    "rfid": "rFID",
    "psnr_db": "PSNR dB",
    "perplexity": "perp- lexity",
    "device_seconds": "seconds",
}
FORMATS = {"device_seconds": ".0f", "psnr_db": ".2f", "usage": ".3f", "perplexity": ".1f"}


def _print_frame(console: Console, shown: pd.DataFrame, frame: pd.DataFrame) -> None:
    from rich.table import Table

    from sweeps import display

    heads = {**display.HEADS, **HEADS}
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in shown.columns:
        head = heads.get(column, column.replace("_", " "))
        table.add_column(head, justify="right", overflow="fold", vertical="bottom")
    for _, row in shown.iterrows():
        cells = []
        for column, value in zip(shown.columns, row, strict=True):
            missing = value is None or value != value or str(value) == "<NA>"
            number = isinstance(value, float)
            cells.append("-" if missing else format(value, FORMATS.get(column, ".4g")) if number else str(value))
        table.add_row(*cells)
    console.print(table)
    for (features, images, protocol), _ in frame.dropna(subset="protocol").groupby(
        ["features", "num_images", "protocol"]
    ):
        console.print(f"rFID in {features} features over {images} images (protocol {protocol})", style="dim")


def _best_and_worst(frame: pd.DataFrame, folder: SweepFolder, table: Path) -> Path | None:
    """Originals above reconstructions of the cells with the lowest and the highest rFID."""
    from analysis.figures import reconstruction_figure
    from analysis.table import measured, varying

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
    from analysis.cli import table_path
    from analysis.page import write_page
    from analysis.report import make_report
    from analysis.table import load_results
    from sweeps.folder import SweepFolder, sweep_folder, sweep_names
    from sweeps.gathering import gathered

    root = runs_root()
    notes: tuple[str, ...] = ()
    table = table_path(sweep)
    yaml = sweep.endswith((".yaml", ".yml"))
    if yaml or (table.stem == sweep and SweepFolder(root, sweep).exists):
        done = gathered(sweep_folder(sweep))
        table, notes = done.table, done.problems
    elif not table.is_file() and table.stem == sweep:
        there = sweep_names(root)
        raise UserError(
            f"no sweep '{sweep}' below {root}{nearest(sweep, there)}, and no table {table}; there are: "
            f"{', '.join(there) or 'none yet'} (gsq run or gsq submit makes one)"
        )
    report = make_report(load_results(table), table.stem, Runs(root), protocol=protocol, laws=laws, notes=notes)
    page = write_page(report, output or table.with_name(f"{table.stem}-report.html"))
    return page, table


def run_command_line(
    sweep: str, cluster: str, cells: int | None, retry: bool, output: Path | None, over_budget: bool, canary: bool
) -> None:
    """``gsq run``."""
    # As it was typed, but for the interpreter's folder where that is on the PATH.
    program = "gsq" if shutil.which("gsq") == sys.argv[0] else os.path.relpath(sys.argv[0])
    command = shlex.join([program, *sys.argv[1:]])
    code = run_sweep(sweep, cluster, cells, retry, output, command, over_budget, canary)
    if code:
        raise typer.Exit(code)
