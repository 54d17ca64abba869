"""``gsq run`` and ``gsq report``, which need all three rooms at once."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gsq import analysis, sweeps
from gsq.analysis.errors import AnalysisError
from gsq.cli.options import Submitting, line
from gsq.cli.table_options import require_outputs, table_path
from gsq.errors import UserError, nearest
from gsq.files import is_yaml
from gsq.records.folder import RunFolder, runs_root, sweep_path
from gsq.records.read import newest_file, read_metrics

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from gsq.cli.live import LiveView
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.spec.container import Tracking


def run_sweep(sweep: str, how: Submitting, output: Path | None, command: str) -> int:
    """Plan, submit, wait, gather, fit and plot. Returns the exit code: 0, 1 if cells failed, 130 on Ctrl-C.

    Raises UserError before anything is written if the sweep or the cluster is wrong or the budget is exceeded.
    """
    from rich.console import Console
    from rich.markup import escape

    from gsq.cli.planning import admitted, live_view, make
    from gsq.cli.submit import evaluation_printer, print_trials
    from gsq.cli.wording import duration
    from gsq.data.manifest import KINDS
    from gsq.sweeps.running.search import submit_search
    from gsq.sweeps.tables.gather import RESULTS, require_table
    from gsq.sweeps.tracking.tracker import require_package

    unevaluated: dict[str, str] = {}
    # Figures and fits run alone on the cores by then; several threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    console = Console(emoji=False)
    require_outputs({"--output": output})
    target = sweeps.load_cluster(how.cluster)
    plan = make(sweep, how.cells, micro_batch=how.micro_batch, cluster=target)
    require_table(output or RESULTS / f"{plan.name}.parquet")
    if target.tracker is not None:
        require_package(target.tracker.to)
    for data in plan.data:
        if data.left_out:
            counts = ", ".join(f"{count:,} {KINDS[kind]}" for kind, count in data.counts().items())
            line(console, f"[yellow]left out of the images: {counts} (gsq plan names them)[/yellow]")
    try:
        plan = admitted(console, plan, target, how)
        with live_view(console, plan, target) as view:
            options: dict[str, Any] = {"retry": how.retry, "over_budget": True, "on_update": view.update}
            if plan.search is not None:
                submission = submit_search(plan, target, wait=True, **options)
            else:
                submission = sweeps.submit(plan, target, on_evaluation=evaluation_printer(console), **options)
                if target.kind == "slurm":
                    unevaluated = _wait_for_slurm(console, plan, target, submission, view)
                elif submission.evaluations:
                    unevaluated = dict(submission.evaluations.failed)
    except KeyboardInterrupt:
        still = "SLURM jobs keep running" if target.kind == "slurm" else "finished steps are kept"
        line(console, f"\nstopped; {still}. To resume: {escape(command)}")
        return 130
    for message in unevaluated.values():
        line(console, f"[yellow]warning:[/yellow] not evaluated: {escape(message)}")
    table = sweeps.gather(submission.folder, output)
    if plan.search is None:
        failed = _report(console, table, submission.folder, plan) + len(unevaluated)
    else:
        print_trials(console, submission.folder)
        line(console, f"results table: [bold]{table}[/bold]")
        failed = sum(action.kind == "leave" for action in submission.actions)
    if target.tracker is not None:
        _track(console, submission.folder, target.tracker)
    console.print(f"{duration(time.monotonic() - begun)} in all", style="dim")
    return 1 if failed else 0


def _track(console: Console, folder: SweepFolder, tracker: Tracking) -> None:
    """Send the runs to the tracker of the cluster file; say what keeps them from it, since the runs themselves are
    done."""
    from rich.markup import escape

    from gsq.cli.track import sentence

    try:
        line(
            console,
            escape(sentence(sweeps.track(folder, tracker.to, at=tracker.at or None, project=tracker.project or None))),
        )
    except UserError as error:
        line(console, f"[yellow]warning:[/yellow] not sent: {escape(str(error))}")


def _wait_for_slurm(
    console: Console, plan: sweeps.Plan, cluster: sweeps.Cluster, submission: sweeps.Submission, view: LiveView
) -> dict[str, str]:
    """Wait for the jobs of a plan. Returns why a cell was not evaluated, by signature."""
    from gsq.cli.wording import still_stopping
    from gsq.sweeps.running.canary import wait
    from gsq.sweeps.running.reevaluate import evaluate_missing, wait_for_evaluations

    if submission.stopping:
        line(console, still_stopping(len(submission.stopping), plan.name))
    wait(submission.folder, plan, view.update)
    # An earlier version of the sweep file may have trained some cells meanwhile.
    evaluate_missing(plan, cluster)
    return wait_for_evaluations(plan)


def _report(console: Console, table: Path, folder: SweepFolder, plan: sweeps.Plan) -> int:
    """Print the table, the laws and the files written. Returns how many cells of the plan have no result.

    The table may hold more cells than the plan, because it keeps those of earlier versions of the sweep.
    """
    import pandas as pd
    from rich.markup import escape

    from gsq.analysis.figures.style import saved_files
    from gsq.analysis.tables.table import as_asked, protocol_counts
    from gsq.cli.fit import load_and_fit
    from gsq.cli.show_fit import print_fit
    from gsq.cli.wording import failed_advice
    from gsq.sweeps.spec.states import CANCELLED
    from gsq.sweeps.state.reconcile import STOPPED, shown_state

    everything = analysis.load_results(table)
    frame = as_asked(everything)
    metrics = _program_metrics(plan, table)
    shown = analysis.results_table(frame) if metrics is None else _of_program(frame, plan, metrics)
    _print_frame(console, shown, frame)
    if others := protocol_counts(everything).keys() - protocol_counts(frame).keys():
        console.print(f"the table also has rows of other protocols: {', '.join(sorted(others))}", style="dim")
    planned = frame["signature"].isin([cell.signature for cell in plan.cells])
    failed = frame[planned & (frame["state"] != "done")]
    for _, row in failed.drop_duplicates("signature").iterrows():
        state = shown_state(row["state"], row["failure"] if pd.notna(row["failure"]) else None)
        told = ("message",) if state == STOPPED else ("failure", "message")
        words = [str(row[name]) for name in told if pd.notna(row[name])]
        reason = f"{row['signature']}: {': '.join(words) or 'it was not started, or was stopped before it began'}"
        line(console, f"[red]{state}[/red] {escape(reason)}")
    if failures := {str(name) for name in failed["failure"].dropna()} - {CANCELLED}:
        line(console, failed_advice(folder.name, failures))
    if metrics is not None:
        line(console, f"\nresults table: [bold]{table}[/bold]")
        if metrics:
            line(console, f'fit a law: gsq fit {table} --law "{metrics[0]} = c * COLUMN^-a"')
        return int(failed["signature"].nunique())
    written: list[tuple[str, Path]] = [("results table", table)]
    try:
        frame, fits, reasons = load_and_fit([table])
        console.print()
        for fit in fits:
            print_fit(fit)
        for reason in reasons.values():
            console.print(f"Not fitted: {reason}.", style="dim", highlight=False)
        stem = table.with_name(f"{table.stem}-scaling")
        analysis.scaling_figure(frame, fits, stem)
        written.append(("scaling figure", saved_files(stem)[0]))
        if pictures := _best_and_worst(frame, folder, table):
            written.append(("originals above reconstructions", pictures))
    except AnalysisError as error:
        line(console, f"no law and no figure: {escape(str(error))}")
    console.print()
    for what, path in written:
        line(console, f"{what}: [bold]{path}[/bold]")
    return int(failed["signature"].nunique())


def _program_metrics(plan: sweeps.Plan, table: Path) -> list[str] | None:
    """Metrics of a program of a user's own in its table; None for gsq's own training."""
    from gsq.sweeps.schema.columns import BY_NAME, describe

    if not plan.cells[0].config.program:
        return None
    return [column.name for column in describe(table) if column.role == "metric" and column.name not in BY_NAME]


def _of_program(frame: pd.DataFrame, plan: sweeps.Plan, metrics: list[str]) -> pd.DataFrame:
    """The last row of each cell: axes of the sweep, metrics, time and state."""
    axes = dict.fromkeys(name for cell in plan.cells for name in cell.axes if name in frame)
    last = frame.sort_values("step", na_position="first", kind="stable").drop_duplicates("signature", keep="last")
    return last.sort_index()[[*axes, *metrics, "device_seconds", "state"]]


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
    """Draw originals above reconstructions of the cells with the lowest and highest rFID; None without pictures."""
    from gsq.analysis.tables.table import varying

    rows = analysis.measured(frame)[0].sort_values("rfid")
    entries = []
    for word, (_, row) in zip(("best", "worst"), (*rows.head(1).iterrows(), *rows.tail(1).iterrows()), strict=False):
        picture = newest_file(RunFolder.of(folder.runs, row["signature"]), "samples.png")
        axes = ", ".join(f"{name} {row[name]}" for name in varying(rows))
        if picture:
            entries.append((f"{word}: rFID {row['rfid']:.4g}, {axes}", picture))
    if not entries:
        return None
    path = table.with_name(f"{table.stem}-samples.png")
    analysis.reconstruction_figure(entries, path)
    return path


@dataclass(frozen=True)
class Runs:
    """Curves and pictures of the runs in a runs folder, for a report."""

    root: Path

    def curve(self, signature: str) -> list[dict[str, float]]:
        return read_metrics(RunFolder.of(self.root, signature))

    def picture(self, signature: str) -> Path | None:
        return newest_file(RunFolder.of(self.root, signature), "samples.png")


def write_report(
    sweep: str,
    output: Path | None = None,
    laws: list[str] | None = None,
    protocol: str | None = None,
    also: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Write the report of a sweep or of a results table as one HTML page. Returns the paths of page and table.

    sweep: the name or YAML file of a submitted sweep, which is gathered first; or a results table, by its file or as
    the NAME of results/NAME.parquet. also: further ones, which join its table (gsq.analysis.load_tables). output: the
    page, by default NAME-report.html beside the (first) table. Raises UserError if there is neither a sweep nor a
    table, and AnalysisError if a table cannot be read, or tables do not go together.
    """
    require_outputs({"--output": output})
    found = [_table_of(one) for one in (sweep, *also)]
    tables, notes = [table for table, _ in found], [note for _, several in found for note in several]
    name = "-".join(table.stem for table in tables)
    page = output or tables[0].with_name(f"{name}-report.html")
    frame = analysis.load_tables(tables, protocol if also else None)
    require_outputs({"report": page}, reads=[*tables, sweep, *also])
    report = analysis.make_report(frame, name, Runs(runs_root()), protocol=protocol, laws=laws, notes=notes)
    return analysis.write_page(report, page), tables[0]


def _table_of(sweep: str) -> tuple[Path, tuple[str, ...]]:
    """The results table of a sweep, which is gathered, or a table as it is; and what gathering found wrong."""
    root = runs_root()
    table = table_path(sweep)
    yaml = is_yaml(sweep)
    if not yaml and table.is_file() and not sweep_path(root, sweep).is_dir():
        return table, ()
    from gsq.sweeps.planning.folder import SweepFolder, sweep_folder, sweep_names
    from gsq.sweeps.tables.gather import gathered

    if yaml or (not Path(sweep).is_file() and SweepFolder(root, sweep).exists):
        done = gathered(sweep_folder(sweep))
        return done.table, tuple(done.problems)
    if not table.is_file() and table.stem == sweep:
        there = sweep_names(root)
        raise UserError(
            f"no sweep '{sweep}' below {root}{nearest(sweep, there)}, and no table {table}; there are: "
            f"{', '.join(there) or 'none yet'} (gsq run or gsq submit makes one)"
        )
    return table, ()


def run_command_line(sweep: str, how: Submitting, output: Path | None) -> None:
    """Run ``gsq run`` and exit with its code."""
    # Repeat the command as typed, without the script's folder if that is on the PATH.
    if shutil.which("gsq") == sys.argv[0]:
        program = ["gsq"]
    elif Path(sys.argv[0]).parent.name == "cli":
        program = ["python", "-m", "gsq.cli"]
    else:
        program = [os.path.relpath(sys.argv[0])]
    if code := run_sweep(sweep, how, output, shlex.join([*program, *sys.argv[1:]])):
        raise typer.Exit(code)
