"""``gsq reconstruct`` and ``gsq tokenize``."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.options import JsonOption, print_json
from gsq.words import counted

TokenizerArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A finished run (its folder or signature), a saved tokenizer, a checkpoint of the GSQ authors' code, or a "
        "Hugging Face model id.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto (cuda where there is one), cpu or cuda.")
]
TileOption = Annotated[
    int | None,
    typer.Option(
        "--tile",
        metavar="N",
        help="Encode images of more than N x N pixels in overlapping tiles of N x N, each alone; f must divide N. The "
        "result differs from that of the whole image if layers see all of it.",
    ),
]


def reconstruct_command(
    run: TokenizerArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, of any size from f pixels.")],
    output: Path = Path("reconstructions"),
    tile: TileOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a tokenizer keeps of images: encode, decode, compare.

    For each image it writes NAME.reconstruction.png and NAME.side-by-side.png (the original on the left), and prints
    the PSNR. Images are not resized; if f does not divide a side, both ends are cropped evenly.

    An image that does not fit into memory is encoded in overlapping tiles if the model gives the same result that way
    (no layer sees the whole image), and otherwise refused before memory is allocated. The built-in autoencoder
    normalises over the whole image; --tile encodes its large images in tiles all the same, with another result.

    Example: gsq reconstruct results/runs/ab/abcdef123456 photo.jpg --output /tmp/seen
    Example: gsq reconstruct results/runs/ab/abcdef123456 panorama.jpg --tile 1024

    Options:
        --output DIR  Folder for the pictures; created if missing.
    """
    from gsq.data.progress import Shown
    from gsq.tokenizer.reconstructions import Reconstruction, reconstruct_files
    from gsq.tokenizer.tokenizer import Tokenizer

    def show(done: Reconstruction) -> None:
        if as_json:
            return
        psnr = "equal" if done.psnr_db is None else f"PSNR {done.psnr_db:.2f} dB"
        cropped = ", {} rows and {} columns cropped off".format(*done.cropped) if any(done.cropped) else ""
        tiles = f", in {done.tiles:,} tiles" if done.tiles > 1 else ""
        tiles += "" if done.as_a_whole else " (not the result of the whole image)"
        typer.echo(f"{done.image}: {done.height} x {done.width}, {psnr}{cropped}{tiles} -> {done.side_by_side}")

    tokenizer = Tokenizer.from_pretrained(run, device)
    with Shown("reconstructing", len(images)) as progress:
        made = reconstruct_files(tokenizer, images, output, show, tile=tile, on_part=progress)
    if as_json:
        print_json([dataclasses.asdict(one) for one in made])


def tokenize_command(
    run: TokenizerArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of images, at any depth.")],
    output: Path,
    size: int | None = None,
    tile: TileOption = None,
    shard_size: int = 1000,
    batch_size: int = 8,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Turn a folder of images into codebook indices, to train a generative model on.

    DIR gets indices-00000.parquet, ... (one row per image: path, sha256, height, width, latent_height,
    latent_width, indices_per_position, indices) and _manifest.json. Ctrl-C loses at most the current shard; the same
    command resumes. Images that training could not use are listed and skipped. So are images that do not fit into
    memory, unless the model gives the same indices in tiles (see gsq reconstruct --help), or --tile is given.

    Example: gsq tokenize results/runs/ab/abcdef123456 photos --output tokens --size 256

    Read: row = pandas.read_parquet("tokens").iloc[0];
    row["indices"].reshape(row.latent_height, row.latent_width, row.indices_per_position)

    Options:
        --output DIR  Folder for the Parquet shards.
        --size N  Centre square of each image at N x N pixels; default: its own size, cropped to multiples of f.
        --shard-size N  Images per shard.
        --batch-size N  Images encoded at a time.
    """
    from gsq.data.listing import shown
    from gsq.data.manifest import described
    from gsq.data.progress import Shown
    from gsq.tokenizer.files import tokenize_folder
    from gsq.tokenizer.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.from_pretrained(run, device)
        with Shown("tokenizing") as progress:
            summary = tokenize_folder(
                tokenizer,
                folder,
                output,
                size=size,
                tile=tile,
                shard_size=shard_size,
                batch_size=batch_size,
                on_images=progress.advance,
                on_start=partial(setattr, progress, "total"),
                on_part=lambda what: progress(progress.done, what),
            )
    except KeyboardInterrupt:
        typer.echo("stopped; finished shards are kept, and the same command resumes", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(summary.to_dict())
        return
    for path, reason in summary.broken[:20]:
        typer.echo(f"left out: {shown(path)}: {reason}")
    if len(summary.broken) > 20:
        typer.echo(f"... and {len(summary.broken) - 20} more (--json lists them)")
    if summary.in_tiles:
        count = counted(len(summary.in_tiles), "image")
        typer.echo(f"in tiles, so that the indices are not those of the whole image: {count} (--json lists them)")
    for line in described(summary.left_out):
        typer.echo(f"left out: {line}")
    typer.echo(
        f"{counted(summary.images, 'image')}, {counted(summary.positions, 'position')} of {summary.bits_per_token:g} "
        f"bits, {counted(summary.shards, 'shard')} ({summary.shards_before} there before), "
        f"{counted(len(summary.broken), 'image')} left out: {summary.output}"
    )
