"""``gsq fit``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gsq import analysis
from gsq.analysis.errors import AnalysisError, together

if TYPE_CHECKING:
    import pandas as pd

    from gsq.analysis.laws.named import Bound

from gsq.analysis.fitting.options import Options
from gsq.cli.optimum import print_optimum, words_of
from gsq.cli.questions import Questions
from gsq.cli.show_fit import print_fit
from gsq.cli.table_options import (
    BoundOption,
    LawOption,
    ProtocolOption,
    TablesArgument,
    WhereOption,
    drawn,
    load,
    require_outputs,
    saved,
    table_paths,
)
from gsq.cli.taking import takes


def _list_laws(wanted: bool) -> None:
    if wanted:
        width = max(map(len, analysis.LAWS))
        for law in analysis.LAWS.values():
            typer.echo(f"{law.name:<{width}}  {law.formula}  ({law.source})")
        raise typer.Exit


@takes(Options)
def fit_command(
    table: TablesArgument,
    law: LawOption = None,
    target: list[str] | None = None,
    bound: BoundOption = None,
    start: list[str] | None = None,
    by: str | None = None,
    optimum: str | None = None,
    protocol: ProtocolOption = None,
    derive: list[str] | None = None,
    where: WhereOption = None,
    *,
    options: Options,
    card: bool = False,
    figure: Path | None = None,
    compare: bool = False,
    collapse: bool = False,
    extrapolate: bool = False,
    arms: str | None = None,
    random: str | None = None,
    against: str | None = None,
    rollout: str | None = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")] = False,
    output: Path | None = None,
    laws: Annotated[
        bool, typer.Option("--laws", help="List the named laws.", callback=_list_laws, is_eager=True)
    ] = False,
) -> None:
    r"""Fit scaling laws to a results table, or to any other table.

    Prints the law with its numbers, an interval for each parameter, and what the fit leaves out. Do not quote a
    parameter that is marked "not determined"; you may quote predictions.

    Example: gsq fit quickstart --output results/fits/quickstart.json

    Example: gsq fit runs.csv --law "loss = E + A / N^a + B / D^b" --bound E=0: --card --derive "b / (a + b)"

    Example: gsq fit groups widths --by sweep

    Example: gsq fit rates --optimum learning_rate --by width batch_size --figure rates.png

    Example: gsq fit groups --law "rfid = A\[quantizer] * bits_per_pixel^(-alpha)" --arms quantizer=vq

    Example: gsq fit runs.csv --law "E\[out] + A\[out] / N^a" --target train_loss val_loss

    Options:
        --target COLUMN ...  Predict this column instead of the law's own. Several columns share the parameters of the
            formula, except those with the index \[out], such as A\[out].
        --start NAME=LOW:HIGH  Range of a parameter's random starts; NAME=VALUE starts there and near it.
        --by COLUMN  Fit each value of this column separately.
        --optimum COLUMN  Find the best value of a tuned column (learning_rate) at each size (--by COLUMN ...), and
            its law.
        --derive EXPRESSION  Print an expression of the parameters with its interval, such as "b / (a + b)". Repeatable.
        --card  Print the whole report card of each fit.
        --figure FILE  Draw the report card of the first fit.
        --compare  Compare the laws by AICc and held-out errors. Without --law, compare all named laws. Laws that
            read step are compared separately, on every evaluation instead of each run's last.
        --collapse  Test whether one derived axis absorbs the others; fits nothing.
        --extrapolate  Predict the second half of each learning curve from the first.
        --arms COLUMN[=LEVEL]  Say how many times the bits, compute or images of LEVEL (default: the first) each other
            level of a text column is worth. A parameter of the law must have the column as its index: A\[quantizer].
            --figure draws the result.
        --random COLUMN  With --arms: rows with one value of this column (a study) share a random effect.
        --against LAW  Test the law against a simpler one on simulated tables, such as broken_power_law against
            power_law_bpp.
        --rollout COLUMN  Predict each size of this column from the smaller ones.
        --output FILE  Also save the fits as JSON.
    """
    from gsq.analysis.fitting.result import write_json
    from gsq.analysis.tables.table import unquoted

    table, words = words_of(table, by if optimum is not None else None, target or [])
    targets = [unquoted(one) for one in [*(target or []), *([] if optimum is not None else words)]]
    if len(targets) > 1 and (optimum is not None or collapse or extrapolate):
        raise AnalysisError(
            f"--target: name one column with --optimum, --collapse or --extrapolate; got {', '.join(targets)}"
        )
    single = targets[0] if targets else None
    paths = table_paths(table)
    require_outputs({"--output": output}, {"--figure": figure}, paths)
    if optimum is not None:
        asked: dict[str, object] = {"--law": law, "--bound": bound, "--start": start, "--derive": derive}
        asked |= {"--arms": arms, "--compare": compare, "--collapse": collapse, "--extrapolate": extrapolate}
        asked |= {"--card": card, "--against": against, "--rollout": rollout}
        if other := [name for name, value in asked.items() if value]:
            raise AnalysisError(f"--optimum fits a law of its own; leave out {' and '.join(other)}")
        print_optimum(
            paths, optimum, words, options,
            target=single, protocol=protocol, where=where, figure=figure, output=output, as_json=as_json,
        )  # fmt: skip
        return
    document: dict[str, object] = {"table": table[0] if len(table) == 1 else table, **({"by": by} if by else {})}
    if derive and (compare or collapse or extrapolate):
        raise AnalysisError("--derive needs a fit; leave out --compare, --collapse and --extrapolate")
    derived: list[list[analysis.Derived]] = []
    if collapse or extrapolate:
        lines = _collapse_or_extrapolate(load(paths, protocol, where), single or "rfid", collapse, document)
        fits: list[analysis.Fit] = []
    elif compare:
        frame = load(paths, protocol, where)
        chosen = named_laws(frame, law, targets, bound, start)
        compared = analysis.comparisons(frame, chosen, options)
        fits = [one for found in compared for one in found.fits]
        lines = ["\n\n".join(found.text() for found in compared)]
        document["comparison"] = compared[0].to_dict()
        if len(compared) > 1:
            document["comparison_of_steps"] = compared[1].to_dict()
    else:
        _, fits, reasons = load_and_fit(
            paths, law, protocol, options=options, target=targets, bounds=bound, starts=start, by=by, where=where
        )
        if not fits:
            raise together(reasons)
        lines = [f"Not fitted: {reason}." for reason in reasons.values()]
        derived = _derived(fits, derive or [])
        told = [_with_derived(*pair) for pair in zip(fits, derived, strict=True)]
        document |= {"fits": [one | ({"where": where} if where else {}) for one in told], "not_fitted": reasons}
    questions = Questions(arms, random, against, rollout)
    drawing = questions.answer(fits, lines, document)
    if drawing is not None:
        lines += drawn(drawing, figure)
        figure = None
    cards = []
    if card or figure is not None:
        cards = [analysis.report_card(one) for one in fits]
        document["cards"] = [one.to_dict() for one in cards]
    if cards:
        lines += drawn(lambda path: analysis.card_figure(cards[0], path), figure)
    if output is not None:
        write_json(document, output)
        lines.append(saved(output))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    for i, one in enumerate(fits if not compare else []):
        if card:
            found = [f"  {more.text()}" for more in derived[i]]
            typer.echo("\n".join([cards[i].text(), *(["", "Derived"] if found else []), *found, ""]))
        else:
            print_fit(one, derived[i])
    for line in lines:
        typer.echo(line)


def _derived(fits: list[analysis.Fit], expressions: list[str]) -> list[list[analysis.Derived]]:
    """Return, for each fit, the expressions over its parameters. Raises AnalysisError for one that fits no law."""
    found: list[list[analysis.Derived]] = [[] for _ in fits]
    for text in expressions:
        problems = []
        for one, here in zip(fits, found, strict=True):
            try:
                here.append(one.derive(text))
            except AnalysisError as error:
                problems.append(str(error))
        if len(problems) == len(fits):
            raise AnalysisError(f"--derive: {problems[0]}")
    return found


def _with_derived(fit: analysis.Fit, derived: list[analysis.Derived]) -> dict[str, object]:
    more = {one.name: one.to_dict() for one in derived}
    return {**fit.to_dict(), **({"derived": more} if more else {})}


def load_and_fit(
    paths: Sequence[Path],
    laws: list[str] | None = None,
    protocol: str | None = None,
    *,
    options: Options | None = None,
    target: Sequence[str] = (),
    bounds: list[str] | None = None,
    starts: list[str] | None = None,
    by: str | None = None,
    where: str | None = None,
) -> tuple[pd.DataFrame, list[analysis.Fit], dict[str, str]]:
    """Load tables, as one, and fit laws to it; also returns why a law (or group) was not fitted.

    ``laws``: names or formulas; None for the default ones that the table can carry.
    """
    from gsq.analysis.fitting.fit import fit_determined, fit_rows

    options = options or Options()
    frame = load(paths, protocol, where)
    chosen = named_laws(frame, laws if laws else list(analysis.DEFAULT_LAWS), target, bounds, starts) or []
    if laws is None:  # an unusable table is one error, not one a law
        analysis.measured(frame, chosen[0].target)
    fits: list[analysis.Fit] = []
    reasons: dict[str, str] = {}
    for law in chosen:
        try:
            if by is not None:
                found, why = analysis.fit_by(frame, by, law, options=options)
                fits += [replace(one, law=replace(law, name=f"{law.name} ({group})")) for group, one in found.items()]
                reasons |= {f"{law.name} ({group})": reason for group, reason in why.items()}
                continue
            rows, excluded = law.rows(frame)
            one = fit_determined if laws is None else fit_rows
            fits.append(one(rows, excluded, law, options))
        except AnalysisError as error:
            reasons[law.name] = str(error)
    return frame, fits, reasons


def named_laws(
    frame: pd.DataFrame,
    laws: list[str] | None,
    target: Sequence[str],
    bounds: list[str] | None,
    starts: list[str] | None,
) -> list[analysis.Law] | None:
    """Read the laws, each with the bounds and starts of its own parameters. Returns None where none are named."""
    if laws is None:
        return None
    limits = dict(_range(text, "--bound") for text in bounds or [])
    ranges = {name: (low, float(high)) for name, (low, high) in (_range(text, "--start") for text in starts or [])}
    names, of = [str(name) for name in frame.columns], target or None
    found = []
    for one in laws:
        # A name with bounds is a parameter even where it does not look like one.
        own = len(laws) == 1
        law = analysis.LAWS.get(one) or analysis.get_law(
            one, names, limits if own else None, ranges if own else None, of
        )
        law = replace(
            law,
            bounds={**law.bounds, **{name: pair for name, pair in limits.items() if law.takes(name)}},
            starts={**law.starts, **{name: pair for name, pair in ranges.items() if law.takes(name)}},
        )
        found.append(analysis.get_law(law, target=of))
    known = {name for law in found for name in law.parameters}
    for name in {*limits, *ranges}:
        if any(law.takes(name) for law in found):
            continue
        raise AnalysisError(f"--bound or --start names {name!r}; parameters: {', '.join(sorted(known))}")
    return found


def _range(text: str, option: str) -> tuple[str, tuple[float, Bound]]:
    """ "E=0:" as ("E", (0, inf)); an empty end is open."""
    try:
        name, ends = text.split("=")
        low, _, high = ends.partition(":")
        if ":" not in ends and option == "--start":
            high = low = str(float(ends))  # one start, by its value
        elif ends.count(":") != 1:
            raise ValueError(ends)
        pair: tuple[float, Bound] = (
            float(low or "-inf"),
            "min" if high == "min" and option == "--bound" else float(high or "inf"),
        )
    except ValueError as error:
        value = " or NAME=VALUE" if option == "--start" else ""
        raise AnalysisError(f"{option} {text!r} is not NAME=LOW:HIGH{value}, such as E=0: or alpha=0:4") from error
    if pair[1] != "min" and not (pair[0] < pair[1] or (option == "--start" and pair[0] == pair[1])):
        raise AnalysisError(f"{option} {text!r}: the low end must be below the high one")
    if option == "--start" and not all(abs(float(end)) < float("inf") for end in pair):
        raise AnalysisError(f"{option} {text!r}: starts are drawn from a range, so both ends must be numbers")
    return name.strip(), pair


def _collapse_or_extrapolate(
    frame: pd.DataFrame, target: str, collapse: bool, document: dict[str, object]
) -> list[str]:
    if collapse:
        found = analysis.collapse(frame, target=target)
        document["collapse"] = [one.to_dict() for one in found]
        return [one.text for one in found]

    curves = analysis.extrapolate(frame, target)
    document["extrapolation"] = {
        "error": curves.error,
        "inside": curves.inside,
        "skipped": curves.skipped,
        "rows": json.loads(curves.table.to_json(orient="records")),
    }
    return [curves.table.to_string(index=False, float_format=lambda value: f"{value:.4g}"), curves.text]
