"""``gsq logs``."""

from __future__ import annotations

from typing import Annotated

import typer

from gsq import sweeps
from gsq.cli.completion import complete_cells
from gsq.cli.options import JsonOption, MaybeNameArgument, print_json
from gsq.cli.status import print_overview
from gsq.errors import UserError


def logs_command(
    sweep: MaybeNameArgument = None,
    cell: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CELL",
            autocompletion=complete_cells,
            help="A signature or its beginning, or another selection of one cell; default: the only cell that runs.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new output until the cell ends; Ctrl-C exits with code 130.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", min=1, help="Attempt by its number; default: the newest.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="Last lines to show.")] = 40,
    as_json: JsonOption = False,
) -> None:
    """Show the end of a cell's log, from this machine or SLURM, and the progress of its training.

    The first line gives the attempt, its state and why it failed; a traceback comes last. Without a sweep, list all
    sweeps and their running cells.

    Example: gsq logs quickstart 3f9c -f
    """
    from gsq.sweeps.state.logs import follow as follow_log

    if follow and (as_json or attempt is not None):
        raise UserError("--follow shows only new output: leave out --json and --attempt")
    if sweep is None:
        print_overview(as_json)
        return
    log = sweeps.read_log(sweep, cell or (), attempt)
    tail = log.text.splitlines()[-lines:] if lines else []
    if as_json:
        own = {name: getattr(log, name) for name in ("attempt", "state", "failure", "message", "curve", "traceback")}
        cell_values = {"signature": log.cell.signature, "axes": log.cell.title, "attempts": log.cell.attempts}
        print_json({**cell_values, **own, "lines": tail, "files": [str(p) for p in log.files if p.exists()]})
        return
    typer.echo(log.headline)
    for line in (*tail, *log.curve):
        typer.echo(line)
    if log.traceback:
        typer.echo(log.traceback.rstrip())
    if not follow:
        return
    try:
        for piece in follow_log(log):
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
