"""``gsq report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.table_options import LawOption, ProtocolOption, table_paths


def report_command(
    sweep: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP...",
            help="A submitted sweep, by name or YAML file, or a results table: FILE.parquet or its NAME. Several make "
            "one page, on which a run that they share counts once.",
        ),
    ],
    law: LawOption = None,
    protocol: ProtocolOption = None,
    output: Path | None = None,
) -> None:
    """Write one HTML page about a sweep, to read, send or print. It needs no network and no other file.

    The page shows what became of the cells and why some failed, a table that sorts and filters, the figures of gsq
    plot, laws with their report cards, pictures and training curves from run folders on this machine, and the
    protocols, code and devices. gsq gathers a submitted sweep first, finished or not.

    Example: gsq report quickstart --output quickstart.html

    Options:
        --output FILE  The page; default: SWEEP-report.html beside the results table.
    """
    from gsq.cli.compose import write_report

    page, table = write_report(sweep[0], output, law, protocol, sweep[1:])
    typer.echo(f"results table: {', '.join(map(str, [table, *table_paths(sweep[1:])]))}")
    typer.echo(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser")
