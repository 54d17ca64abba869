"""``gsq evaluate``."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsq import sweeps
from gsq.cli.options import ClusterOption, JsonOption, key_values, print_json
from gsq.errors import UserError
from gsq.files import is_yaml
from gsq.records.folder import runs_root
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.sweeps.running.evaluations import Evaluations

# What the evaluation of a run prints, where it was measured.
PRINTED = (
    *("features", "num_images", "resolution", "rank_deficient", "rfid", "kid", "fd_dinov2", "sfid", "cmmd"),
    *("precision", "recall", "inception_score", "lpips", "psnr_db", "ssim", "usage", "perplexity", "effective_bits"),
    *("prior_bits_per_token", "prior_bits_per_pixel", "gfid", "gfid_samples", "probe_converged", "probe_overfits"),
    *("probe_protocol", "protocol"),
)

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run folder (results/runs/ab/SIGNATURE; gsq status shows signatures), or a sweep, by name or YAML file; "
        "or a model that gsq did not train: package.module:load, or a YAML file of models.",
    ),
]


def evaluate_command(
    run: RunArgument,
    num_images: Annotated[
        int | None, typer.Option("--num-images", metavar="N", min=2, help="Validation images; default: as in training.")
    ] = None,
    features: str | None = None,
    resolution: list[int] | None = None,
    lpips: str | None = None,
    allow_small: bool = False,
    probe: str | None = None,
    probe_steps: Annotated[
        int | None, typer.Option("--probe-steps", metavar="N", min=1, help="Steps of the probe; default: its size's.")
    ] = None,
    distance: list[str] | None = None,
    folder: str | None = None,
    protocol: str | None = None,
    data: Path | None = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="For a model: an argument of load(); repeatable."),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="LOW,HIGH", help="For a model: values of its images, such as 0,1; default -1,1."
        ),
    ] = None,
    channels: str | None = None,
    output: Path | None = None,
    cluster: ClusterOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a finished run again, or all finished runs of a sweep, without training.

    For a single run it prints the metrics and changes nothing. For a sweep it evaluates as many runs at a time as there
    are cores or GPUs, or submits a job array with --cluster slurm, and keeps the results in the run folders; gsq gather
    then has a row for each. It skips what the same protocol has measured before, so the same command resumes after an
    interruption. Exit code 1: some runs could not be evaluated.

    A model that gsq did not train is an object that package.module:load returns, with encode and decode, or
    reconstruct. gsq measures every metric by the protocol of a sweep, a run or a folder of images, and adds a row to a
    results table. A YAML file lists several models: models: [{model: package.module:load, options: {...},
    range: [0, 1]}, {run: FOLDER}].

    Example: gsq evaluate results/runs/ab/abcdef123456 --features inception --resolution 128 --resolution 256
    Example: gsq evaluate gsq.peers.vqgan:llamagen -o checkpoint=vq_ds16_c2i.pt --protocol quickstart --resolution 64
    Example: gsq evaluate groups --features inception --cluster my-cluster.yaml
    Example: gsq evaluate quickstart --probe tiny

    Options:
        --features NAME  efficientnet_lite0, inception (torch-fidelity's resize), inception_pytorch_fid,
            inception_clean_fid, or package.module:function that returns a torch module.
        --resolution N  Size of the images; repeatable; each size is a protocol of its own.
        --lpips NET  Measure LPIPS too: vgg, alex or none.
        --allow-small  Allow an rfid over few images: under 2,049 (Inception) or 50.
        --probe SIZE  Train a small generator on the indices, too (tiny, small, base): prior bits and gFID.
        --distance NAME  Measure this besides rfid: fd_dinov2, sfid, cmmd or precision_recall; repeatable.
        --folder FOLDER  Compare only the held-out images below this folder, such as a class.
        --protocol NAME  For a model: the sweep, run folder, preset or config file whose images and evaluation to use.
        --data FOLDER  For a model: folder of images to compare; if it has a subfolder val, only those.
        --channels ORDER  For a model: rgb (default) or bgr.
        --output FILE  For a model: results table to add its row to; default results/foreign.parquet.
    """
    given = {
        "num_images": num_images,
        "features": features,
        "resolutions": tuple(resolution or ()),
        "lpips": lpips,
        "distances": tuple(distance or ()),
        "folder": folder,
        "probe": probe,
        "probe_steps": probe_steps,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value not in (None, ())}
    if allow_small:
        changes["allow_small"] = True
    from gsq.cli.foreign import evaluate_models, is_models_file
    from gsq.config.parts import is_path

    of_models = {
        "--protocol": protocol, "--data": data, "--option": option, "--range": value_range, "--channels": channels,
        "--output": output,
    }  # fmt: skip
    if is_path(run) or is_models_file(run):
        from gsq.errors import UserError

        if probe or probe_steps:
            raise UserError("--probe: needs the training images of a run of gsq's, not models; leave it out")
        if cluster != "local":
            raise UserError(f"--cluster: {cluster}, but models are evaluated on this machine; leave it out")
        convention = {"range": value_range and _numbers(value_range), "channels": channels}
        evaluate_models(
            run,
            changes,
            protocol=protocol,
            data=data,
            options=key_values(option, "--option"),
            convention={key: value for key, value in convention.items() if value is not None},
            output=output,
            as_json=as_json,
        )
        return
    if wrong := next((name for name, value in of_models.items() if value), None):
        from gsq.errors import UserError

        raise UserError(f"{wrong}: is for models, package.module:load or a YAML file of models; got {run}")
    if is_yaml(run) or _is_sweep(run):
        _evaluate_sweep(run, changes, cluster, as_json)
        return
    if cluster != "local":
        from gsq.errors import UserError

        raise UserError(f"--cluster: {cluster}, but a single run is evaluated on this machine; name its sweep")
    from gsq.evaluation.evaluate import evaluate_all
    from gsq.probe.protocol import probe_protocol
    from gsq.runs.reevaluate import load_finished

    config, source, model = load_finished(Path(run))
    wanted = dataclasses.replace(config.evaluation, **changes)
    # This refuses a resolution that the model's downsampling does not divide.
    dataclasses.replace(config, evaluation=wanted)
    for line in source.manifest.summary().remarks():
        typer.echo(line, err=True)
    probe_protocol(wanted, config.data, source.manifest)
    results = evaluate_all(model, source, wanted)
    if wanted.probe != "none":
        from gsq.probe.measure import probe as measure

        results = [result | measure(model, source, wanted, result) for result in results]
    if as_json:
        print_json(results[0] if len(results) == 1 else results)
        return
    for i, result in enumerate(results):
        if i:
            typer.echo()
        for name in PRINTED:
            if result.get(name) is not None:
                typer.echo(f"{name:<21}{result[name]}")


def _is_sweep(name: str) -> bool:
    """Whether this names a sweep, which a folder of the same name, such as one of images, does not hide."""
    from gsq.sweeps.planning.folder import sweep_names

    if "/" in name or (Path(name) / "config.yaml").is_file():
        return False
    return not Path(name).exists() or name in sweep_names(runs_root())


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--range: '{text}' is not LOW,HIGH, such as 0,1") from None


def _evaluate_sweep(name: str, changes: dict[str, Any], cluster: str, as_json: bool) -> None:
    from gsq.runs.stop import handled
    from gsq.sweeps.running.reevaluate import evaluate_sweep

    target = sweeps.load_cluster(cluster)

    def show(over: int, result: dict[str, Any]) -> None:
        if not as_json:
            probed = ""
            if "gfid" in result:
                probed = f"gFID {result['gfid']:.4g}, {result['prior_bits_per_pixel']:.4g} prior bits/pixel, "
            typer.echo(
                f"{over}: {result['signature']} {probed}rFID {result['rfid']:.4g} in {result['features']}, "
                f"{result['num_images']} images of {result['resolution']} pixels"
            )

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    try:
        with handled([signal.SIGTERM], interrupt):
            done = evaluate_sweep(name, changes, target, on_result=show)
    except KeyboardInterrupt as stopped:
        local = target.kind == "local"
        kept = "finished evaluations and the progress of probes are kept" if local else "submitted jobs keep running"
        typer.echo(f"stopped; {kept}. The same command resumes.", err=True)
        raise typer.Exit(128 + (stopped.args or [signal.SIGINT])[0]) from None
    if as_json:
        print_json(vars(done) | {"logs": done.logs and str(done.logs)})
    else:
        _print_evaluations(done)
    if done.failed:
        raise typer.Exit(1)


def _print_evaluations(done: Evaluations) -> None:
    for message in done.failed.values():
        typer.echo(f"warning: {message}", err=True)
    if done.ended:
        ended = counted(len(done.ended), "earlier job")
        typer.echo(f"warning: {ended} ended without a result; logs in {done.logs}", err=True)
    for array, signatures in done.arrays.items():
        typer.echo(f"job array {array}: {counted(len(signatures), 'run')} to evaluate")
    finished = counted(done.finished, "finished run")
    if done.logs:
        waiting = f"{done.waiting} submitted before are waiting or running; " if done.waiting else ""
        typer.echo(
            f"{sum(map(len, done.arrays.values()))} of {finished} submitted; {waiting}gsq gather {done.sweep} adds the "
            "results to the table, and the same command submits what is missing"
        )
    else:
        new = counted(len(done.new), "new evaluation")
        typer.echo(f"{new} of {finished}; gsq gather {done.sweep} adds them to the table")
