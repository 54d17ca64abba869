"""``gsq clean``."""

from __future__ import annotations

from typing import Annotated

import typer

from gsq import sweeps
from gsq.cli.options import JsonOption, YesOption, ask, print_json
from gsq.words import counted


def clean_command(
    sweep: Annotated[
        str | None, typer.Argument(metavar="SWEEP", help="Only this sweep's runs; default: all below $GSQ_RUNS.")
    ] = None,
    dry_run: bool = False,
    orphans: bool = False,
    images: bool = False,
    tokens: bool = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove files that nothing needs any more, and list them.

    Removes the checkpoints of finished runs (except with execution.keep_checkpoint), copies in earlier attempts, and
    half-written files of dead processes. Keeps weights, curves, evaluations, configs and samples, whatever an
    unfinished run or probe resumes or starts from, and every run that may be alive.

    Example: gsq clean --dry-run
    Example: gsq clean --images

    Options:
        --dry-run  List what would be removed, and remove nothing.
        --orphans  Also remove whole runs that no sweep mentions (gsq train).
        --images  Also remove decoded images that no process uses now (execution.image_cache_gb).
        --tokens  Also remove the indices that probes of finished runs share (gsq evaluate --probe).
    """
    from gsq.cli.wording import size
    from gsq.sweeps.running.clean import KINDS

    if orphans and not dry_run and (lone := len(sweeps.clean(sweep, orphans=True, dry_run=True).runs)):
        ask(f"Remove {counted(lone, 'whole run')} with all results?", yes, final=True)
    done = sweeps.clean(sweep, orphans=orphans, images=images, tokens=tokens, dry_run=dry_run)
    if as_json:
        print_json(done.to_dict())
        return
    rows = [(done.bytes[kind], len(paths), KINDS[kind]) for kind, paths in done.files.items() if paths]
    removed = "would be removed" if dry_run else "removed"
    for total, count, what in (*rows, (sum(done.bytes.values()), sum(map(len, done.files.values())), removed)):
        typer.echo(f"{size(total):>9}  {count:>6} {'file ' if count == 1 else 'files'}  {what}")
    if done.kept_tokens[0]:
        files, total = done.kept_tokens
        typer.echo(f"{size(total):>9}  {files:>6} {'file ' if files == 1 else 'files'}  kept for probes: add --tokens")
