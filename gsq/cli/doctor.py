"""``gsq doctor``."""

from __future__ import annotations

import typer

from gsq.cli.options import JsonOption, line, print_json
from gsq.words import counted


def doctor_command(as_json: JsonOption = False) -> None:
    """Check this machine and say what to fix: packages, GPUs, folders, SLURM, weights, data, tables.

    If only some uses need a missing item, it is marked optional. Exit code 1: there is a problem.

    Example: gsq doctor
    """
    from gsq.cli.examination import examine, healthy, table, to_dict

    checks = examine()
    if as_json:
        print_json(to_dict(checks))
    else:
        from rich.console import Console

        console = Console()
        console.print(table(checks))
        problems = sum(check.state == "problem" for check in checks)
        line(console, counted(problems, "problem") if problems else "no problems")
    if not healthy(checks):
        raise typer.Exit(1)
