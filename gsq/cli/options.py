"""Arguments and options that several verbs share."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsq.analysis.errors import AnalysisError
from gsq.cli.completion import complete_cells, complete_names, complete_sweeps
from gsq.errors import UserError
from gsq.sweeps.spec.shipped import configs_folder, shipped_files

if TYPE_CHECKING:
    from rich.console import Console

SweepArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        autocompletion=complete_sweeps,
        help=f"Sweep YAML, or the name of one that ships with gsq: {', '.join(shipped_files(configs_folder()))}.",
    ),
]
NameArgument = Annotated[
    str,
    typer.Argument(metavar="SWEEP", autocompletion=complete_names, help="Name of a submitted sweep, or its YAML file."),
]
MaybeNameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[SWEEP]",
        autocompletion=complete_names,
        help="Name of a submitted sweep, or its YAML file; without it, all are listed.",
    ),
]
ClusterOption = Annotated[
    str,
    typer.Option("--cluster", metavar="NAME", help="local (this machine), slurm (cluster defaults) or a cluster file."),
]
PlanClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="local (this machine), slurm (cluster defaults) or a cluster file. [dim]\\[default: plan_for of the "
        "YAML, else local][/dim]",
    ),
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="Estimate for another GPU than the cluster file's: h100, a100, ..."),
]
AnchorsOption = Annotated[
    Path | None,
    typer.Option(
        "--anchors",
        metavar="FILE",
        help="Write a sweep file that repeats a few finished cells (4, or --cells N) after gsq, packages or the device "
        "have changed; gsq gather then says whether old and new runs can be pooled.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SelectionArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SELECTION",
        autocompletion=complete_cells,
        help="Signatures or their beginnings, states or failure classes (running, failed, out_of_memory, ...), "
        "KEY=VALUE (groups=4). Words of one kind are alternatives; different kinds must all match.",
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AllOption = Annotated[bool, typer.Option("--all", help="Show every cell, however many there are.")]


@dataclass(frozen=True, kw_only=True)
class Submitting:
    """How the cells of a sweep are run.

    Options:
        --cluster NAME  local (this machine), slurm (cluster defaults) or a cluster file.
        --cells N  Only the first N cells, or N trials of a search.
        --retry  Retry cells that failed as out_of_memory, diverged or error.
        --over-budget  Submit even if the estimate exceeds the YAML's budget.
        --canary  First run the largest cell of each resource class for 50 steps, to measure its memory and time.
        --micro-batch N|auto  Images of one pass on one device, with the same result: a number, or auto for the largest
            that each cell's GPU holds by the estimate.
    """

    cluster: str = "local"
    cells: int | None = field(default=None, metadata={"min": 1})
    retry: bool = False
    over_budget: bool = False
    canary: bool = False
    micro_batch: str | None = None


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a line for each key and each entry of a list; full indentation would take seconds for large sweeps."""
    if not isinstance(document, Mapping):
        typer.echo(json.dumps(document, indent=1))
        return
    parts = []
    for key, value in document.items():
        several = isinstance(value, list | tuple) and value
        text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if several else json.dumps(value)
        parts.append(f" {json.dumps(key)}: {text}")
    typer.echo("{\n" + ",\n".join(parts) + "\n}")


def line(console: Console, text: str, style: str | None = None) -> None:
    """Print one line without highlighting numbers; only the terminal wraps it."""
    console.print(text, style=style, highlight=False, soft_wrap=True, emoji=False)


def on_terminal() -> bool:
    return sys.stdin.isatty()


def ask(question: str, yes: bool, final: bool = False) -> None:
    """Exit with code 1 unless the user agrees. Without a terminal, do not ask, but raise UserError where what follows
    is final."""
    if yes:
        return
    if on_terminal():
        typer.confirm(question, abort=True)
    elif final:
        raise UserError(f"{question} There is no terminal to ask on, and nothing was removed; to agree, add --yes")


def named_numbers(given: list[str] | None, option: str, example: str) -> dict[str, float]:
    """Numbers by name of a repeatable option NAME=NUMBER. Raises AnalysisError, which names the option."""
    values = {}
    for one in given or []:
        name, _, value = one.rpartition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            raise AnalysisError(f"{option} {one!r} is not NAME=NUMBER, such as {example}") from None
    return values


def key_values(given: list[str] | None, option: str) -> dict[str, Any]:
    """Values by key of a repeatable option KEY=VALUE. Raises UserError, which names the option."""
    from gsq.config.overrides import read_value

    values = {}
    for one in given or []:
        key, equals, value = one.partition("=")
        if not equals:
            raise UserError(f"{option}: '{one}' is not KEY=VALUE")
        values[key] = read_value(key, value)
    return values
