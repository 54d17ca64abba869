"""``gsq allocate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gsq import analysis
from gsq.analysis.errors import AnalysisError
from gsq.analysis.fitting.options import Options
from gsq.cli.options import JsonOption
from gsq.cli.table_options import (
    BoundOption,
    ProtocolOption,
    drawn,
    load,
    require_outputs,
    saved,
    table_path,
)
from gsq.cli.taking import takes


@takes(Options)
def allocate_command(
    fit: Annotated[
        str,
        typer.Argument(
            metavar="FIT",
            help="A fit saved by gsq fit --output (.json); or, with --law, a table or sweep as for gsq fit.",
        ),
    ],
    budget: float | None = None,
    budgets: str | None = None,
    reach: float | None = None,
    cost: str | None = None,
    at: list[str] | None = None,
    within: list[str] | None = None,
    isoflop: str | None = None,
    law: str | None = None,
    bound: BoundOption = None,
    protocol: ProtocolOption = None,
    *,
    options: Options,
    figure: Path | None = None,
    output: Path | None = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best model size and length of training for a budget, by a fitted law, with intervals.

    Varies the columns that the law and the cost share (parameters or width, tokens, images or steps, bits) and finds
    the least value of the law at that cost; --reach finds the least cost at that value. Prints each column's best
    value, the power of the budget with which it grows, and both kinds of interval. Says where that extrapolates beyond
    the measured cells, and what parabolas through isoFLOP slices (runs of equal cost) would give.

    Where parameters differ between outputs or arms, --at out=loss or --at quantizer=simvq chooses one of them.

    Example: gsq allocate runs.csv --law "loss = E + A / N^a + B / D^b" --bound E=0: --budget 1e21

    Example: gsq fit runs.csv --law "loss = E + A / N^a + B / D^b" --output fit.json

    Example: gsq allocate fit.json --budgets 1e19:1e22 --cost "6*N*D" --figure allocation.png

    Options:
        --budget FLOPS  The budget, in the unit of --cost.
        --budgets LOW:HIGH  Compute a curve over budgets, such as 1e19:1e22.
        --reach VALUE  Find the least budget that reaches this value instead.
        --cost EXPRESSION  An expression over columns: "6*N*D". Default: that, for a law of parameters and tokens; what
            gsq's runs cost, for one of parameters and images_seen.
        --at NAME=VALUE  Hold a column of the law or the cost at a value (bits=12), or at one of the levels that have
            parameters of their own (quantizer=simvq, out=loss).
        --within NAME=LOW:HIGH  Limits of a free column.
        --isoflop COLUMN  A column whose values name the isoFLOP slices. Default: rows of about equal cost.
        --law LAW  A named law or a formula; for a saved file: which fit.
        --figure FILE  Draw isoFLOP slices and the best points against the budget.
        --output FILE  Save the result as JSON.
    """
    require_outputs({"--output": output}, {"--figure": figure}, [fit])
    ends = None if budgets is None else _pair(budgets, "--budgets")
    held, limits = dict(_held(text) for text in at or []), dict(_limits(text) for text in within or [])
    fitted = _read_fit(fit, law, bound, protocol, options)
    found = analysis.allocate(
        fitted, budget, budgets=ends, reach=reach, cost=cost, at=held, within=limits, slices=isoflop
    )
    lines = [found.text()]
    if output is not None:
        found.save(output)
        lines.append(saved(output))
    lines += drawn(lambda path: analysis.allocation_figure(found, path), figure)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(lines))


def _read_fit(
    name: str, law: str | None, bounds: list[str] | None, protocol: str | None, options: Options
) -> analysis.Fit:
    if Path(name).suffix == ".json":
        from gsq.analysis.fitting.saved import choose_saved, fit_again, read_saved

        if bounds or options != Options():
            raise AnalysisError(
                f"{name} is a saved fit, whose options and bounds are fixed; leave them out, or fit its table again"
            )
        table, fits = read_saved(name)
        return fit_again(choose_saved(name, fits, law), load(table, protocol))
    if law is None:
        raise AnalysisError(
            f"{name} is a table: name the law to allocate by (--law), or give a fit saved by gsq fit --output"
        )
    from gsq.cli.fit import load_and_fit

    _, fits_of_table, reasons = load_and_fit([table_path(name)], [law], protocol, options=options, bounds=bounds)
    if not fits_of_table:
        raise AnalysisError("; ".join(reasons.values()))
    return fits_of_table[0]


def _held(text: str) -> tuple[str, float | str]:
    name, _, value = (part.strip() for part in text.rpartition("="))
    if not (name and value):
        raise AnalysisError(f"--at {text!r} is not NAME=VALUE, such as bits=12 or quantizer=simvq")
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _pair(text: str, option: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise AnalysisError(f"{option} {text!r} is not LOW:HIGH, such as 1e19:1e22") from None


def _limits(text: str) -> tuple[str, tuple[float, float]]:
    name, equals, ends = text.rpartition("=")
    if not equals:
        raise AnalysisError(f"--within {text!r} is not NAME=LOW:HIGH, such as N=1e6:1e9")
    return name.strip(), _pair(ends, f"--within {name.strip()}=")
