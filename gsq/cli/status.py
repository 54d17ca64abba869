"""``gsq status``."""

from __future__ import annotations

import time

import typer

from gsq import sweeps
from gsq.cli.options import AllOption, JsonOption, MaybeNameArgument, print_json
from gsq.errors import UserError
from gsq.records.folder import runs_root


def status_command(
    sweep: MaybeNameArgument = None,
    watch: bool = False,
    as_json: JsonOption = False,
    show_all: AllOption = False,
) -> None:
    """Show the state of every cell, from the run folders, squeue and sacct, and the best trial of a search.

    For queued cells it gives SLURM's reason and says which will not start by themselves. Without a sweep, list all
    sweeps and their running cells. If the sweep is named by an edited YAML file, list its cells that have not been
    submitted.

    Example: gsq status quickstart --watch

    Options:
        --watch  Refresh every few seconds until all cells have ended.
    """
    if sweep is None:
        if watch or show_all:
            raise UserError("gsq status: --watch and --all need a sweep: gsq status SWEEP --watch")
        print_overview(as_json)
        return
    found = sweeps.status(sweep)
    if as_json:
        print_json(found.to_dict())
        return
    from rich.console import Console
    from rich.live import Live

    from gsq.cli.show_status import status_renderable

    limit = None if show_all else 60
    if not watch:
        Console(emoji=False).print(status_renderable(found, limit))
        return
    try:
        with Live(status_renderable(found, limit), refresh_per_second=2) as live:
            while not found.ended:
                time.sleep(2 if found.local else 5)  # Other users share sacct.
                found = sweeps.status(sweep)
                live.update(status_renderable(found, limit))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def print_overview(as_json: bool) -> None:
    """Print all sweeps and their running cells."""
    found = sweeps.overview()
    if as_json:
        print_json({"sweeps": [line.to_dict() for line in found]})
    elif not found:
        typer.echo(f"no sweep below {runs_root()} yet (gsq run or gsq submit makes one; $GSQ_RUNS names the folder)")
    else:
        from rich.console import Console

        from gsq.cli.show_status import overview_renderable

        Console(emoji=False).print(overview_renderable(found))
