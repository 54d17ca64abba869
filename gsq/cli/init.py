"""``gsq init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.options import on_terminal


def init_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Sweep file to write, such as groups.yaml.")],
    data: str | None = None,
    preset: str | None = None,
    axis: list[str] | None = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Training steps; default: the preset's.")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option("--seeds", metavar="N", min=1, help="Runs of each configuration, to measure their scatter."),
    ] = 2,
) -> None:
    """Write a commented sweep file to start from, and say what to run next.

    Its first line lets editors complete and check the keys by a schema, which is written beside it. On a terminal it
    asks for the folder and the preset if neither is given.

    Example: gsq init groups.yaml --data ~/pictures --axis groups=1,2,4,8 --axis codebook_size=64,1024

    Options:
        --data FOLDER  Folder of images, or of .tar, .parquet or .arrow shards; default: the images of the preset.
        --preset NAME  Where every cell starts: cpu-tiny (the default), cpu-small, paper-f8, ...
        --axis KEY=VALUES  Values to compare, such as groups=1,2,4 or 'codebook_size={log2: [6, 10]}'; repeatable;
            all combinations are cells. Default: these two.
    """
    from gsq.data.sources import folder_kind
    from gsq.sweeps.spec.starting import read_axes, sweep_text, write_sweep

    if data is None and preset is None and on_terminal():
        data = typer.prompt("Folder of images (empty: the images of the preset)", default="", show_default=False)
        preset = typer.prompt("Preset", default="cpu-tiny")
    images = None
    if data:
        folder = Path(data).expanduser().resolve()
        images = folder_kind(folder), str(folder)
    text = sweep_text(file.stem, preset or "cpu-tiny", images, read_axes(axis or []), steps, seeds)
    schema = write_sweep(file, text)
    typer.echo(f"wrote {file}, and {schema}, with which editors check it")
    typer.echo(f"look at the images: gsq data {file}")
    typer.echo(f"see the cells and what they cost: gsq plan {file}")
    typer.echo(f"train, gather, fit and plot: gsq run {file}")
