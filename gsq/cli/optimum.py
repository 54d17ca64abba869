"""``gsq fit --optimum``: the best value of a tuned column at each size, and its law over sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from gsq import analysis
from gsq.analysis.fitting.options import Options
from gsq.cli.table_options import drawn, load, saved, table_path


def words_of(tables: list[str], by: str | None, targets: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The tables, and the columns of ``--by``, in one word or several ("width batch_size", "width,batch_size"), or the
    further ones of ``targets``.

    An option takes one value, so further columns are among the tables: those after the first that are no files.
    """
    first, *others = tables
    asked = by is not None or bool(targets)
    more = [word for word in others if asked and not table_path(word).is_file()]
    if by is None:
        return [first, *(word for word in others if word not in more)], more
    found = [word for text in [by or "", *more] for word in text.replace(",", " ").split()]
    return [first, *(word for word in others if word not in more)], found


def print_optimum(
    paths: list[Path],
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
    from gsq.analysis.fitting.result import write_json
    from gsq.cli.show_fit import print_fit

    frame = load(paths, protocol, where)
    found = analysis.optimum(frame, column, by, target=target or "rfid", options=options)
    document = {"table": " ".join(map(str, paths)), **({"where": where} if where else {}), "optimum": found.to_dict()}
    lines = drawn(lambda path: analysis.optimum_figure(found, path), figure)
    if output is not None:
        write_json(document, output)
        lines.append(saved(output))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(found.text())
    if found.law is not None:
        typer.echo()
        print_fit(found.law)
    for line in lines:
        typer.echo(line)
