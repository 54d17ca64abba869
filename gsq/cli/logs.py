"""``gsq logs``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass

from gsq.cli.options import JsonOption, MaybeNameArgument
from gsq.cli.status import print_overview


def logs_command(
    sweep: MaybeNameArgument = None,
    cell: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CELL",
            help="A signature or its beginning, or another selection of one cell; default: the only cell that runs.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the cell ends; Ctrl-C leaves with exit code 130.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", min=1, help="Attempt by its number; default: the newest.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="Lines of the log's end.")] = 40,
    as_json: JsonOption = False,
) -> None:
    """Show what a cell printed: the end of its log, here or from SLURM, and where its training is.

    The first line says which attempt it is, its state, and why it failed; a traceback comes last. Without a sweep: all
    sweeps, and the cells that run.

    Example: gsq logs quickstart 3f9c -f
    """
    from gsq.errors import UserError
    from gsq.sweeps.state.logs import follow as follow_log
    from gsq.sweeps.state.logs import read_log

    if follow and (as_json or attempt is not None):
        raise UserError("--follow shows what is written from now on: leave out --json and --attempt")
    if sweep is None:
        print_overview(as_json)
        return
    log = read_log(sweep, cell or (), attempt)
    tail = log.text.splitlines()[-lines:] if lines else []
    if as_json:
        values = {
            "signature": log.cell.signature,
            "axes": log.cell.title,
            "attempt": log.attempt,
            "attempts": log.cell.attempts,
            "state": log.state,
            "failure": log.failure,
            "message": log.message,
            "lines": tail,
            "curve": log.curve,
            "traceback": log.traceback,
            "files": [str(path) for path in log.files if path.exists()],
        }
        typer.echo(json.dumps(values, indent=1))
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
