"""``gsq check`` and ``gsq new``: parts of a user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.options import key_values
from gsq.errors import choose

KINDS = "quantizer, model, discriminator, loss, data, features, metric, program"


def check_command(
    part: Annotated[
        str, typer.Argument(metavar="PART", help="package.module:Name; the module is in this folder or on PYTHONPATH.")
    ],
    role: Annotated[
        str | None, typer.Option("--as", metavar="KIND", help=f"Kind of part, if its class does not say: {KINDS}.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="KEY=VALUE", help="An option of the part, or a key of a program; repeatable."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")] = False,
) -> None:
    """Check a part of your own (a quantizer, a loss, ...) as the built-in parts are checked, and say what is wrong.

    Tests shapes and types, gradients, decoding, half precision, saving and loading, and a few steps of training: twice,
    in micro-batches, resumed, and with two processes. Exit code 1: a check failed.

    Example: gsq new quantizer my_vq.py && gsq check my_vq:Mine

    Example: gsq check my_metrics:Sharpness --as metric

    A training program of your own (gsq new program) is run twice with the keys that you give, and once stopped half-way
    and resumed:

    Example: gsq check my_train:train --as program -o text=README.md -o width=4 -o steps=8 -o seed=0
    """
    from gsq.runs.part_checks import ROLES, check_part
    from gsq.runs.program_checks import check_program

    if role is not None:
        choose("--as", role, [*ROLES, "program"])
    options = key_values(option, "--option")
    found = check_program(part, options) if role == "program" else check_part(part, role, options)
    failed = [check for check in found if not check.passed]
    if as_json:
        typer.echo(json.dumps({"part": part, "passed": not failed, "checks": [vars(check) for check in found]}))
    else:
        for check in found:
            mark = "warning" if check.passed and check.message and check is not found[0] else "ok"
            typer.echo(f"{mark if check.passed else 'FAILED':<8} {check.name}{_after(check.message)}")
        typer.echo(
            f"{len(failed)} of {len(found)} checks failed" if failed else f"{part} passes all {len(found)} checks"
        )
    raise typer.Exit(1 if failed else 0)


def _after(message: str) -> str:
    return f": {message}" if message else ""


def new_command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"Kind of part: {KINDS}.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Python file to write, such as my_vq.py.")],
) -> None:
    """Write a commented Python file for a part of your own (a quantizer, a loss, ...), and a test beside it.

    The file works as it is; edit it, run gsq check on it, and name it in a sweep by its import path.

    Example: gsq new quantizer my_vq.py
    """
    from gsq.templates.write import write_part

    written, part, key = write_part(kind, file)
    typer.echo(f"wrote {' and '.join(str(path) for path in written)}")
    keys = " -o KEY=VALUE for each of its keys" if kind == "program" else ""
    typer.echo(f"try it out: gsq check {part}{'' if kind in ('quantizer', 'model') else f' --as {kind}'}{keys}")
    typer.echo(f"use it: in a sweep's YAML, {key if kind == 'program' else f'set: {{{key}}}'}")
