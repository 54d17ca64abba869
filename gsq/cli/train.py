"""``gsq train``."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from gsq import sweeps
from gsq.records.folder import runs_root

if TYPE_CHECKING:
    from gsq.config.run import RunConfig

from gsq.cli.options import key_values, line


def train_command(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="A preset (cpu-tiny, paper-f8, ...) or a YAML file of config sections."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, for instance -s groups=4; repeatable."),
    ] = None,
    micro_batch: str | None = None,
    dry_run: bool = False,
) -> None:
    """Train and evaluate one run without a sweep. The same command resumes it.

    Example: gsq train cpu-tiny -s groups=4 -s steps=100

    Options:
        --micro-batch N|auto  Images of one pass on one device, with the same result: a number, or auto for the largest
            that this machine's GPU holds by the estimate.
        --dry-run  Print the whole config and the signature, and stop.
    """
    import yaml

    from gsq.config.overrides import to_dict
    from gsq.sweeps.planning.cells import refuse_too_large

    values = key_values(settings, "--set")
    config = sweeps.load_spec({"name": "train", "base": base, "set": values}).base
    if micro_batch is not None:
        config = _fitted(config, micro_batch)
    from gsq.pretrained.required import require_weights
    from gsq.runs.identity import identity

    refuse_too_large(config)
    signature = identity(config)
    if dry_run:
        typer.echo(yaml.safe_dump(to_dict(config), sort_keys=False) + f"# signature: {signature}")
        return
    require_weights(config)
    raise typer.Exit(_train(config))


def _fitted(config: RunConfig, micro_batch: str) -> RunConfig:
    """The config with the micro-batch of ``--micro-batch``; auto fits the GPU of this machine."""
    from gsq.sweeps.costing.gpu_memory import with_micro_batch

    plan = sweeps.Plan("train", (sweeps.Cell("", {}, config, ""),))
    return with_micro_batch(plan, micro_batch, sweeps.Cluster()).cells[0].config


def _train(config: object) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from gsq.config.run import RunConfig
    from gsq.records.read import read_evaluations, read_run
    from gsq.runs.execute import execute
    from gsq.runs.stop import Stopped, StopRequest
    from gsq.surroundings import world_size

    assert isinstance(config, RunConfig)
    # Only one of several processes (torchrun) prints.
    console = Console(quiet=world_size() > 1 and os.environ["RANK"] != "0")
    stop = StopRequest()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, console=console, transient=True) as bar,
        stop.on_signals(
            {signal.SIGINT: "cancelled", signal.SIGTERM: "cancelled"},
            told=lambda: console.print("stopping after this step, with a checkpoint"),
        ),
    ):
        task = bar.add_task("training", total=config.train.steps)

        def announce(message: str) -> None:
            console.print(message, highlight=False, soft_wrap=True, markup=False)

        def advance(step: int) -> None:
            bar.update(task, completed=step, description="evaluating" if step == config.train.steps else "training")

        try:
            folder = execute(config, runs_root(), stop=stop, announce=announce, on_step=advance)
        except Stopped:
            console.print("stopped after a whole step; the same command resumes")
            return 130
    for evaluation in read_evaluations(folder):
        line(
            console,
            f"step {evaluation['step']}: rFID {evaluation['rfid']:.4g} in {evaluation['features']}, PSNR "
            f"{evaluation['psnr_db']:.2f} dB, SSIM {evaluation['ssim']:.3f}, usage {evaluation['usage']:.3f}, "
            f"perplexity {evaluation['perplexity']:.1f}",
        )
    line(console, f"{read_run(folder).state}: {folder.path}")
    return 0
