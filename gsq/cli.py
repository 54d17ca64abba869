"""The ``gsq`` command: its own verbs, and those of the other rooms mounted on it."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.cli import BoundOption, LawOption, ProtocolOption, ResidualsOption
from analysis.cli import register as register_analysis
from sweeps.cli import (
    AllOption,
    AnchorsOption,
    CanaryOption,
    CellsOption,
    ClusterOption,
    GpuOption,
    JsonOption,
    OverBudgetOption,
    PlanClusterOption,
    RetryOption,
    SweepArgument,
)
from sweeps.cli import register as register_sweeps

app = typer.Typer(
    name="gsq",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Scaling-law experiments for discrete image tokenizers.\n\n"
    "From one sweep YAML: plan the cells, train and evaluate them here or on SLURM, gather rFID and codebook use into "
    "Parquet, fit a scaling law, draw it. Start with [bold]gsq run quickstart[/bold], then write a YAML of your own.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import gsq

        typer.echo(f"gsq {gsq.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("run")
def run_command(
    sweep: SweepArgument,
    cluster: ClusterOption = "local",
    cells: CellsOption = None,
    retry: RetryOption = False,
    over_budget: OverBudgetOption = False,
    canary: CanaryOption = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Parquet file; default results/SWEEP.parquet.")
    ] = None,
) -> None:
    """The whole job: plan, submit, wait, gather, fit and plot.

    Ctrl-C stops cleanly, and the same command goes on where it was. After evaluation keys of the YAML have changed,
    finished cells are evaluated again without training. Exit code 1: cells have failed.

    Example: gsq run sweeps/configs/quickstart.yaml
    """
    from gsq.compose import run_command_line

    run_command_line(sweep, cluster, cells, retry, output, over_budget, canary)


NoiseOption = Annotated[
    float | None,
    typer.Option(
        "--noise", metavar="SD", help="Standard deviation between seeds; relative, unless residuals are linear."
    ),
]


@app.command("plan")
def plan_command(
    sweep: SweepArgument,
    cluster: PlanClusterOption = None,
    gpu: GpuOption = None,
    cells: CellsOption = None,
    power: Annotated[
        bool,
        typer.Option("--power", help="Instead, what a law fitted to these cells can be expected to say."),
    ] = False,
    law: Annotated[
        list[str] | None,
        typer.Option(
            "--law",
            metavar="LAW",
            help="With --power: a named law or a formula; repeatable. Default: power_law_bpp and paper_eq14.",
        ),
    ] = None,
    noise: NoiseOption = None,
    coefficient: Annotated[
        list[str] | None,
        typer.Option(
            "--coefficient",
            metavar="NAME=NUMBER",
            help="With --power: a parameter of the law, instead of what the paper's numbers give; repeatable.",
        ),
    ] = None,
    anchors: AnchorsOption = None,
    as_json: JsonOption = False,
    show_all: AllOption = False,
) -> None:
    """Show the cells of a sweep and what they will cost. Runs nothing.

    Prints each cell with its signature, axes, bits per pixel, parameters, FLOPs, images, estimated time and
    memory; then the cells left out with the constraint that did it, and duplicates; then what is still to be run,
    with the end and the disk space that it needs, against the YAML's budget, and how far past estimates were off. Of a
    search: its space, and what its trials will cost. Images and weights need not be there; what is missing is named.

    With --power, before the first run: the 95 % interval that each parameter of a law can be expected to get from this
    grid and its seeds, if the law is right, with coefficients fitted to the paper's numbers and a seed noise of 5 % (or
    as given). A parameter that is open there needs other cells, not luck.

    Example: gsq plan quickstart
    Example: gsq plan paper/fig4 --gpu h100
    Example: gsq plan groups.yaml --power --law saturating --noise 0.03
    Example: gsq plan groups.yaml --anchors groups-anchors.yaml && gsq run groups-anchors.yaml
    """
    if power:
        from gsq.compose import expected_power

        expected_power(sweep, cells, law, noise, coefficient, as_json)
        return
    for name, value in (("--law", law), ("--noise", noise), ("--coefficient", coefficient)):
        if value:
            from gsq.errors import UserError

            raise UserError(f"{name} says what to expect of a law: it goes with --power")
    from sweeps.cli import print_anchors, print_plan

    if anchors is not None:
        print_anchors(sweep, cluster or "local", cells, anchors, as_json)
        return
    print_plan(sweep, cluster, gpu, cells, as_json, show_all)


register_sweeps(app)
register_analysis(app)


@app.command("report")
def report_command(
    sweep: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP",
            help="A submitted sweep, by name or YAML file, or a results table: FILE.parquet or its NAME.",
        ),
    ],
    law: LawOption = None,
    protocol: ProtocolOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="The page; default: SWEEP-report.html beside the results table."),
    ] = None,
) -> None:
    """One HTML page of a sweep, to read, send or print: it needs no network and no other file.

    On it: what became of the cells, and why some failed; a table that sorts and filters; the figures of gsq plot; laws
    with their report cards; pictures and training curves from the run folders that are here; protocols, code and
    devices. A submitted sweep is gathered first, finished or not.

    Example: gsq report quickstart --output quickstart.html
    """
    from gsq.compose import write_report

    page, table = write_report(sweep, output, law, protocol)
    typer.echo(f"results table: {table}")
    typer.echo(f"report: {page} ({page.stat().st_size / 1e6:.1f} MB); open it in a browser")


@app.command("design")
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
    from gsq.compose import design_next

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


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run folder (gsq status names signatures; RUNS/ab/SIGNATURE), or a sweep, by name or YAML file.",
    ),
]


@app.command("train")
def train_command(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="A preset (cpu-tiny, paper-f8, ...) or a YAML file of config sections."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, for instance -s groups=4; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole config and the signature, and stop.")
    ] = False,
) -> None:
    """Train and evaluate one run, without a sweep. The same command resumes it.

    Example: gsq train cpu-tiny -s groups=4 -s steps=100
    """
    import yaml

    from gsq.errors import UserError
    from gsq.loading import to_dict
    from sweeps.planning import refuse_too_large
    from sweeps.spec import load_spec

    values = {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set: '{setting}' is not KEY=VALUE")
        values[key] = yaml.safe_load(value)
    config = load_spec({"name": "train", "base": base, "set": values}).base
    from gsq.identity import identity, require_weights

    refuse_too_large(config)
    signature = identity(config)
    if dry_run:
        typer.echo(yaml.safe_dump(to_dict(config), sort_keys=False) + f"# signature: {signature}")
        return
    require_weights(config)
    raise typer.Exit(_train(config))


def _train(config: object) -> int:
    import os
    import signal

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from gsq.config import RunConfig
    from gsq.record import read_evaluations, read_run, runs_root
    from gsq.run import Stopped, StopRequest, execute
    from gsq.surroundings import world_size

    assert isinstance(config, RunConfig)
    # Of several processes (torchrun) one speaks.
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
            told=lambda: console.print("stopping: this step ends, and a checkpoint is written"),
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
            console.print("stopped after a whole step; the same command goes on from there")
            return 130
    for evaluation in read_evaluations(folder):
        console.print(
            f"step {evaluation['step']}: rFID {evaluation['rfid']:.4g} in {evaluation['features']}, PSNR "
            f"{evaluation['psnr_db']:.2f} dB, SSIM {evaluation['ssim']:.3f}, usage {evaluation['usage']:.3f}, "
            f"perplexity {evaluation['perplexity']:.1f}",
            highlight=False,
        )
    console.print(f"{read_run(folder).state}: {folder.path}", highlight=False, soft_wrap=True)
    return 0


@app.command("evaluate")
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
    from gsq.evaluation import evaluate_all
    from gsq.run import load_finished

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
    from sweeps.evaluating import evaluate_sweep

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


@app.command("reconstruct")
def reconstruct_command(
    run: TokenizerArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, of any size from f pixels.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where the pictures go; made where it is missing.")
    ] = Path("reconstructions"),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a tokenizer keeps of images: encode, decode, compare.

    For each image it writes NAME.reconstruction.png and NAME.side-by-side.png (the original on the left), and prints
    the PSNR. Images are not resized; where f does not divide a side, the few pixels over are cropped off evenly.

    Example: gsq reconstruct results/runs/ab/abcdef123456 photo.jpg --output /tmp/seen
    """
    import dataclasses

    from gsq.inference import Reconstruction, reconstruct_files
    from gsq.tokenizer import Tokenizer

    def show(done: Reconstruction) -> None:
        if as_json:
            return
        psnr = "equal" if done.psnr_db is None else f"PSNR {done.psnr_db:.2f} dB"
        cropped = ", {} rows and {} columns cropped off".format(*done.cropped) if any(done.cropped) else ""
        typer.echo(f"{done.image}: {done.height} x {done.width}, {psnr}{cropped} -> {done.side_by_side}")

    made = reconstruct_files(Tokenizer.from_pretrained(run, device), images, output, show)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in made], indent=1))


@app.command("tokenize")
def tokenize_command(
    run: TokenizerArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of images, at any depth.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the Parquet shards go.")],
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="N",
            help="Centre square of each image at N x N pixels; default: its own size, cropped to multiples of f.",
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option("--shard-size", metavar="N", help="Images of a shard.")] = 1000,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", help="Images encoded at a time.")] = 8,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Turn a folder of images into codebook indices, to train a generative model on.

    DIR gets indices-00000.parquet, ... (a row an image: path, sha256, height, width, latent_height, latent_width,
    indices_per_position, indices) and _manifest.json. Ctrl-C loses at most the shard in work; the same command goes on
    where it stopped. Images that cannot be used are listed and left out; which those are is as for training.

    Example: gsq tokenize results/runs/ab/abcdef123456 photos --output tokens --size 256

    Read: row = pandas.read_parquet("tokens").iloc[0];
    row["indices"].reshape(row.latent_height, row.latent_width, row.indices_per_position)
    """
    from rich.console import Console
    from rich.progress import Progress

    from gsq.datasets import described
    from gsq.inference import tokenize_folder
    from gsq.listing import shown
    from gsq.tokenizer import Tokenizer

    console = Console(stderr=True)
    try:
        tokenizer = Tokenizer.from_pretrained(run, device)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("tokenizing", total=None)
            summary = tokenize_folder(
                tokenizer,
                folder,
                output,
                size=size,
                shard_size=shard_size,
                batch_size=batch_size,
                on_images=lambda count: bar.advance(task, count),
                on_start=lambda total: bar.update(task, total=total),
            )
    except KeyboardInterrupt:
        typer.echo("stopped; finished shards are kept, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(summary.to_dict(), indent=1))
        return
    for path, reason in summary.broken[:20]:
        typer.echo(f"left out: {shown(path)}: {reason}")
    if len(summary.broken) > 20:
        typer.echo(f"... and {len(summary.broken) - 20} more (--json lists them)")
    from gsq.words import counted

    for line in described(summary.left_out):
        typer.echo(f"left out: {line}")
    typer.echo(
        f"{counted(summary.images, 'image')}, {counted(summary.positions, 'position')} of {summary.bits_per_token:g} "
        f"bits, {counted(summary.shards, 'shard')} ({summary.shards_before} there before), "
        f"{counted(len(summary.broken), 'image')} left out: {summary.output}"
    )


@app.command("doctor")
def doctor_command(as_json: JsonOption = False) -> None:
    """What this machine has, what is missing, and what to do: packages, GPUs, folders, SLURM, weights, data, tables.

    Missing things that only some uses need are no problem. Exit code 1: there is one.

    Example: gsq doctor
    """
    from gsq.doctor import examine, healthy, table, to_dict

    checks = examine()
    if as_json:
        typer.echo(json.dumps(to_dict(checks), indent=1))
    else:
        from rich.console import Console

        console = Console()
        console.print(table(checks))
        problems = sum(check.state == "problem" for check in checks)
        console.print(f"{problems} problem{'s' * (problems != 1)}" if problems else "no problems", highlight=False)
    if not healthy(checks):
        raise typer.Exit(1)


weights_app = typer.Typer(no_args_is_help=True)
app.add_typer(weights_app, name="weights")


@weights_app.callback()
def weights_command() -> None:
    """Weight files of losses, discriminators and metrics: list them, fetch them, check them.

    Compute nodes have no internet: fetch beforehand, into the folder that $GSQ_WEIGHTS names (default
    ~/.cache/gsq/weights). Downloads use the proxies of HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    Example: gsq weights fetch vgg16
    """


NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names that the list shows.")]


@weights_app.command("list")
def weights_list_command(as_json: JsonOption = False) -> None:
    """Every weight file that gsq can use: purpose, size, licence, sha256, where it is looked for, whether it is there.

    Example: gsq weights list --json
    """
    from gsq.fetching import describe
    from gsq.weights import REGISTRY

    rows = [describe(name) for name in REGISTRY]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
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
    mirror: Annotated[
        str,
        typer.Option(
            "--mirror", metavar="URL", help="Folder with the same file names; default $GSQ_WEIGHTS_MIRROR, if set."
        ),
    ] = "",
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Copy this file (or out of this folder) instead.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download weight files, check their sha256, and put them where runs look for them.

    A file that is there and good is left alone. A download that fails leaves nothing behind, and whatever was there
    before stays. On a machine without internet: download elsewhere and use --from.

    Example: gsq weights fetch vgg16 resnet50
    Example: gsq weights fetch vgg16 --from ~/Downloads/vgg16-397923af.pth
    """
    import dataclasses

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from gsq.errors import UserError
    from gsq.fetching import fetch, known_names
    from gsq.weights import REGISTRY, present

    if bool(names) == everything:
        raise UserError(f"gsq weights fetch: name what to fetch ({', '.join(REGISTRY)}), or say --all, not both")
    if source is not None and not source.is_dir() and len(names or REGISTRY) > 1:
        raise UserError(f"--from: {source} is one file, but several weights are asked for; name one, or a folder")
    wanted = known_names(names or [])
    if everything:
        # What comes in a package that is not installed cannot be downloaded.
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
        typer.echo(json.dumps([{**dataclasses.asdict(one), "path": str(one.path)} for one in done], indent=1))


@weights_app.command("verify")
def weights_verify_command(names: NamesArgument = None, as_json: JsonOption = False) -> None:
    """Read the weight files that are there and compare their sha256.

    Where no hash is published, the file's is recorded beside it the first time and compared from then on. Exit code 1:
    one is damaged, or one that was named is missing.

    Example: gsq weights verify
    """
    import dataclasses

    from gsq.fetching import check, known_names

    found = [check(name) for name in known_names(names or [])]
    if as_json:
        rows = [{**dataclasses.asdict(one), "path": str(one.path) if one.path else None} for one in found]
        typer.echo(json.dumps(rows, indent=1))
    else:
        for one in found:
            fix = f"; get it again: gsq weights fetch {one.name}" if one.state == "damaged" else ""
            typer.echo(f"{one.name}: {one.state}{f', {one.path}' if one.path else ''}{fix}")
    if any(one.state == "damaged" or (names and one.state == "missing") for one in found):
        raise typer.Exit(1)


def _reflow(text: str) -> str:
    """A docstring for --help, which keeps the breaks between lines: they are for paragraphs and examples alone."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines = re.sub(r"\n(?!Example:)\s*", " ", paragraph)
        paragraphs.append(lines)
    return "\n\n".join(paragraphs)


def _reflow_help(commands: typer.Typer) -> None:
    for command in commands.registered_commands:
        command.help = _reflow((command.callback and command.callback.__doc__) or "")
    for group in commands.registered_groups:
        if group.typer_instance:
            _reflow_help(group.typer_instance)


_reflow_help(app)


def main() -> None:
    """Entry point. A user's mistake is one message and exit code 2, never a traceback."""
    try:
        app()
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        from rich.console import Console

        Console(stderr=True).print(f"[bold red]error:[/bold red] {_escaped(error)}", highlight=False, soft_wrap=True)
        sys.exit(code)


def _escaped(error: Exception) -> str:
    from rich.markup import escape

    return escape(str(error))


if __name__ == "__main__":
    main()
