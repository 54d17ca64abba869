"""``gsq plot``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gsq import analysis
from gsq.analysis.errors import AnalysisError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


from gsq.analysis.fitting.options import Options
from gsq.analysis.tables.remembering import remembering
from gsq.cli.fit import load_and_fit
from gsq.cli.table_options import (
    BoundOption,
    LawOption,
    ProtocolOption,
    TablesArgument,
    WhereOption,
    drawn,
    load,
    require_outputs,
    table_paths,
)
from gsq.cli.taking import takes

KINDS = ("scaling", "contours", "groups", "usage", "collapse", "pareto", "tradeoff", "steps", "card")
WITH_LAWS = ("scaling", "contours", "groups", "card")


@takes(Options, "residuals", "bootstrap", "seed")
@remembering()
def plot_command(
    table: TablesArgument,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help=f"What to draw: {', '.join(KINDS)}. See above.")
    ] = "scaling",
    law: LawOption = None,
    bound: BoundOption = None,
    protocol: ProtocolOption = None,
    where: WhereOption = None,
    *,
    options: Options,
    x: list[str] | None = None,
    y: list[str] | None = None,
    reference: bool = False,
    published: bool = False,
    output: Path | None = None,
) -> None:
    """Draw a results table: by default rFID against bits per pixel and each axis that varies, with the fitted laws.

    These are the kinds of figures, and what the table needs for them:

    scaling: rFID against bits per pixel, V, D, G and f, with laws and their intervals.

    contours: lines of equal rFID over two axes, predicted by the (first) law and hatched where it extrapolates, with
    the measured cells. Needs a law that depends on two axes that vary.

    groups: rFID against G and against d = D / G at fixed D. Needs cells that differ only in groups.

    usage: codebook usage and perplexity against V and d. Needs cells that differ in only one of them.

    collapse: rFID against bits per pixel (or --x) with one line through all cells, and the residuals. Needs two axes.

    pareto: the cells that no other beats in both rFID and bits, or in both rFID and training compute (or --x).

    tradeoff: rFID and gFID against prior bits per pixel, with the front. Needs probes (gsq evaluate --probe).

    steps: rFID and usage (or --y) over training. Needs evaluations at several steps (evaluation.every).

    card: the report card of the (first) law.

    Example: gsq plot quickstart --output results/figures/quickstart.png

    Example: gsq plot quickstart --kind contours --law power_law_bpp --x codebook_size --y groups --output contours.pdf

    Options:
        --x COLUMN  contours: horizontal axis; collapse: derived axis, repeatable; pareto: cost, repeatable.
        --y COLUMN  contours: vertical axis; steps: metric, repeatable.
        --reference  Draw the paper's points beside your own (scaling, groups, usage), in grey and never fitted. The
            figure names both protocols; where they differ, the paper's rFID has a scale of its own, since heights do
            not compare.
        --published  Like --reference, with the rFID that papers print for other tokenizers, each by its own protocol.
        --output FILE  Save PNG and SVG, or a .pdf, here; default: beside the table.
    """
    from gsq.analysis.tables.left_out import protocol_warnings

    if reference and published:
        raise AnalysisError("--reference and --published: choose one; their protocols differ")
    if kind not in KINDS:
        raise AnalysisError(f"--kind {kind!r} is not a figure of gsq plot; kinds: {', '.join(KINDS)}")
    for option, given, kinds in (
        ("--reference", reference, ("scaling", "groups", "usage")),
        ("--published", published, ("scaling", "groups", "usage")),
        ("--x", x, ("contours", "collapse", "pareto")),
        ("--y", y, ("contours", "steps")),
        ("--law", law, WITH_LAWS),
    ):
        if given and kind not in kinds:
            raise AnalysisError(f"{option} belongs to --kind {', '.join(kinds)}; got --kind {kind}")
    paths = table_paths(table)
    stem = "-".join(path.stem for path in paths)
    default = paths[0].with_name(stem if kind == "scaling" else f"{stem}-{kind}")
    # Beside the table there may be a folder of its name.
    require_outputs({}, {"--output": output or default.with_name(f"{default.name}.png")})
    fits: list[analysis.Fit] = []
    reasons: dict[str, str] = {}
    if kind in WITH_LAWS:
        frame, fits, reasons = load_and_fit(paths, law, protocol, options=options, bounds=bound, where=where)
    else:
        frame = load(paths, protocol, where)
    theirs = analysis.load_published() if published else analysis.load_reference() if reference else None
    files = drawn(lambda path: draw(kind, frame, fits, reasons, path, x, y, theirs), output or default)
    for warning in protocol_warnings(theirs) if theirs is not None else ():
        typer.echo(f"Warning: {warning}.")
    for one in fits:
        typer.echo(f"{one.law.name}: {one.formula()}")
        for warning in one.warnings:
            typer.echo(f"Warning: {warning}.")
    for reason in reasons.values():
        typer.echo(f"Not fitted: {reason}.")
    typer.echo("\n".join(files))


def draw(
    kind: str,
    frame: pd.DataFrame,
    fits: list[analysis.Fit],
    reasons: dict[str, str],
    path: Path | None = None,
    x: list[str] | None = None,
    y: list[str] | None = None,
    reference: pd.DataFrame | None = None,
) -> Figure:
    """Draw one figure of KINDS, and save it if ``path`` is given. Raises AnalysisError where the table lacks what it
    needs."""
    from gsq.analysis.tables.table import unquoted

    if kind in ("contours", "card") and not fits:
        why = "; ".join(reasons.values()) or "no law was fitted"
        raise AnalysisError(f"--kind {kind} shows a fitted law, and there is none: {why}")
    xs, ys = ([unquoted(name) for name in names or []] or None for names in (x, y))
    if kind == "contours" and max(len(xs or ()), len(ys or ())) > 1:
        raise AnalysisError("--kind contours takes one --x and one --y")
    makers = {
        "scaling": lambda: analysis.scaling_figure(frame, fits, path, reference),
        "contours": lambda: analysis.contour_figure(fits[0], path, xs and xs[0], ys and ys[0]),
        "groups": lambda: analysis.group_figure(frame, fits, path, reference),
        "usage": lambda: analysis.usage_figure(frame, path, reference),
        "collapse": lambda: analysis.collapse_figure(frame, xs, path),
        "pareto": lambda: analysis.pareto_figure(frame, xs, path),
        "tradeoff": lambda: analysis.tradeoff_figure(frame, path),
        "steps": lambda: analysis.course_figure(frame, ys, path),
        "card": lambda: analysis.card_figure(analysis.report_card(fits[0]), path),
    }
    return makers[kind]()
