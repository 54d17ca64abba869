"""``gsq plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.options import (
    AllOption,
    AnchorsOption,
    GpuOption,
    JsonOption,
    PlanClusterOption,
    Submitting,
    SweepArgument,
)
from gsq.cli.table_options import require_outputs
from gsq.cli.taking import takes
from gsq.errors import UserError

NoiseOption = Annotated[
    float | None,
    typer.Option(
        "--noise", metavar="SD", help="Standard deviation between seeds; relative, unless residuals are linear."
    ),
]


@takes(Submitting, "cells", "micro_batch")
def plan_command(
    sweep: SweepArgument,
    cluster: PlanClusterOption = None,
    gpu: GpuOption = None,
    *,
    how: Submitting,
    power: bool = False,
    law: list[str] | None = None,
    noise: NoiseOption = None,
    coefficient: list[str] | None = None,
    anchors: AnchorsOption = None,
    figure: Path | None = None,
    as_json: JsonOption = False,
    show_all: AllOption = False,
) -> None:
    """Show the cells of a sweep and their cost. Runs nothing.

    Prints each cell with its signature, axes, bits per pixel, parameters, FLOPs, images, estimated time and memory;
    cells left out, with the constraint that excluded them, and duplicates; what is still to run, with its end and disk
    space, against the YAML's budget; and the error of past estimates. For a search it prints the space and the cost of
    the trials. Images and weights may be absent; the plan lists them as missing.

    With --power it prints the 95 % interval to expect for each parameter of a law from this grid and its seeds, before
    the first run. It assumes that the law is right, with coefficients fitted to the paper's numbers and a seed noise of
    5 % unless you give others. If a parameter's interval is open, add other cells.

    Example: gsq plan quickstart
    Example: gsq plan paper/fig4 --gpu h100
    Example: gsq plan isoflop.yaml --figure isoflop.png
    Example: gsq plan groups.yaml --power --law saturating --noise 0.03
    Example: gsq plan groups.yaml --anchors groups-anchors.yaml && gsq run groups-anchors.yaml

    Options:
        --power  Print how well these cells would determine a law instead.
        --law LAW  With --power: a named law or a formula; repeatable. Default: power_law_bpp and paper_eq14.
        --coefficient NAME=NUMBER  With --power: a parameter of the law, in place of the value from the paper;
            repeatable.
        --figure FILE  Draw parameters against images, along lines of equal compute.
    """
    if figure is not None and (power or anchors is not None):
        raise UserError("--figure draws the cells of a plan; leave out --power or --anchors")
    if power:
        from gsq.cli.planning import make
        from gsq.cli.power import expected_power

        expected_power(make(sweep, how.cells, lenient=True), law, noise, coefficient, as_json)
        return
    for name, value in (("--law", law), ("--noise", noise), ("--coefficient", coefficient)):
        if value:
            raise UserError(f"{name} works only with --power")
    from gsq.cli.planning import print_anchors, print_plan

    if anchors is not None:
        print_anchors(sweep, cluster or "local", how.cells, anchors, as_json)
        return
    require_outputs({}, {"--figure": figure})
    print_plan(sweep, cluster, gpu, how, as_json, show_all, figure)
