"""``gsq gather`` and ``gsq results``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gsq import sweeps
from gsq.cli.options import JsonOption, NameArgument, print_json
from gsq.errors import UserError


def gather_command(
    sweep: NameArgument,
    output: Path | None = None,
    curves: bool = False,
    as_json: JsonOption = False,
) -> None:
    """Collect a sweep's runs into its results table, including failed and missing cells.

    Reports what is done, what failed and how much device time was spent. Warns if failures depend on an axis (Fisher's
    exact test, corrected for the number of axes), because a law fitted to the rest would be biased.

    Example: gsq gather quickstart

    Options:
        --output FILE  Parquet file; default results/SWEEP.parquet.
        --curves  Also write the training curves to SWEEP-curves.parquet beside the table.
    """
    from gsq.sweeps.tables.gather import gathered

    done = gathered(sweep, output)
    second = None
    if curves:
        from gsq.sweeps.tables.curves import curves_path

        second = sweeps.gather_curves(sweep, curves_path(done.table))
    if as_json:
        files = {"table": str(done.table), **({"curves": str(second)} if second else {})}
        more = {"problems": done.problems, "spent": done.spent.to_dict(), "comparisons": done.comparisons}
        print_json({**files, **done.coverage.to_dict(), **more})
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
    """Explain the columns of the results table.

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
    """List the columns of the results table with type, unit, meaning and role.

    The Parquet file has the same in its field metadata.

    Example: gsq results describe results/groups.parquet
    """
    from gsq.sweeps.schema.columns import SCHEMA_VERSION, describe

    try:
        columns = describe(file)
    except sweeps.SchemaError as error:
        raise UserError(str(error)) from error
    if as_json:
        print_json({**({"version": SCHEMA_VERSION} if file is None else {}), "columns": [asdict(c) for c in columns]})
        return
    from rich.console import Console
    from rich.markup import escape

    from gsq.cli.tables import plain_table

    table = plain_table("column", "type", "unit", "meaning", no_wrap=("column", "type", "unit"))
    role = ""
    for column in columns:
        if column.role != role:
            role = column.role
            table.add_row(f"[dim]{role}[/dim]")
        table.add_row(f"  {column.name}", column.type, column.unit, escape(column.description))
    Console().print(table, highlight=False)
