"""``gsq export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gsq import analysis
from gsq.analysis.errors import AnalysisError
from gsq.cli.table_options import ProtocolOption, TablesArgument, load, require_outputs, save_or_print


def export_command(
    table: TablesArgument,
    latex: bool = False,
    csv: bool = False,
    markdown: bool = False,
    column: list[str] | None = None,
    by: list[str] | None = None,
    where: str | None = None,
    protocol: ProtocolOption = None,
    best: list[str] | None = None,
    digits: Annotated[
        int,
        typer.Option(
            "--digits", metavar="N", min=1, max=15, help="Significant digits of a mean; more if the seeds allow."
        ),
    ] = 4,
    output: Path | None = None,
) -> None:
    """Write a table for a paper: a row for each configuration, with mean and standard deviation over seeds.

    The best value of each metric is bold, column heads have units, and a line says what was averaged and by which
    protocol it was measured. Cells without a value are left out, and a message says how many.

    Example: gsq export groups --latex --column rfid --column psnr_db --output table.tex

    Example: gsq export runs.csv --csv --by model --column loss --best loss=min

    Options:
        --latex  Write LaTeX, with the rules of booktabs (the default for --output FILE.tex).
        --csv  Write CSV, in full precision (the default for --output FILE.csv).
        --markdown  Write Markdown (the default).
        --column COLUMN  A column of values to average over seeds; repeatable, in this order. Default: rfid, psnr_db,
            ssim, lpips and usage, as far as measured. `gsq results describe` lists the columns.
        --by COLUMN  A column that tells the printed rows apart; repeatable. Default: the axes that vary, except
            the seed.
        --where CONDITION  Export only these rows: "groups >= 4".
        --best COLUMN=min|max|none  Whether the least or the largest value of a column is the best; gsq knows it for its
            metrics. Repeatable.
        --output FILE  Write this file; default: print the table.
    """
    from gsq.analysis.tables.table import unquoted

    forms = [name for name, given in (("latex", latex), ("csv", csv), ("markdown", markdown)) if given]
    if len(forms) > 1:
        raise AnalysisError(f"--{' and --'.join(forms)}: choose one format")
    directions = {}
    for one in best or []:
        name, found, direction = one.rpartition("=")
        if not found or direction not in ("min", "max", "none"):
            raise AnalysisError(f"--best {one!r} is not COLUMN=min, COLUMN=max or COLUMN=none")
        directions[unquoted(name)] = direction
    require_outputs({"--output": output}, reads=table)
    frame = load(table, protocol, where)
    names, keys = ([unquoted(name) for name in given or []] or None for given in (column, by))
    exported = analysis.export_table(frame, names, keys, digits=digits, best=directions)
    text = exported.text(forms[0] if forms else _form_of(output))  # type: ignore[arg-type]
    if exported.left_out:
        typer.echo(f"Warning: {exported.left_out}.", err=True)
    save_or_print(text, output)


def _form_of(output: Path | None) -> str:
    """The format that a file's suffix asks for, Markdown where it asks for none."""
    return {".tex": "latex", ".csv": "csv"}.get(output.suffix.lower() if output else "", "markdown")
