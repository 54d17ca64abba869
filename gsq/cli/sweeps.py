"""``gsq sweeps``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from gsq import sweeps
from gsq.cli.options import JsonOption, NameArgument, YesOption, ask, print_json
from gsq.records.folder import runs_root
from gsq.words import counted

sweeps_app = typer.Typer()


@sweeps_app.callback(invoke_without_command=True)
def list_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """List sweeps with their state, age and size; rename or remove one.

    The sweep submitted last comes first. A run that several sweeps share counts in the size of each.

    Example: gsq sweeps --json

    Example: gsq sweeps rename groups groups-old
    """
    if context.invoked_subcommand is not None:
        return
    from gsq.cli.wording import counts_text, duration, size, spelled
    from gsq.sweeps.state.sweeps import sweep_bytes

    found = sweeps.overview()
    sizes = {line.name: 0 if line.problem else sweep_bytes(line.name) for line in found}
    ages = {line.name: max(0.0, time.time() - line.submitted) for line in found}
    if as_json:
        rows = [{**line.to_dict(), "seconds": ages[line.name], "bytes": sizes[line.name]} for line in found]
        print_json({"sweeps": rows})
        return
    if not found:
        typer.echo(f"no sweep below {runs_root()} yet (gsq run or gsq submit makes one; $GSQ_RUNS names the folder)")
        return
    from rich.console import Console
    from rich.markup import escape

    from gsq.cli.tables import plain_table

    table = plain_table("sweep", "submitted", "size", "cells", right=("submitted", "size"))
    for line in found:
        said = f"[red]{escape(line.problem)}[/red]" if line.problem else counts_text(spelled(line.counts))
        table.add_row(escape(line.name), f"{duration(ages[line.name])} ago", size(sizes[line.name]), said)
    Console(emoji=False).print(table)


@sweeps_app.command("rename")
def rename_command(
    sweep: NameArgument, new: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")]
) -> None:
    """Give a sweep another name. Its runs stay where they are; a sweep with running or queued cells is refused.

    Example: gsq sweeps rename groups groups-first-try
    """
    from gsq.sweeps.planning.folder import sweep_folder
    from gsq.sweeps.state.sweeps import rename_sweep

    name = sweep_folder(sweep).name
    rename_sweep(name, new)
    typer.echo(
        f"{name} is now {new}. Write name: {new} in its YAML file, too; otherwise gsq run starts {name} again from it"
    )


@sweeps_app.command("remove")
def remove_command(sweep: NameArgument, yes: YesOption = False) -> None:
    """Remove a sweep: its plan, logs and source copies. Runs and results tables stay, and other sweeps keep theirs.

    A sweep with running or queued cells is refused. gsq clean --orphans then removes runs that no sweep mentions.

    Example: gsq sweeps remove groups-first-try
    """
    from gsq.cli.wording import size
    from gsq.sweeps.planning.folder import sweep_folder
    from gsq.sweeps.state.sweeps import remove_sweep

    name = sweep_folder(sweep).name
    ask(f"Remove the plan and the logs of sweep '{name}'?", yes, final=True)
    done = remove_sweep(name)
    typer.echo(f"removed sweep '{name}' ({size(done.bytes)}); its results table stays")
    if done.lone:
        typer.echo(
            f"no sweep mentions {counted(done.lone, 'of its runs', 'of its runs')}; see gsq clean --orphans --dry-run"
        )
