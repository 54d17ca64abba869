"""``gsq track``."""

from __future__ import annotations

import typer

from gsq import sweeps
from gsq.cli.options import JsonOption, NameArgument, print_json
from gsq.words import counted


def track_command(
    sweep: NameArgument,
    to: str,
    at: str | None = None,
    project: str | None = None,
    watch: bool = False,
    again: bool = False,
    as_json: JsonOption = False,
) -> None:
    """Mirror the runs of a sweep to an experiment tracker: training curves, evaluations, samples, configs.

    Start it on a login node, while the sweep runs or later: it reads the run folders and changes nothing in them, so
    that compute nodes need no network. A second call sends only what the tracker does not have. Runs are named
    by their signature. Training curves are called train/NAME, and metrics evaluation/PROTOCOL-FEATURES/NAME. With
    tracker: wandb in the cluster file, gsq run does this at its end.

    Each tracker needs its package: pip install 'gsq\\[wandb]'. Weights & Biases without a network: WANDB_MODE=offline.

    Example: gsq track groups --to tensorboard --watch

    Example: gsq track groups --to mlflow --at http://localhost:5000

    Options:
        --to TRACKER  tensorboard, wandb, mlflow or trackio.
        --at PLACE  A folder, or for mlflow also the address of a server. Default: where the sweep was sent before; else
            results/tensorboard, results/wandb, $MLFLOW_TRACKING_URI or results/mlflow.db, Trackio's own folder.
        --project NAME  What the tracker calls the sweep; default: its name.
        --watch  Look again every few seconds until all cells have ended.
        --again  Send runs again that were sent before and were removed there.
    """
    told = [""]

    def tell(found: sweeps.Tracked) -> None:
        if not as_json and (text := sentence(found)) != told[-1]:
            told.append(text)
            typer.echo(text)

    try:
        found = sweeps.track(sweep, to, at=at, project=project, watch=watch, again=again, on_update=tell)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command sends the rest", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(found.to_dict())


def sentence(found: sweeps.Tracked) -> str:
    """Say in words what a call has sent."""
    sent = [counted(count, *WORDS[kind]) for kind, count in found.points.items() if count]
    words = f"sent {', '.join(sent)}" if sent else "nothing new to send"
    return f"{words}; {counted(found.runs, 'run')} of project '{found.project}' in {found.to} at {found.at}"


WORDS = {"train": ("step of curves", "steps of curves"), "evaluations": ("evaluation",), "samples": ("picture",)}
