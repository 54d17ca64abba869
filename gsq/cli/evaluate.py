"""``gsq evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gsq.cli.options import (
    ClusterOption,
    JsonOption,
)

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run folder (gsq status names signatures; RUNS/ab/SIGNATURE), or a sweep, by name or YAML file.",
    ),
]


def evaluate_command(
    run: RunArgument,
    num_images: Annotated[
        int | None, typer.Option("--num-images", metavar="N", min=2, help="Validation images; default: as in training.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            metavar="NAME",
            help="efficientnet_lite0, inception (torch-fidelity's resize), inception_pytorch_fid, inception_clean_fid, "
            "or package.module:function that returns a torch module.",
        ),
    ] = None,
    resolution: Annotated[
        list[int] | None,
        typer.Option(
            "--resolution", metavar="N", help="Size of the images; repeatable, each is a protocol of its own."
        ),
    ] = None,
    lpips: Annotated[
        str | None, typer.Option("--lpips", metavar="NET", help="Measure LPIPS too: vgg, alex or none.")
    ] = None,
    allow_small: Annotated[
        bool,
        typer.Option(
            "--allow-small",
            help="Allow an rfid over few images: Inception features on under 2,049, or under 50 held out.",
        ),
    ] = False,
    cluster: ClusterOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a finished run again, or all of a sweep, without training.

    Of a run it prints the metrics and changes nothing. Of a sweep it evaluates the finished runs, as many at a time as
    there are cores or GPUs, or as a job array with --cluster slurm, keeps the results in their folders and leaves out
    what was evaluated by the same protocol before, so that the same command goes on after an interruption; gsq gather
    then has a row for each. Exit code 1: some could not be evaluated.

    Example: gsq evaluate results/runs/ab/abcdef123456 --features inception --resolution 128 --resolution 256
    Example: gsq evaluate groups --features inception --cluster my-cluster.yaml
    """
    import dataclasses

    changes: dict[str, Any] = {
        "num_images": num_images,
        "features": features,
        "resolutions": tuple(resolution) if resolution else None,
        "lpips": lpips,
        "allow_small": allow_small or None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    if run.endswith((".yaml", ".yml")) or ("/" not in run and not Path(run).exists()):
        _evaluate_sweep(run, changes, cluster, as_json)
        return
    from gsq.evaluation.evaluate import evaluate_all
    from gsq.runs.reevaluate import load_finished

    config, source, model = load_finished(Path(run))
    wanted = dataclasses.replace(config.evaluation, **changes)
    # Refuses a resolution that the model's downsampling does not divide.
    dataclasses.replace(config, evaluation=wanted)
    for line in source.manifest.summary().remarks():
        typer.echo(line, err=True)
    results = evaluate_all(model, source, wanted)
    if as_json:
        typer.echo(json.dumps(results[0] if len(results) == 1 else results, indent=1))
        return
    for i, result in enumerate(results):
        if i:
            typer.echo()
        for name in (
            "features",
            "num_images",
            "resolution",
            "rank_deficient",
            "rfid",
            "kid",
            "inception_score",
            "lpips",
            "psnr_db",
            "ssim",
            "usage",
            "perplexity",
            "protocol",
        ):
            if result[name] is not None:
                typer.echo(f"{name:<16}{result[name]}")


def _evaluate_sweep(name: str, changes: dict[str, Any], cluster: str, as_json: bool) -> None:
    from gsq.sweeps.running.reevaluate import evaluate_sweep

    def show(over: int, result: dict[str, Any]) -> None:
        if not as_json:
            typer.echo(
                f"{over}: {result['signature']} rFID {result['rfid']:.4g} in {result['features']}, "
                f"{result['num_images']} images of {result['resolution']} pixels"
            )

    done = evaluate_sweep(name, changes, cluster, on_result=show)
    if as_json:
        typer.echo(json.dumps(vars(done) | {"logs": done.logs and str(done.logs)}, indent=1))
    else:
        for message in done.failed.values():
            typer.echo(f"warning: {message}", err=True)
        if done.ended:
            typer.echo(f"warning: {len(done.ended)} earlier jobs ended without a result; logs in {done.logs}", err=True)
        for array, signatures in done.arrays.items():
            typer.echo(f"job array {array}: {len(signatures)} run{'s' * (len(signatures) != 1)} to evaluate")
        if done.logs:
            waiting = f"{done.waiting} wait or run since before; " if done.waiting else ""
            submitted = sum(map(len, done.arrays.values()))
            typer.echo(
                f"{submitted} of {done.finished} finished runs submitted; {waiting}gsq gather {done.sweep} puts what "
                "is there into the table, and the same command submits what is missing"
            )
        else:
            typer.echo(
                f"{len(done.new)} new evaluation{'s' * (len(done.new) != 1)} of {done.finished} finished runs; "
                f"gsq gather {done.sweep} puts them into the table"
            )
    if done.failed:
        raise typer.Exit(1)
