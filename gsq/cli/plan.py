"""``gsq plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from gsq.cli.options import (
    AllOption,
    AnchorsOption,
    CellsOption,
    GpuOption,
    JsonOption,
    PlanClusterOption,
    SweepArgument,
)

NoiseOption = Annotated[
    float | None,
    typer.Option(
        "--noise", metavar="SD", help="Standard deviation between seeds; relative, unless residuals are linear."
    ),
]


def plan_command(
    sweep: SweepArgument,
    cluster: PlanClusterOption = None,
    gpu: GpuOption = None,
    cells: CellsOption = None,
    power: Annotated[
        bool,
        typer.Option("--power", help="Instead, what a law fitted to these cells can be expected to say."),
    ] = False,
    law: Annotated[
        list[str] | None,
        typer.Option(
            "--law",
            metavar="LAW",
            help="With --power: a named law or a formula; repeatable. Default: power_law_bpp and paper_eq14.",
        ),
    ] = None,
    noise: NoiseOption = None,
    coefficient: Annotated[
        list[str] | None,
        typer.Option(
            "--coefficient",
            metavar="NAME=NUMBER",
            help="With --power: a parameter of the law, instead of what the paper's numbers give; repeatable.",
        ),
    ] = None,
    anchors: AnchorsOption = None,
    as_json: JsonOption = False,
    show_all: AllOption = False,
) -> None:
    """Show the cells of a sweep and what they will cost. Runs nothing.

    Prints each cell with its signature, axes, bits per pixel, parameters, FLOPs, images, estimated time and
    memory; then the cells left out with the constraint that did it, and duplicates; then what is still to be run,
    with the end and the disk space that it needs, against the YAML's budget, and how far past estimates were off. Of a
    search: its space, and what its trials will cost. Images and weights need not be there; what is missing is named.

    With --power, before the first run: the 95 % interval that each parameter of a law can be expected to get from this
    grid and its seeds, if the law is right, with coefficients fitted to the paper's numbers and a seed noise of 5 % (or
    as given). A parameter that is open there needs other cells, not luck.

    Example: gsq plan quickstart
    Example: gsq plan paper/fig4 --gpu h100
    Example: gsq plan groups.yaml --power --law saturating --noise 0.03
    Example: gsq plan groups.yaml --anchors groups-anchors.yaml && gsq run groups-anchors.yaml
    """
    if power:
        from gsq.cli.power import expected_power

        expected_power(sweep, cells, law, noise, coefficient, as_json)
        return
    for name, value in (("--law", law), ("--noise", noise), ("--coefficient", coefficient)):
        if value:
            from gsq.errors import UserError

            raise UserError(f"{name} says what to expect of a law: it goes with --power")
    from gsq.cli.planning import print_anchors, print_plan

    if anchors is not None:
        print_anchors(sweep, cluster or "local", cells, anchors, as_json)
        return
    print_plan(sweep, cluster, gpu, cells, as_json, show_all)
