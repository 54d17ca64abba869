"""What needs several rooms at once. Imported by gsq/cli.py alone."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gsq.errors import UserError, nearest
from gsq.record import RunFolder, newest_file, read_metrics, runs_root
from gsq.words import counted

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from analysis.designing import Design
    from gsq.config import RunConfig
    from sweeps.cluster import Cluster
    from sweeps.folder import SweepFolder
    from sweeps.planning import Plan

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

    from gsq.datasets import KINDS
    from sweeps.canary import wait
    from sweeps.cli import admitted, evaluation_printer, make
    from sweeps.cluster import load_cluster, local_workers
    from sweeps.display import LiveView, duration, still_stopping
    from sweeps.evaluating import evaluate_missing, wait_for_evaluations
    from sweeps.folder import SweepFolder
    from sweeps.gathering import RESULTS, gather
    from sweeps.submission import submit

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
    from sweeps.outputs import output_problem

    if problem := output_problem(path):
        raise UserError(f"{option}: {path} {problem}")


def _run_search(console: Console, plan: Plan, cluster: Cluster, retry: bool, output: Path | None, begun: float) -> int:
    """Trials until the study has them all, their table, and the best of them."""
    from sweeps.cli import print_trials
    from sweeps.display import LiveView, duration
    from sweeps.gathering import gather
    from sweeps.searching import submit_search
    from sweeps.studies import parallel_trials

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

    from analysis.cli import load_and_fit, print_fit
    from analysis.drawing import saved_files
    from analysis.errors import AnalysisError
    from analysis.figures import scaling_figure
    from analysis.table import as_asked, load_results, protocol_counts, results_table
    from sweeps.display import failed_advice
    from sweeps.reconcile import CANCELLED, STOPPED, shown_state

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
    from sweeps.display import fitting_table, head_of

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
    from analysis.pictures import reconstruction_figure
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
    from analysis.table import load_table
    from sweeps.folder import SweepFolder, sweep_folder, sweep_names
    from sweeps.gathering import gathered

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
    elif sys.argv[0].endswith("cli.py"):
        program = ["python", "-m", "gsq.cli"]
    else:
        program = [os.path.relpath(sys.argv[0])]
    command = shlex.join([*program, *sys.argv[1:]])
    code = run_sweep(sweep, cluster, cells, retry, output, command, over_budget, canary)
    if code:
        raise typer.Exit(code)


def expected_power(
    sweep: str,
    cells: int | None,
    laws: list[str] | None,
    noise: float | None,
    coefficients: list[str] | None,
    as_json: bool,
) -> None:
    """``gsq plan SWEEP --power``: the interval that each parameter can be expected to get, before anything has run."""
    import json

    from analysis.errors import AnalysisError
    from analysis.expecting import SEED_NOISE, power
    from analysis.laws import DEFAULT_LAWS, get_law
    from sweeps.cli import make

    plan = make(sweep, cells, lenient=True)
    frame = _cells_frame(plan)
    given = {}
    for text in coefficients or []:
        name, _, value = text.partition("=")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"--coefficient {text!r} is not NAME=NUMBER, such as alpha=0.8") from None
    found, reasons = [], {}
    chosen = [get_law(law, [str(name) for name in frame]) for law in laws or DEFAULT_LAWS]
    for name in given:
        if not any(name in law.parameters for law in chosen):
            known = ", ".join(dict.fromkeys(p for law in chosen for p in law.parameters))
            raise UserError(f"--coefficient {name}: no law has a parameter of this name; parameters are {known}")
    for law in chosen:
        own = {name: value for name, value in given.items() if name in law.parameters}
        try:
            found.append(power(frame, law, coefficients=own, noise=SEED_NOISE if noise is None else noise))
        except AnalysisError as error:
            reasons[law.name] = str(error)
    if not found:
        raise AnalysisError("; ".join(reasons.values()))
    if as_json:
        document = {"sweep": plan.name, "power": [one.to_dict() for one in found], "not_possible": reasons}
        typer.echo(json.dumps(document, indent=1))
        return
    typer.echo(
        f"sweep {plan.name}: {counted(len(frame), 'run')} of "
        f"{counted(frame['configuration'].nunique(), 'configuration')}\n"
    )
    for one in found:
        typer.echo(one.text() + "\n")
    for name, reason in reasons.items():
        typer.echo(f"Not possible for {name}: {reason}.")
    typer.echo("This is if the law is right and seeds are the only noise; where it is not, expect wider intervals.")


def _cells_frame(plan: Plan, hours: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The cells of a plan with the columns of a results table that are known before a run: a row a cell.

    ``configuration`` is the same for cells that differ in the seed alone, ``device_hours`` the estimated cost.
    """
    import pandas as pd

    from gsq.loading import SHORT_NAMES, config_key
    from sweeps.planning import axis_columns

    if plan.search is not None:
        raise UserError(f"sweep '{plan.name}' is a search, which draws its cells as it goes; give a sweep with axes")
    rows = []
    numbers: dict[RunConfig, str] = {}
    for cell in plan.cells:
        keys = {config_key(name, "axes"): value for name, value in cell.axes.items()}
        others = {key: value for key, value in keys.items() if key not in SHORT_NAMES.values()}
        rows.append(
            {
                **others,
                **axis_columns(cell.config, cell.data_label),
                "signature": cell.signature,
                "configuration": numbers.setdefault(_with_seed(cell.config, 0), f"cell {len(numbers)}"),
                "step": cell.config.train.steps,
                "images_seen": cell.cost.images,
                "parameters": cell.cost.parameters,
                "train_flops": cell.cost.train_flops,
                **({"device_hours": hours[cell.signature]} if hours is not None else {}),
            }
        )
    return pd.DataFrame(rows)


def _with_seed(config: RunConfig, seed: int) -> RunConfig:
    from dataclasses import replace

    return replace(config, train=replace(config.train, seed=seed))


def _seed_signatures(plan: Plan, seeds: Sequence[int]) -> dict[RunConfig, list[str]]:
    """The signatures that each config of the plan, with seed 0, would have with each of the seeds."""
    from gsq.datasets import manifest
    from gsq.identity import identity
    from gsq.signature import Signer

    sign, manifests = Signer(), {config: manifest(config) for config in {cell.config.data for cell in plan.cells}}
    return {
        first: [identity(_with_seed(first, seed), manifests[first.data], sign) for seed in seeds]
        for first in dict.fromkeys(_with_seed(cell.config, 0) for cell in plan.cells)
    }


def design_next(
    tables: list[str],
    candidates: str | None,
    laws: list[str] | None,
    target: str,
    budget: float,
    *,
    until: float | None,
    noise: float | None,
    seeds: int,
    cost: str | None,
    residuals: str,
    bounds: list[str] | None,
    protocol: str | None,
    cluster: str,
    base: str | None,
    output: Path | None,
    figure: Path | None,
    as_json: bool,
) -> None:
    """``gsq design``: the runs to make next, as text or JSON, a sweep YAML and a figure."""
    import json

    import pandas as pd

    from analysis.cli import named_laws, require_outputs, table_path
    from analysis.compare import compare_laws
    from analysis.designing import design
    from analysis.information import read_target
    from analysis.options import Options
    from analysis.table import is_results, load_table

    require_outputs({"--output": output}, {"--figure": figure})
    wanted = read_target(target)
    source = candidates
    paths = []
    for table in tables:
        if table.endswith((".yaml", ".yml")):
            from sweeps.spec import load_spec

            source = source or table
            table = load_spec(table).name
        elif source is None and table_path(table) != Path(table) and _is_sweep(table):
            source = table
        paths.append(table_path(table))
    if source is None:
        raise UserError(
            "--candidates: name a sweep YAML, a submitted sweep, or a table with a cost column, whose cells may be run "
            "next"
        )
    from_sweep = source.endswith((".yaml", ".yml")) or not Path(source).suffix
    if output is not None:
        if output.suffix not in (".yaml", ".yml", ".csv", ".parquet"):
            raise UserError(f"--output: {output} must end in .yaml (a sweep to run), .csv or .parquet (a table)")
        if output.suffix in (".yaml", ".yml") and not from_sweep and base is None:
            raise UserError(
                f"--output: a sweep needs a base config, which the table {source} does not name; add --base with a "
                "preset or YAML file, or write a .csv"
            )
    frame = pd.concat([load_table(path, protocol) for path in paths], ignore_index=True)
    key = [name for name in ("signature", "step", "protocol") if name in frame]
    if len(paths) > 1 and is_results(frame):  # a run that two sweeps share
        frame = frame[frame["signature"].isna() | ~frame.duplicated(key)].reset_index(drop=True)
    if from_sweep:
        if cost not in (None, "device_hours"):
            raise UserError(f"--cost {cost}: the cells of a sweep cost what gsq plan estimates, in device hours")
        cost, unit = "device_hours", "device hours"
        cells, cases, frame = _candidates(source, cluster, frame)
    elif cost is None:
        shown = ", ".join(map(str, load_table(Path(source)).columns[:20]))
        raise UserError(f"--cost: name the column of {source} that says what a run costs; it has {shown}")
    else:
        cells, cases, unit = load_table(Path(source)), None, cost.replace("_", " ")
    discriminate = wanted.kind == "discriminate"
    rivals = named_laws(frame, laws or (None if discriminate else ["power_law_bpp"]), None, bounds, None)
    options = Options(residuals=residuals, bootstrap=0)  # type: ignore[arg-type]
    compared = compare_laws(frame, rivals, options)
    for name, reason in compared.not_fitted.items() if laws else ():
        typer.echo(f"Not fitted: {name}: {reason}.", err=True)
    found = design(compared, cells, budget, wanted, cost=cost, unit=unit, until=until, noise=noise, seeds=seeds)
    document = {"tables": [str(path) for path in paths], "candidates": source, **found.to_dict()}
    lines = [found.text()]
    proposed = cells.iloc[[one.row for one in found.proposals]].reset_index(drop=True)
    if cases is not None:
        chosen = _with_seeds(found, cells, cases, frame)
        document["cases"] = chosen
    else:
        chosen = [_case(row) for _, row in proposed.iterrows()]
    if output is not None and found.proposals:
        if output.suffix in (".yaml", ".yml"):
            title = f"What gsq design proposes for {found.target.text}, from {', '.join(path.name for path in paths)}."
            count = _write_sweep(output, source if cases is not None else None, base, chosen, title)
            lines.append(f"Wrote {output}, a sweep of {counted(count, 'run')}: gsq plan {output}")
        else:
            proposed["run"] = [one.runs_before + 1 for one in found.proposals]
            proposed["expected"] = [one.expected for one in found.proposals]
            _write_table(proposed, output)
            lines.append(f"Wrote {output}.")
    elif output is not None:
        lines.append(f"Nothing to run, so {output} is not written.")
    if figure is not None:
        from analysis.design_figures import design_figure
        from analysis.drawing import saved_files

        design_figure(found, figure)
        lines.append("Saved " + " and ".join(str(file) for file in saved_files(figure)) + ".")
    typer.echo(json.dumps(document, indent=1) if as_json else "\n".join(lines))


def _candidates(source: str, cluster: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[_Case], pd.DataFrame]:
    """Cells of the sweep ``source``, and measured ones that its base config gives again, for further seeds; the axes
    that a YAML has for each; and ``frame`` with the ``configuration`` of each row.
    """
    from dataclasses import replace

    from gsq.loading import SHORT_NAMES
    from sweeps.forecasting import forecast
    from sweeps.planning import Cell, CellMaker, make_plan
    from sweeps.spec import load_spec

    spec = load_spec(_submitted(source) or source)
    plan = make_plan(spec)
    if plan.search is None and "signature" in frame:
        # What a row says of its config, laid over the base, is the row's run only if it has the same signature.
        make, known = CellMaker(replace(spec, where=())), {cell.signature for cell in plan.cells}
        extra: dict[str, Cell] = {}
        rows = frame.drop_duplicates("signature")
        rows = rows[~(rows["repeat"] > 0).fillna(False)] if "repeat" in rows else rows
        for _, row in rows.iterrows():
            axes = {k: v for k, v in _case(row).items() if k not in SHORT_NAMES or v != _value(spec.base, k)}
            try:
                cell = make(axes)
            except UserError:
                continue
            if isinstance(cell, Cell) and cell.signature == row["signature"] and cell.signature not in known:
                extra[cell.signature] = cell
        plan = replace(plan, cells=(*plan.cells, *extra.values()))
    found = forecast(replace(plan, search=None), cluster)
    hours = {signature: one.seconds / 3600 for signature, one in found.estimates.items()}
    cells = _cells_frame(plan, hours)
    cases = [(dict(cell.axes), cell.config.train.seed) for cell in plan.cells]
    if "signature" in frame:
        seeds = sorted({int(s) for s in frame["seed"].dropna()}) if "seed" in frame else [0]
        signatures = _seed_signatures(plan, seeds)
        same = {
            signature: name
            for cell, name in zip(plan.cells, cells["configuration"], strict=True)
            for signature in signatures[_with_seed(cell.config, 0)]
        }
        frame = frame.assign(configuration=[same.get(s, f"measured {s}") for s in frame["signature"]])
    return cells, cases, frame


def _is_sweep(name: str) -> bool:
    """Whether ``name`` is a sweep that was submitted, or one that ships with gsq."""
    from sweeps.folder import SweepFolder
    from sweeps.shipped import configs_folder, shipped_files

    return SweepFolder(runs_root(), name).exists or name in shipped_files(configs_folder())


def _submitted(name: str) -> dict[str, Any] | None:
    """The cells of a submitted sweep as a sweep file would have them: over the preset nearest to the first cell, each
    by the keys in which it differs from that one. None where no sweep of that name was submitted."""
    from gsq.loading import differences
    from gsq.presets import PRESETS, preset
    from sweeps.folder import SweepFolder

    folder = SweepFolder(runs_root(), name)
    if not folder.exists:
        return None
    configs = [cell.config for cell in folder.read_plan().cells]
    nearest_preset = min(PRESETS, key=lambda one: len(differences(configs[0], preset(one))))
    return {
        "name": name,
        "base": nearest_preset,
        "set": differences(configs[0], preset(nearest_preset)),
        "cases": [differences(config, configs[0]) for config in configs],
    }


def _value(config: RunConfig, name: str) -> object:
    from gsq.loading import SHORT_NAMES

    section, key = SHORT_NAMES[name].split(".")
    return getattr(getattr(config, section), key)


def _case(row: pd.Series[Any]) -> dict[str, Any]:
    """The axes of a row of a results table, as a sweep writes them."""
    import json

    import pandas as pd

    from analysis.information import plain
    from gsq.loading import SHORT_NAMES

    names = [name for name in SHORT_NAMES if name != "repeat" and name in row and not pd.isna(row[name])]
    axes = {name: plain(row[name]) for name in names}
    others = row.get("other_axes")
    return {**axes, **(json.loads(others) if isinstance(others, str) else {})}


def _with_seeds(found: Design, cells: pd.DataFrame, cases: list[_Case], frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The axes of each proposed run, with a seed that its configuration has not had."""
    used: dict[str, set[int]] = {}
    if "configuration" in frame and "seed" in frame:
        for name, seed in zip(frame["configuration"], frame["seed"], strict=True):
            if seed == seed and seed is not None:
                used.setdefault(name, set()).add(int(seed))
    planned: dict[str, list[int]] = {}
    for row, name in enumerate(cells["configuration"]):
        planned.setdefault(name, []).append(row)
    chosen = []
    for one in found.proposals:
        name = cells["configuration"][one.row]
        had = used.setdefault(name, set())
        new = [row for row in planned[name] if cases[row][1] not in had]
        axes, seed = cases[new[0] if new else one.row]
        if not new:
            seed = next(number for number in range(len(had) + 1) if number not in had)
            axes = {**{key: value for key, value in axes.items() if key not in ("seed", "train.seed")}, "seed": seed}
        had.add(seed)
        chosen.append(axes)
    return chosen


def _write_sweep(
    output: Path, source: str | None, base: str | None, cases: list[dict[str, Any]], description: str
) -> int:
    """Write a sweep of these cases over the base config of ``source`` (or ``base``), once gsq has planned it; returns
    how many runs it has."""
    import yaml

    from gsq.loading import read_yaml
    from sweeps.planning import make_plan
    from sweeps.shipped import configs_folder, find_file
    from sweeps.spec import load_spec

    document: dict[str, Any] = {"name": output.stem, "description": description, "base": base}
    folder = Path()
    if source is not None:
        values = _submitted(source)
        if values is None:
            path = find_file(source, configs_folder(), "sweep")
            if output.resolve() == path.resolve():
                raise UserError(f"--output: {output} is the sweep of the candidates; write another file")
            values, folder = read_yaml(path), path.parent
        document["base"] = values["base"]
        if values.get("set"):
            document["set"] = values["set"]
    if document["base"].endswith((".yaml", ".yml")):
        beside = folder / document["base"]
        beside = beside if beside.is_file() else Path(document["base"])
        document["base"] = os.path.relpath(beside, output.parent)
    document["cases"] = cases
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.partial.yaml")
    try:
        partial.write_text(yaml.safe_dump(document, sort_keys=False, width=120), encoding="utf-8")
        plan = make_plan(load_spec(partial))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return len(plan.cells)


def _write_table(frame: pd.DataFrame, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    try:
        if output.suffix == ".csv":
            frame.to_csv(partial, index=False)
        else:
            frame.to_parquet(partial, index=False)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
