"""``gsq doctor``."""

from __future__ import annotations

import json

import typer

from gsq.cli.options import (
    JsonOption,
)


def doctor_command(as_json: JsonOption = False) -> None:
    """What this machine has, what is missing, and what to do: packages, GPUs, folders, SLURM, weights, data, tables.

    Missing things that only some uses need are no problem. Exit code 1: there is one.

    Example: gsq doctor
    """
    from gsq.cli.examination import examine, healthy, table, to_dict

    checks = examine()
    if as_json:
        typer.echo(json.dumps(to_dict(checks), indent=1))
    else:
        from rich.console import Console

        console = Console()
        console.print(table(checks))
        problems = sum(check.state == "problem" for check in checks)
        console.print(f"{problems} problem{'s' * (problems != 1)}" if problems else "no problems", highlight=False)
    if not healthy(checks):
        raise typer.Exit(1)
