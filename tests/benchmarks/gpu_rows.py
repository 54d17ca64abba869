"""The rows of gpu.py. Each is measured in a process of its own; at toy sizes on the CPU, too."""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lookup import cell, exact_share, vectors, version
from networks import seeded_networks
from trainer import Bare

from gsq import override, preset
from gsq.data.batches import ImageSource
from gsq.evaluation.evaluate import evaluate
from gsq.models.autoencoder import Autoencoder
from gsq.quantizers.lookup import nearest_rows
from gsq.runs.failures import peak_memory_bytes
from gsq.sweeps.costing.cost import estimate, speed
from gsq.sweeps.planning.cells import Cell
from gsq.training.trainer import Trainer

Line = dict[str, Any]
"""what, ours (value with unit), other (what it is compared with, and its value), ratio."""
# Channels and codebook rows of the look-ups.
SIZES = ((16, 64), (16, 1024), (8, 16384), (16, 65536), (16, 262144))
# The largest of these whose estimate is below this share of the GPU's memory.
BATCHES, ROOM = (64, 32, 16, 8, 4), 0.5
WARM_UP, STEPS, SECONDS = 4, 24, 12.0


class NotMeasured(Exception):
    """Why a row cannot be measured here."""


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    measure: Callable[[bool], list[Line]]
    """Sizes by whether they are toy ones."""


def rows() -> list[Row]:
    """In the order of what a first look at a GPU should tell, since time can run out."""

    def of_training(compiled: bool, last: bool) -> list[Row]:
        ways = f"{'compiled' if compiled else 'plain'}{', channels_last' if last else ''}"
        name = f"{'-compiled' if compiled else ''}{'-last' if last else ''}"
        return [
            Row(f"{model}{name}", f"training {model}, {ways}", partial(training, model, compiled, last))
            for model in ("paper-f8", "paper-f16")
        ]

    return [
        Row("exact", "look-up, exactness", exactness),
        Row("lookup", "look-up, speed", lookups),
        *of_training(False, False),
        *of_training(False, True),
        Row("evaluation", "evaluation", evaluation),
        Row("probe", "generation probe", probe),
        *of_training(True, True),
        *of_training(True, False),
    ]


def on(toy: bool) -> str:
    return "cpu" if toy else "cuda"


def synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def device(toy: bool) -> list[Line]:
    """Name and memory of the device. Raises NotMeasured without one."""
    versions = {name: version(name) for name in ("torch", "triton", "gsq")}
    if toy:
        return [{"name": "cpu", "memory_gib": 0.0, "versions": versions}]
    if not torch.cuda.is_available():
        raise NotMeasured(f"torch {torch.__version__} sees none on this machine")
    found = torch.cuda.get_device_properties(0)
    return [{"name": found.name, "memory_gib": found.total_memory / 2**30, "versions": versions}]


def exactness(toy: bool) -> list[Line]:
    """Answers of the device: whether their float64 distance is the least, and whether they are the CPU's."""
    count, sizes = (256, (64,)) if toy else (4096, (1024, 65536))
    lines = []
    for size in sizes:
        for dim in (1, 2, 4, 16, 64):
            for kind in ("spread", "collapsed", "repeated", "bfloat16"):
                z, codebook = vectors(count, dim, 1, "cpu"), vectors(size, dim, 2, "cpu")
                if kind == "collapsed":
                    codebook = 1 + 1e-6 * codebook
                elif kind == "repeated":
                    codebook = codebook[: size // 2].repeat(2, 1)
                elif kind == "bfloat16":
                    z = z.bfloat16()
                found = nearest_rows(z.to(on(toy)), codebook.to(on(toy))).cpu()
                same = float((found == nearest_rows(z, codebook)).double().mean())
                lines.append((exact_share(found, z, codebook, False), same, f"d = {dim}, V = {size}, {kind}"))
    exact, same, _ = (min(values) for values in zip(*lines, strict=True))
    wrong = [name for share, equal, name in lines if share < 1 or equal < 1]
    what = f"{len(lines)} codebooks and dimensions" + (f"; not exact: {', '.join(wrong)}" if wrong else "")
    return [{"what": what, "ours": f"{exact:.4f} exact", "other": f"{same:.4f} as on the CPU"}]


def lookups(toy: bool) -> list[Line]:
    lines = []
    for dim, size in ((4, 64), (4, 256)) if toy else SIZES:
        found = cell(512 if toy else 65536, dim, size, on(toy), 16.0, 0.1 if toy else 3.0, product=True)
        ours, what = found["ours_ms"], f"N = {found['N']}, d = {dim}, V = {size}, {found['ours_exact']:.3f} exact"
        for other, name in (("cdist", "cdist and argmin"), ("product", "the bare product")):
            milliseconds = found[f"{other}_ms"]
            line = {"what": what, "ours": f"{ours:.3f} ms", "other": f"{name}: {milliseconds:.3f} ms"}
            lines.append({**line, "ratio": milliseconds / ours})
    return lines


def seconds_of(step: Callable[[], Any], toy: bool) -> float:
    """Median seconds of a step, of as many as fit into SECONDS after a warm-up."""
    times: list[float] = []
    for _ in range(0 if toy else WARM_UP):
        step()
    begun = time.perf_counter()
    while not times or (not toy and len(times) < STEPS and time.perf_counter() - begun < SECONDS):
        synchronise()
        start = time.perf_counter()
        step()
        synchronise()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def training(model: str, compiled: bool, last: bool, toy: bool) -> list[Line]:
    """Images/s of the trainer and of the step written plainly, and peak memory against the plan's estimate."""
    if toy:
        # Compilation has tests of its own, and takes a minute.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    seeded_networks()
    config = override(
        preset("cpu-tiny" if toy else model),
        {
            "loss.discriminator_start": 0,
            "train.precision": "bfloat16",
            "execution.device": on(toy),
            "execution.compile": compiled,
            "execution.channels_last": last,
        },
    )
    kind = "cpu" if toy else "gpu"

    def planned(batch: int) -> tuple[Any, int]:
        changed = replace(config, train=replace(config.train, batch_size=batch))
        one = Cell("", {}, changed, "")
        return changed, estimate(one, speed([one], {}, kind), kind).memory_bytes

    batch = 2
    if not toy:
        limit = ROOM * torch.cuda.get_device_properties(0).total_memory
        batch = next((size for size in BATCHES if planned(size)[1] <= limit), BATCHES[-1])
    config, expected = planned(batch)
    trainer = Trainer(config, ImageSource(config.data))
    begun = time.perf_counter()
    trainer.step()
    synchronise()
    first = time.perf_counter() - begun
    waited, begun = trainer.waited, time.perf_counter()
    ours = seconds_of(trainer.step, toy)
    share = (trainer.waited - waited) / (time.perf_counter() - begun)
    peak = peak_memory_bytes(on(toy))
    bare = seconds_of(Bare(trainer).step, toy)
    what = f"batch {batch}; first step {first:.1f} s, {share:.0%} waiting for images"
    plainly = f"written plainly: {batch / bare:.1f} images/s"
    return [
        {"what": what, "ours": f"{batch / ours:.1f} images/s", "other": plainly, "ratio": bare / ours},
        {
            "what": f"peak memory, batch {batch}",
            "ours": f"{peak / 2**30:.2f} GiB",
            "other": f"the plan: {expected / 2**30:.2f} GiB",
            "ratio": expected / peak,
        },
    ]


def evaluation(toy: bool) -> list[Line]:
    seeded_networks()
    images = 8 if toy else 512
    own = {"features": "efficientnet_lite0"} if toy else {"features": "inception", "lpips": "vgg", "batch_size": 32}
    settings = {**own, "allow_small": True, "num_images": images}
    config = override(
        preset("cpu-tiny" if toy else "paper-f8"), {f"evaluation.{name}": value for name, value in settings.items()}
    )
    model, source = Autoencoder(config).eval().to(on(toy)), ImageSource(config.data)
    # Starts the libraries and chooses algorithms.
    evaluate(model, source, replace(config.evaluation, num_images=config.evaluation.batch_size))
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("originals computed", "originals known"):
            synchronise()
            begun = time.perf_counter()
            evaluate(model, source, config.evaluation, runs=Path(folder))
            synchronise()
            rate = images / (time.perf_counter() - begun)
            what = f"{what}; {config.evaluation.features}, LPIPS {config.evaluation.lpips}, {images} images"
            lines.append({"what": what, "ours": f"{rate:.1f} images/s"})
    return lines


def probe(toy: bool) -> list[Line]:
    """Steps/s of the generation probe on random codes, as its training makes them."""
    if importlib.util.find_spec("gsq.probe") is None:
        raise NotMeasured("there is no probe in this version")
    sizes = importlib.import_module("gsq.config.probe").SIZES
    prior_of = importlib.import_module("gsq.probe.model").Prior
    optimiser = importlib.import_module("gsq.probe.fitting").optimiser
    lines = []
    for name in ("tiny",) if toy else ("small", "base"):
        size, positions, values = sizes[name], 16 if toy else 256, 64 if toy else 16384
        torch.manual_seed(0)
        prior = prior_of(size, (values,), positions).to(on(toy))
        optimizer = optimiser(prior, size)
        batch = size.batch(positions)
        codes = torch.randint(values, (batch, positions, 1), device=on(toy))

        def step(prior: Any = prior, optimizer: Any = optimizer, codes: torch.Tensor = codes) -> None:
            optimizer.zero_grad(set_to_none=True)
            (prior(codes) / codes.numel()).backward()
            optimizer.step()

        what = f"{name}, batch {batch}, {positions} positions, G = 1, V = {values}"
        lines.append({"what": what, "ours": f"{1 / seconds_of(step, toy):.2f} steps/s"})
    return lines
