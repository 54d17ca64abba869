"""``gsq weights``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from gsq.cli.options import JsonOption, print_json
from gsq.errors import UserError

weights_app = typer.Typer(no_args_is_help=True)


@weights_app.callback()
def weights_command() -> None:
    """List, fetch and check the weight files of losses, discriminators and metrics.

    Compute nodes often have no internet: fetch the files beforehand into the folder that $GSQ_WEIGHTS names (default
    ~/.cache/gsq/weights). Downloads use the proxies of HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    Example: gsq weights fetch vgg16
    """


NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names that the list shows.")]


@weights_app.command("list")
def weights_list_command(as_json: JsonOption = False) -> None:
    """List every weight file that gsq can use, with purpose, size, licence, sha256 and where gsq looks for it.

    Example: gsq weights list --json
    """
    from gsq.pretrained.fetching import describe
    from gsq.pretrained.weights import REGISTRY

    rows = [describe(name) for name in REGISTRY]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']}: {'there' if row['found'] else 'missing'}, {row['megabytes']:g} MB")
        typer.echo(f"  for      {row['purpose']}")
        typer.echo(f"  licence  {row['licence']}")
        typer.echo(f"  sha256   {row['sha256'] or 'unknown; that of the file is recorded at first use'}")
        if row["url"]:
            typer.echo(f"  from     {row['url']}")
        for place in row["looked_for"]:
            typer.echo(f"  {'found   ' if place == row['found'] else 'place   '} {place}")


@weights_app.command("fetch")
def weights_fetch_command(
    names: NamesArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every file that can be downloaded.")] = False,
    mirror: str = "",
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Copy this file, or the files of this folder; download nothing."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download weight files, check their sha256, and put them where runs look for them.

    Intact files are not downloaded again. A failed download leaves nothing behind and keeps the previous file. For a
    machine without internet, download elsewhere and use --from.

    Example: gsq weights fetch vgg16 resnet50
    Example: gsq weights fetch vgg16 --from ~/Downloads/vgg16-397923af.pth

    Options:
        --mirror URL  Download from this URL, a folder with the same files; default $GSQ_WEIGHTS_MIRROR.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from gsq.pretrained.fetching import fetch, known_names
    from gsq.pretrained.weights import REGISTRY, present

    if bool(names) == everything:
        raise UserError(f"gsq weights fetch: name what to fetch ({', '.join(REGISTRY)}), or use --all, not both")
    if source is not None and not source.is_dir() and len(names or REGISTRY) > 1:
        raise UserError(f"--from: {source} is one file, but you asked for several weights; name one, or a folder")
    wanted = known_names(names or [])
    if everything:
        # A file that ships inside a package cannot be downloaded if that package is not installed.
        wanted = [name for name in wanted if REGISTRY[name].url or present(REGISTRY[name])]
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    done = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        for name in wanted:
            task = bar.add_task(name, total=None)

            def show(have: int, total: int, task: object = task) -> None:
                bar.update(task, completed=have, total=total or None)  # type: ignore[arg-type]

            found = fetch(name, mirror=mirror, source=source, progress=show)
            done.append(found)
            if not as_json:
                typer.echo(f"{name}: {found.state}, {found.path}")
    if as_json:
        print_json([{**dataclasses.asdict(one), "path": str(one.path)} for one in done])


@weights_app.command("verify")
def weights_verify_command(names: NamesArgument = None, as_json: JsonOption = False) -> None:
    """Read the weight files that are present and compare their sha256.

    If no hash is published, the first check records the file's own, and later checks compare with it. Exit code 1: a
    file is damaged, or a named one is missing.

    Example: gsq weights verify
    """
    from gsq.pretrained.fetching import check, known_names

    found = [check(name) for name in known_names(names or [])]
    if as_json:
        rows = [{**dataclasses.asdict(one), "path": str(one.path) if one.path else None} for one in found]
        print_json(rows)
    else:
        for one in found:
            fix = f"; get it again: gsq weights fetch {one.name}" if one.state == "damaged" else ""
            typer.echo(f"{one.name}: {one.state}{f', {one.path}' if one.path else ''}{fix}")
    if any(one.state == "damaged" or (names and one.state == "missing") for one in found):
        raise typer.Exit(1)
