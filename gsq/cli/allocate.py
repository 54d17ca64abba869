"""``gsq allocate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gsq.analysis.fitting.options import Options
from gsq.cli.options import JsonOption
from gsq.cli.table_options import (
    BoundOption,
    ProtocolOption,
    require_outputs,
    table_path,
    table_paths,
)
from gsq.cli.taking import takes

if TYPE_CHECKING:
    from gsq.analysis.fitting.result import Fit


@takes(Options)
def allocate_command(
    fit: Annotated[
        str,
        typer.Argument(
            metavar="FIT",
            help="A fit saved by gsq fit --output (.json), or a table or sweep as for gsq fit, with --law.",
        ),
    ],
    budget: Annotated[float | None, typer.Option("--budget", metavar="FLOPS", help="In the unit of --cost.")] = None,
    budgets: Annotated[
        str | None, typer.Option("--budgets", metavar="LOW:HIGH", help="A curve over budgets, such as 1e19:1e22.")
    ] = None,
    reach: Annotated[
        float | None,
        typer.Option("--reach", metavar="VALUE", help="The cheapest budget that reaches this value instead."),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            "--cost",
            metavar="EXPRESSION",
            help='An expression over columns: "6*N*D". Default: that, for a law of parameters and tokens; what gsq\'s '
            "runs cost, for one of parameters and images_seen.",
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="NAME=VALUE",
            help="Hold a column of the law or the cost at a value, "
            "or at one of the levels that have parameters of their own: bits=12, quantizer=simvq, out=loss.",
        ),
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option("--within", metavar="NAME=LOW:HIGH", help="Limits of a free column."),
    ] = None,
    isoflop: Annotated[
        str | None,
        typer.Option(
            "--isoflop",
            metavar="COLUMN",
            help="A column whose values name the isoFLOP slices. Default: rows of about one cost.",
        ),
    ] = None,
    law: Annotated[
        str | None,
        typer.Option("--law", metavar="LAW", help="A named law or a formula; for a saved file: which fit."),
    ] = None,
    bound: BoundOption = None,
    protocol: ProtocolOption = None,
    *,
    options: Options,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Draw isoFLOP slices and the best points against the budget."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Save the result as JSON.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best model size and length of training for a budget, by a fitted law, with intervals.

    Over the columns that the law and the cost share (parameters or width, tokens, images or steps, bits), finds the
    least value of the law at that cost; --reach finds the least cost at that value. Prints each column's best value,
    the power of the budget that it goes with, and both kinds of interval; says where that extrapolates beyond what was
    measured, and what parabolas through isoFLOP slices would have said.

    Example: gsq allocate runs.csv --law "loss = E + A / N^a + B / D^b" --bound E=0: --budget 1e21

    Example: gsq fit runs.csv --law "loss = E + A / N^a + B / D^b" --output fit.json

    Where parameters differ between outputs or arms, --at out=loss or --at quantizer=simvq says which one it is for.

    Example: gsq allocate fit.json --budgets 1e19:1e22 --cost "6*N*D" --figure allocation.png
    """
    from gsq.analysis.allocating.allocation import allocate

    require_outputs({"--output": output}, {"--figure": figure})
    ends = None if budgets is None else _pair(budgets, "--budgets")
    held, limits = dict(_named(text, "--at") for text in at or []), dict(_limits(text) for text in within or [])
    fitted = _read_fit(fit, law, bound, protocol, options)
    found = allocate(fitted, budget, budgets=ends, reach=reach, cost=cost, at=held, within=limits, slices=isoflop)
    saved = []
    if output is not None:
        found.save(output)
        saved.append(f"Saved {output}.")
    if figure is not None:
        from gsq.analysis.figures.allocation import allocation_figure
        from gsq.analysis.figures.style import saved_files

        allocation_figure(found, figure)
        saved.append("Saved " + " and ".join(str(file) for file in saved_files(figure)) + ".")
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    typer.echo("\n".join([found.text(), *saved]))


def _read_fit(name: str, law: str | None, bounds: list[str] | None, protocol: str | None, options: Options) -> Fit:
    from gsq.analysis.errors import AnalysisError

    if Path(name).suffix == ".json":
        from gsq.analysis.fitting.saved import choose_saved, fit_again, read_saved
        from gsq.analysis.tables.several import load_tables

        if bounds or options != Options():
            raise AnalysisError(f"{name} is a saved fit, which has its own options and bounds: fit its table again")
        table, fits = read_saved(name)
        return fit_again(choose_saved(name, fits, law), load_tables(table_paths(table), protocol))
    if law is None:
        raise AnalysisError(
            f"{name} is a table: name the law to allocate by (--law), or give a fit saved by gsq fit --output"
        )
    from gsq.cli.fit import load_and_fit

    _, fits_of_table, reasons = load_and_fit([table_path(name)], [law], protocol, options=options, bounds=bounds)
    if not fits_of_table:
        raise AnalysisError("; ".join(reasons.values()))
    return fits_of_table[0]


def _named(text: str, option: str) -> tuple[str, float | str]:
    from gsq.analysis.errors import AnalysisError

    name, equals, value = text.partition("=")
    if not (equals and name.strip() and value.strip()):
        raise AnalysisError(f"{option} {text!r} is not NAME=VALUE, such as bits=12 or quantizer=simvq")
    try:
        return name.strip(), float(value)
    except ValueError:
        return name.strip(), value.strip()


def _pair(text: str, option: str) -> tuple[float, float]:
    from gsq.analysis.errors import AnalysisError

    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise AnalysisError(f"{option} {text!r} is not LOW:HIGH, such as 1e19:1e22") from None


def _limits(text: str) -> tuple[str, tuple[float, float]]:
    from gsq.analysis.errors import AnalysisError

    name, equals, ends = text.rpartition("=")
    if not equals:
        raise AnalysisError(f"--within {text!r} is not NAME=LOW:HIGH, such as N=1e6:1e9")
    return name.strip(), _pair(ends, f"--within {name.strip()}=")
