"""The verbs of this room: ``gsq fit`` and ``gsq plot``. Thin wrappers; everything else is imported when one
runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from analysis.result import Fit

RESULTS = Path("results")

TableArgument = Annotated[
    str,
    typer.Argument(metavar="TABLE", help="Results table (.parquet), or a sweep's name: results/NAME.parquet."),
]
LawOption = Annotated[
    str | None,
    typer.Option(
        "--law",
        metavar="NAME",
        help="power_law_bpp or paper_eq14. Without it: each law that the table can carry.",
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="HASH",
        help="Evaluation protocol, where the table has several; a unique beginning will do.",
    ),
]
BootstrapOption = Annotated[
    int, typer.Option("--bootstrap", metavar="N", min=0, help="Resamples behind the intervals; 0 for none.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the starts and of the resamples.")]


def register(app: typer.Typer) -> None:
    """Add ``fit`` and ``plot`` to ``app``."""
    app.command("fit")(fit_command)
    app.command("plot")(plot_command)


def fit_command(
    table: TableArgument,
    law: LawOption = None,
    protocol: ProtocolOption = None,
    bootstrap: BootstrapOption = 1000,
    seed: SeedOption = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Save the fits as JSON here as well.")
    ] = None,
) -> None:
    """Fit a scaling law to a results table.

    Prints the law with its numbers, a bootstrap interval for each parameter (the seeds of a configuration
    move together), and what the fit leaves out. A parameter marked "not determined" must not be quoted.

    Example: gsq fit quickstart --output results/fits/quickstart.json
    """
    from analysis.errors import AnalysisError

    _, fits, reasons = load_and_fit(table_path(table), law, protocol, bootstrap, seed)
    if not fits:
        raise AnalysisError("; ".join(reasons.values()))
    contents = {"table": table, "fits": [one.to_dict() for one in fits], "not_fitted": reasons}
    document = json.dumps(contents, indent=2)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(document + "\n", encoding="utf-8")
    if as_json:
        typer.echo(document)
        return
    for one in fits:
        print_fit(one)
    for reason in reasons.values():
        typer.echo(f"Not fitted: {reason}.")
    if output is not None:
        typer.echo(f"Saved {output}.")


def plot_command(
    table: TableArgument,
    law: LawOption = None,
    protocol: ProtocolOption = None,
    bootstrap: BootstrapOption = 1000,
    seed: SeedOption = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="PNG and SVG to save; default: beside the table."),
    ] = None,
) -> None:
    """Draw rFID against bits per pixel and against each axis that varies, with the fitted laws.

    Example: gsq plot quickstart --output results/figures/quickstart.png
    """
    from analysis.figures import saved_files, scaling_figure

    path = table_path(table)
    frame, fits, reasons = load_and_fit(path, law, protocol, bootstrap, seed)
    target = output if output is not None else path.with_suffix("")
    scaling_figure(frame, fits, target)
    for one in fits:
        typer.echo(f"{one.law.name}: {one.formula()}")
        for warning in one.warnings:
            typer.echo(f"Warning: {warning}.")
    for reason in reasons.values():
        typer.echo(f"Not fitted: {reason}.")
    typer.echo("Saved " + " and ".join(str(file) for file in saved_files(target)) + ".")


def table_path(table: str) -> Path:
    """The file that TABLE means: itself where it names a file, else results/TABLE.parquet."""
    path = Path(table)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    return RESULTS / f"{table}.parquet"


def load_and_fit(
    path: Path, law: str | None, protocol: str | None, bootstrap: int, seed: int
) -> tuple[pd.DataFrame, list[Fit], dict[str, str]]:
    """The table, its fits, and why a law was not fitted (law to reason)."""
    from analysis.errors import AnalysisError
    from analysis.fitting import fit
    from analysis.laws import LAWS, get_law
    from analysis.table import load_results, measured

    laws = list(LAWS.values()) if law is None else [get_law(law)]
    frame = load_results(path, protocol)
    rows, _ = measured(frame)
    reasons = {one.name: reason for one in laws if (reason := one.reason_not(rows)) is not None}
    fits = []
    for one in laws:
        if one.name in reasons:
            continue
        try:
            fits.append(fit(frame, one, bootstrap=bootstrap, seed=seed))
        except AnalysisError as error:  # seen only once it is fitted, for instance a singular optimum
            reasons[one.name] = str(error)
    return frame, fits, reasons


def print_fit(one: Fit) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{one.law.name}[/bold]  {escape(one.formula())}", highlight=False)
    console.print(escape(one.at_best()), highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("parameter", "value", f"{one.confidence:.0%} interval", ""):
        table.add_column(name)
    for name, value in one.parameters.items():
        low, high = one.intervals[name]
        interval = "" if low != low else f"{low:.4g} to {high:.4g}"
        why = one.undetermined.get(name)
        table.add_row(name, f"{value:.4g}", interval, f"not determined by these data ({why})" if why else "")
    console.print(table)
    console.print(one.quality(), highlight=False, style="dim")
    for warning in one.warnings:
        console.print(f"[yellow]Warning:[/yellow] {escape(warning)}.", highlight=False)
    console.print()
