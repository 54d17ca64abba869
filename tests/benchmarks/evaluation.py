"""Evaluation of a tokenizer against torchmetrics, and the Frechet distance against scipy's matrix square root.

    python tests/benchmarks/evaluation.py [--images 1000] [--features efficientnet_lite0] [--runs 3] [--quick]

Prints a table and writes evaluation_<device>.json and .md. Every side gets the same images, tokenizer and networks;
these have seeded random weights where published ones are not here, which costs the same time. `separate passes` is a
loop over all images for each metric, each decoding and reconstructing them again; `one loop` updates torchmetrics'
metrics side by side in one loop, as a careful script would. LPIPS is gsq's network on all sides (torchmetrics' needs
torchvision).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from lookup import processor, version
from networks import seeded_networks
from torch import Tensor, nn
from torchmetrics import MeanSquaredError
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

import gsq.pretrained.extractor
from gsq import override, preset
from gsq.data.batches import ImageSource
from gsq.evaluation.evaluate import evaluate
from gsq.metrics.frechet import FeatureStatistics, frechet_distance
from gsq.metrics.reconstruction import from_uint8, to_uint8
from gsq.models.autoencoder import Autoencoder
from gsq.training.losses import LPIPS

SIZE = 64


def parts(images: int, features: str, size: int = SIZE) -> tuple[Autoencoder, ImageSource, Any]:
    lpips = "vgg"
    config = override(
        preset("cpu-small"),
        {
            "data.image_size": size,
            "evaluation.num_images": images,
            "evaluation.features": features,
            "evaluation.allow_small": True,
            "evaluation.lpips": lpips,
        },
    )
    torch.manual_seed(0)
    return Autoencoder(config).eval(), ImageSource(config.data), config.evaluation


class Only(nn.Module):
    """One of an extractor's outputs, of uint8 images, as torchmetrics calls it."""

    def __init__(self, extractor: gsq.pretrained.extractor.FeatureExtractor, output: int) -> None:
        super().__init__()
        self.network, self.extractor, self.output, self.num_features = (
            extractor.network,
            extractor,
            output,
            extractor.dim,
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(from_uint8(images))[self.output]


class Usage:
    """Counts of indices, which torchmetrics has no metric for."""

    def __init__(self, model: Autoencoder) -> None:
        self.counts = torch.zeros(len(model.quantizer.index_sizes), max(model.quantizer.index_sizes))

    def update(self, indices: Tensor) -> None:
        for group, counts in enumerate(self.counts):
            counts += torch.bincount(indices[:, group].flatten(), minlength=len(counts))

    def compute(self) -> float:
        p = self.counts.sum(0) / self.counts.sum()
        return float(torch.exp(-torch.special.xlogy(p, p).sum()))


Update = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]


def theirs(model: Autoencoder, images: int, features: str) -> dict[str, tuple[Update, Callable[[], Any]]]:
    """Metric name to its update (originals and reconstructions, uint8 and in [-1, 1], indices) and its result."""
    extractor = gsq.pretrained.extractor.feature_extractor(features, SIZE)
    fid = FrechetInceptionDistance(feature=Only(extractor, 0), input_img_size=(3, SIZE, SIZE))
    kernel = KernelInceptionDistance(feature=Only(extractor, 0), subset_size=min(1000, images), subsets=10)
    psnr, similarity, mse = (
        PeakSignalNoiseRatio(255.0),
        StructuralSimilarityIndexMeasure(data_range=1.0),
        MeanSquaredError(),
    )
    lpips, distances, usage = LPIPS(), [], Usage(model)

    def both(metric: Any, truth: Tensor, found: Tensor) -> None:
        metric.update(truth, real=True)
        metric.update(found, real=False)

    made: dict[str, tuple[Update, Callable[[], Any]]] = {
        "fid": (lambda t, f, x, y, i: both(fid, t, f), fid.compute),
        "kid": (lambda t, f, x, y, i: both(kernel, t, f), kernel.compute),
        "psnr": (lambda t, f, x, y, i: psnr.update(f.float(), t.float()), psnr.compute),
        "ssim": (lambda t, f, x, y, i: similarity.update((y + 1) / 2, (x + 1) / 2), similarity.compute),
        "mse": (lambda t, f, x, y, i: mse.update(y, x), mse.compute),
        "lpips": (lambda t, f, x, y, i: distances.append(lpips.distances(y, x)), lambda: torch.cat(distances).mean()),
        "usage": (lambda t, f, x, y, i: usage.update(i), usage.compute),
    }
    if features.startswith("inception"):
        score = InceptionScore(feature=Only(extractor, 1))
        made["inception_score"] = (lambda t, f, x, y, i: score.update(f), score.compute)
    return made


@torch.no_grad()
def loop(model: Autoencoder, source: ImageSource, evaluation: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    for first in range(0, evaluation.num_images, evaluation.batch_size):
        images = source.validation_batch(first, min(evaluation.batch_size, evaluation.num_images - first))
        output = model(images)
        truth, found = to_uint8(images), to_uint8(output.images)
        x, y = from_uint8(truth), from_uint8(found)
        for update, _ in metrics.values():
            update(truth, found, x, y, output.indices)
    return {name: compute() for name, (_, compute) in metrics.items()}


def seconds(call: Callable[[], Any]) -> float:
    # One thread's own processor time does not count what else runs on the machine.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    call()
    return clock() - begun


def evaluation_times(images: int, features: str, runs: int, separately: bool) -> dict[str, Any]:
    model, source, evaluation = parts(images, features)

    def separate() -> None:
        for name, metric in theirs(model, images, features).items():
            loop(model, source, evaluation, {name: metric})

    times: dict[str, list[float]] = {"ours": [], "ours, originals known": [], "separate passes": [], "one loop": []}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            # In turns, so that another load on the machine meets all of them.
            for name in ("ours", "ours, originals known"):
                times[name].append(seconds(lambda: evaluate(model, source, evaluation, runs=Path(folder))))
        if separately:
            times["separate passes"].append(seconds(separate))
        times["one loop"].append(seconds(lambda: loop(model, source, evaluation, theirs(model, images, features))))
        print({name: round(values[-1], 1) for name, values in times.items() if values}, flush=True)
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    return {"images": images, "image_size": SIZE, "features": features, "runs": runs, "seconds": medians}


def memory(images: int, features: str, way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--memory-of", way, "--images", str(images), "--features", features]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def memory_here(images: int, features: str, way: str) -> dict[str, Any]:
    """Peak resident memory that the images add to what one batch needs, in MiB."""

    def run(count: int) -> float:
        model, source, evaluation = parts(count, features, 32)
        if way == "ours":
            evaluate(model, source, evaluation)
        else:
            loop(model, source, evaluation, theirs(model, count, features))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = run(32)
    return {
        "way": way,
        "images": images,
        "features": features,
        "one_batch_mib": before,
        "added_mib": run(images) - before,
    }


def frechet_times(runs: int, dim: int = 2048) -> list[dict[str, Any]]:
    rows = []
    random = np.random.default_rng(0)
    spread = np.exp(-np.arange(dim) / (dim / 7))
    mix = np.linalg.qr(random.normal(size=(dim, dim)))[0]
    for images in (2 * dim, dim // 2):
        x = (random.normal(size=(images, dim)) * spread) @ mix
        y = x + 0.1 * (random.normal(size=(images, dim)) * spread) @ mix
        a, b = FeatureStatistics(dim), FeatureStatistics(dim)
        for statistic, values in ((a, x), (b, y)):
            statistic.update(torch.from_numpy(values))
            _ = statistic.covariance

        def peer(a: FeatureStatistics = a, b: FeatureStatistics = b) -> float:
            """The distance as pytorch-fid computes it, from the means and covariances."""
            first, second, difference = a.covariance, b.covariance, a.mean - b.mean
            root = scipy.linalg.sqrtm(first @ second)
            return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)

        ours = [seconds(lambda a=a, b=b: frechet_distance(a, b)) for _ in range(runs + 1)][1:]
        others = [seconds(peer) for _ in range(runs)]
        rows.append(
            {
                "features": dim,
                "images": images,
                "rank_deficient": a.rank_deficient,
                "ours_seconds": statistics.median(ours),
                "sqrtm_seconds": statistics.median(others),
                "ours": frechet_distance(a, b),
                "sqrtm": peer(),
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    machine, packages = result["machine"], result["packages"]
    lines = [
        "# Evaluation timings",
        "",
        f"{machine['processor']}, device {machine['device']}, threads {machine['threads']}; "
        + ", ".join(f"{name} {number}" for name, number in packages.items())
        + ". Medians, of processor time where one thread runs. rFID, KID, PSNR, SSIM, MSE, LPIPS (VGG), codebook use "
        "(with Inception features the inception score too) of the preset cpu-small. `separate passes`: torchmetrics, a "
        "loop for each metric; `one loop`: torchmetrics, all metrics in one loop; `originals known`: what all runs but "
        "the first of a sweep does. GPU speed: not measured.",
        "",
        "| images | size | features | ours s | originals known s | separate passes s | / ours | one loop s | / ours | "
        "/ originals known | LPIPS of originals |",
        "|---:|---:|---|" + "---:|" * 7 + "---|",
    ]
    for row in result["evaluation"]:
        s = row["seconds"]
        ours, known, loop = s["ours"], s["ours, originals known"], s["one loop"]
        apart = s.get("separate passes")
        separate = "not measured | -" if apart is None else f"{apart:.1f} | {apart / ours:.2f}"
        lines.append(
            f"| {row['images']} | {row['image_size']} | {row['features']} | {ours:.1f} | {known:.1f} | {separate} | "
            f"{loop:.1f} | {loop / ours:.2f} | {loop / known:.2f} | {row.get('of', 'computed each time')} |"
        )
    lines += [
        "",
        "Peak memory, in a fresh process for each value: what the images (of 32 pixels) add to an evaluation of 32 of "
        "them. Ours keeps features of the first 10,000 images, for KID, and nothing else of an image; torchmetrics' "
        "KID keeps those of all.",
        "",
        "| images | ours MiB | torchmetrics in one loop MiB |",
        "|---:|---:|---:|",
    ]
    if not result["memory"]:
        lines.append("| not measured | | |")
    by = {(row["images"], row["way"]): row["added_mib"] for row in result["memory"]}
    for images in sorted({row["images"] for row in result["memory"]}):
        lines.append(f"| {images} | {by[images, 'ours']:.0f} | {by[images, 'one loop']:.0f} |")
    lines += [
        "",
        "Frechet distance from means and covariances, against scipy's sqrtm of their product (pytorch-fid's way):",
        "",
        "| features | images | rank-deficient | ours s | sqrtm s | / ours | relative difference |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in result["frechet"]:
        lines.append(
            f"| {row['features']} | {row['images']} | {'yes' if row['rank_deficient'] else 'no'} | "
            f"{row['ours_seconds']:.2f} | {row['sqrtm_seconds']:.2f} | "
            f"{row['sqrtm_seconds'] / row['ours_seconds']:.1f} | "
            f"{abs(row['ours'] - row['sqrtm']) / row['ours']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--features", default="efficientnet_lite0")
    parser.add_argument("--runs", type=int, default=3, help="rounds behind each median")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of each")
    parser.add_argument("--together", action="store_true", help="leave the separate passes out")
    parser.add_argument("--only", choices=("evaluation", "memory", "frechet"), help="keep the rest of the last result")
    parser.add_argument("--name", help="stem of the files, evaluation_<device> if absent")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeded_networks()
    if args.memory_of:
        print(json.dumps(memory_here(args.images, args.features, args.memory_of)))
        return
    runs = 1 if args.quick else args.runs
    device = "cpu"
    stem = args.out / (args.name or f"evaluation_{device}")
    result: dict[str, Any] = {
        "machine": {"processor": processor(), "device": device, "threads": args.threads},
        "packages": {name: version(name) for name in ("torch", "torchmetrics", "scipy", "numpy")},
        "evaluation": [],
        "memory": [],
        "frechet": [],
    }
    if args.only and stem.with_suffix(".json").exists():
        last = json.loads(stem.with_suffix(".json").read_text())
        result |= {name: last[name] for name in ("evaluation", "memory", "frechet")}
    if args.only in (None, "frechet"):
        result["frechet"] = frechet_times(runs)
    if args.only in (None, "evaluation"):
        row = evaluation_times(args.images, args.features, runs, not args.together)
        # Rows of other numbers of images stay.
        others = [one for one in result["evaluation"] if one["images"] != args.images]
        result["evaluation"] = [*others, {**row, "of": "kept"}]
    if args.only in (None, "memory"):
        result["memory"] = []
        for images in (500, 1000, 2000):
            result["memory"] += [memory(images, args.features, way) for way in ("ours", "one loop")]
            print(result["memory"][-2:], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
