"""``gsq design``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.options import (
    ClusterOption,
    JsonOption,
)
from gsq.cli.plan import NoiseOption
from gsq.cli.table_options import BoundOption, ProtocolOption, ResidualsOption


def design_command(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE_OR_SWEEP...",
            help="What is measured: a table (.parquet, .csv), or a sweep's name (results/NAME.parquet) or YAML, whose "
            "cells are then the candidates too. Several are taken together.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="parameter=NAME: its interval. 'predict latent_dim=16,codebook_size=2**18': the prediction there; "
            "predict alone: everywhere. discriminate: which law is right. noise: that between seeds.",
        ),
    ],
    budget: Annotated[
        float, typer.Option("--budget", metavar="COST", help="Device hours, or units of the --cost column.")
    ],
    candidates: Annotated[
        str | None,
        typer.Option(
            "--candidates",
            metavar="SWEEP|TABLE",
            help="Cells to choose from: a sweep by YAML file or name, which costs what gsq plan estimates, or a table "
            "with a --cost column.",
        ),
    ] = None,
    law: Annotated[
        list[str] | None,
        typer.Option(
            "--law",
            metavar="LAW",
            help="A named law or a formula over columns; repeatable: rivals are weighted by AICc. Default: "
            "power_law_bpp; for discriminate, every named law that the table can carry.",
        ),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(
            "--until",
            metavar="VALUE",
            help="Stop there: half an interval (0.1 of a parameter; 0.05 is 5 % of a prediction), or the weight of "
            "wrong laws.",
        ),
    ] = None,
    noise: NoiseOption = None,
    seeds: Annotated[
        int,
        typer.Option("--seeds", metavar="N", min=1, help="Runs of a configuration at the most; 1: no further seeds."),
    ] = 3,
    cost: Annotated[
        str | None, typer.Option("--cost", metavar="COLUMN", help="What a run costs, where candidates are a table.")
    ] = None,
    residuals: ResidualsOption = "log",
    bound: BoundOption = None,
    protocol: ProtocolOption = None,
    cluster: ClusterOption = "local",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Preset or YAML file for --output, where candidates are a table."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write the runs as a sweep (.yaml) or a table (.csv, .parquet)."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw what is expected against the cost.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What to run next: the cells, or further seeds of cells, that tell the most about a target for their cost.

    Fits the law to what is measured, takes it as linear around the fit, and adds one run after the other, each time the
    one that narrows the target most for what it costs, until the target is met (--until), the budget is spent, or the
    rest of it would hardly help. Prints the interval now and as expected after each run. Nothing is run or submitted.

    Seeds count for what they are worth: they average out the noise between seeds (from the table, or --noise), not how
    far a configuration lies off the law.

    Example: gsq design groups --law saturating --candidates next.yaml --budget 40 --target parameter=s --until 0.2

    Example: gsq design groups.yaml --law saturating --budget 12 --output more.yaml --figure more.png
    --target "predict latent_dim=16,groups=8,codebook_size=2**18,downsample=16"

    Example: gsq design runs.csv --law "loss = E + A / N^a" --candidates cells.csv --cost flops --budget 1e20
    --target parameter=a
    """
    from gsq.cli.designing import design_next

    design_next(
        tables,
        candidates,
        law,
        target,
        budget,
        until=until,
        noise=noise,
        seeds=seeds,
        cost=cost,
        residuals=residuals,
        bounds=bound,
        protocol=protocol,
        cluster=cluster,
        base=base,
        output=output,
        figure=figure,
        as_json=as_json,
    )
