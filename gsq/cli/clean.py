"""``gsq clean``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    pass

from gsq.cli.options import JsonOption, YesOption, ask, count_files


def clean_command(
    sweep: Annotated[
        str | None, typer.Argument(metavar="SWEEP", help="Only this sweep's runs; default: all below $GSQ_RUNS.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
    orphans: Annotated[
        bool,
        typer.Option(
            "--orphans", help="Remove whole runs, too, that no sweep mentions (of gsq train, or of removed sweeps)."
        ),
    ] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove files that nothing needs any more, and say what they were.

    Checkpoints of finished runs go (but for execution.keep_checkpoint), copies in earlier attempts, and half-written
    files of dead processes. Weights, curves, evaluations, configs and samples stay, and so does all that an unfinished
    run resumes from. Runs that may be alive are left alone.

    Example: gsq clean --dry-run
    """
    from gsq.cli.wording import size
    from gsq.sweeps.running.clean import KINDS, clean

    if orphans and not dry_run:
        lone = len(clean(sweep, orphans=True, dry_run=True).runs)
        if lone:
            ask(f"Remove {lone} whole runs, with their results?", yes)
    done = clean(sweep, orphans=orphans, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), indent=1))
        return
    for kind, paths in done.files.items():
        if paths:
            typer.echo(f"{size(done.bytes[kind]):>9}  {len(paths):>6} {count_files(len(paths))}  {KINDS[kind]}")
    total, count = size(sum(done.bytes.values())), sum(map(len, done.files.values()))
    typer.echo(f"{total:>9}  {count:>6} {count_files(count)}  {'would be removed' if dry_run else 'removed'}")
