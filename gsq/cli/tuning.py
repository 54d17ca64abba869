"""``gsq design --optimum``: the next values of a tuned column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from gsq import analysis
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.options import Options
from gsq.cli.optimum import words_of
from gsq.cli.table_options import load
from gsq.errors import UserError

# The budget of --optimum is a number of runs.
OWN = "--by, --target COLUMN, --budget RUNS, --noise, --residuals, --protocol, --base, --output and --json"


def print_next_values(
    tables: list[str],
    column: str,
    by: str | None,
    options: Options,
    *,
    target: str | None,
    runs: Sequence[float] | None,
    protocol: str | None,
    base: str | None,
    output: Path | None,
    as_json: bool,
    others: Mapping[str, object],
) -> None:
    """Print the values to try next, and write them as a sweep or a table. ``others``: options that do not go with
    --optimum. Raises AnalysisError and UserError."""
    from gsq.cli import designing

    if given := [name for name, value in others.items() if value]:
        raise AnalysisError(f"--optimum proposes values of {column}; leave out {' and '.join(given)}. It takes {OWN}")
    if runs and (len(runs) > 1 or runs[0] < 1 or runs[0] % 1):
        shown = " and ".join(f"{one:g}" for one in runs)
        raise AnalysisError(f"--budget: with --optimum it is one whole number of runs, 1 or more; got {shown}")
    tables, sizes = words_of(tables, by)
    paths, sweep = designing.tables_and_sweep(tables)
    if output is not None:
        designing.require_kind(output, sweep or str(paths[0]), base)
    found = analysis.optimum(load(paths, protocol), column, sizes, target=target or "rfid", options=options)
    proposed = analysis.next_values(found, int(runs[0]) if runs else None)
    cases = [dict(one) for one in proposed.cases()]
    lines = [proposed.text()]
    if output is not None:
        title = f"The next values of {column} that gsq design proposes, from {', '.join(path.name for path in paths)}."
        lines.append(designing.write_cases(output, cases, sweep, base, title))
    if as_json:
        typer.echo(json.dumps({"tables": [str(path) for path in paths], **proposed.to_dict()}, indent=1))
    else:
        typer.echo("\n".join(lines))


def require_budget(budget: Sequence[float] | None) -> list[float]:
    if not budget:
        raise UserError("--budget: name the device hours, or units of the --cost column, that the runs may take")
    return [*budget]
