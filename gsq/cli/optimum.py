"""``gsq fit --optimum``: the best value of a tuned column at each size, and its law over sizes."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from gsq.analysis.fitting.options import Options


def words_of(by: str | None, more: list[str] | None) -> list[str]:
    """The columns of ``--by``, in one word or several ("width batch_size", "width,batch_size").

    Raises AnalysisError for words that follow no --by.
    """
    from gsq.analysis.errors import AnalysisError

    if more and by is None:
        raise AnalysisError(f"{' '.join(more)}: one table is fitted at a time, and columns follow --by")
    return [word for text in [by or "", *(more or [])] for word in text.replace(",", " ").split()]


def print_optimum(
    path: Path,
    column: str,
    by: list[str],
    options: Options,
    *,
    target: str | None,
    protocol: str | None,
    where: str | None,
    figure: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print the optima of a table and their law, and save what is asked for. Raises AnalysisError."""
    from gsq.analysis.checking.optimum import optimum
    from gsq.analysis.fitting.result import write_json
    from gsq.analysis.tables.selecting import select
    from gsq.analysis.tables.table import load_table
    from gsq.cli.show_fit import print_fit

    frame = select(load_table(path, protocol), where)
    found = optimum(frame, column, by, target=target or "rfid", options=options)
    document = {"table": str(path), **({"where": where} if where else {}), "optimum": found.to_dict()}
    saved = []
    if figure is not None:
        from gsq.analysis.figures.optima import optimum_figure
        from gsq.analysis.figures.style import saved_files

        optimum_figure(found, figure)
        saved += [str(file) for file in saved_files(figure)]
    if output is not None:
        write_json(document, output)
        saved.append(str(output))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(found.text())
    if found.law is not None:
        typer.echo()
        print_fit(found.law)
    if saved:
        typer.echo(f"Saved {' and '.join(saved)}.")
