"""Images a second from a folder, tar, Parquet and Arrow shards, and a staged copy, against torch's DataLoader.

    python tests/benchmarks/data.py [--images 1000] [--repeats 5] [--output FOLDER]

All read the same JPEG files of 256 x 256 pixels (crops of scikit-image's photographs, quality 90), whole, flipped at
random, and return float32 batches of 32 in [-1, 1]. gsq prepares them in threads; the peer is a map-style Dataset with
Pillow and torch's DataLoader, which starts processes. Files are in the page cache: this measures decoding and what
surrounds it, not disks. Sources take turns; rates are medians over the repeats, workers started beforehand.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import gsq.data.shards
from gsq.config.run import DataConfig
from gsq.data.batches import Batches, ImageSource
from gsq.data.sources import manifest
from gsq.data.staging import stage

SIZE, BATCH = 256, 32
ROW_GROUP = 100


def write_images(folder: Path, count: int) -> None:
    """The same images as single files, a tar, Parquet and Arrow; a fifth of them for validation."""
    photos = ImageSource(DataConfig(image_size=SIZE))
    encoded = []
    for i in range(count):
        image = ((photos.train_batch(0, i, range(1))[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        out = io.BytesIO()
        Image.fromarray(image.numpy()).save(out, "JPEG", quality=90)
        encoded.append(out.getvalue())
    for split, part in (("train", encoded[: count * 4 // 5]), ("val", encoded[count * 4 // 5 :])):
        (folder / "files" / split).mkdir(parents=True)
        for name in ("tar", "parquet", "arrow"):
            (folder / name).mkdir(exist_ok=True)
        with tarfile.open(folder / "tar" / f"{split}-0000.tar", "w") as tar:
            for i, data in enumerate(part):
                (folder / "files" / split / f"{i:05d}.jpg").write_bytes(data)
                info = tarfile.TarInfo(f"{i:05d}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        table = pa.table({"image": pa.array([{"bytes": data, "path": None} for data in part])})
        pq.write_table(table, folder / "parquet" / f"{split}-00000-of-00001.parquet", row_group_size=ROW_GROUP)
        with (
            pa.OSFile(str(folder / "arrow" / f"{split}.arrow"), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out_,
        ):
            out_.write_table(table, max_chunksize=1000)


class Peer(Dataset[Tensor]):
    """The customary data set: open, convert, flip, to a tensor."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        with Image.open(self.paths[i]) as image:
            rgb = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            rgb = rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


class Source:
    """Batches on demand, of gsq's loader or the peer's."""

    def __init__(self, name: str, workers: int, images: Any, kept: int = gsq.data.shards.ROW_GROUP_BYTES) -> None:
        self.name, self.workers, self.kept, self.step = name, workers, kept, 0
        if isinstance(images, ImageSource):
            self.batches: Batches | None = Batches(images, 0, range(BATCH), workers)
        else:
            loader = DataLoader(
                images, BATCH, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=True
            )
            self.batches, self.peer = None, endless(loader)

    def rate(self, batches: int) -> float:
        """Images a second."""
        gsq.data.shards.ROW_GROUP_BYTES = self.kept
        for _ in range(2):
            self.next()
        started = time.perf_counter()
        for _ in range(batches):
            self.next()
        return batches * BATCH / (time.perf_counter() - started)

    def next(self) -> Tensor:
        if self.batches is None:
            return next(self.peer)
        self.step += 1
        return self.batches(self.step - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="of a measurement")
    parser.add_argument("--output", type=Path, default=None, help="folder for data_cpu.json and data_cpu.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["GSQ_CACHE"] = str(folder / "cache")
        write_images(folder, arguments.images)
        size = {"image_size": SIZE, "min_crop": 1.0, "max_crop": 1.0}
        files = DataConfig(kind="image_folder", path=str(folder / "files"), **size)  # type: ignore[arg-type]
        tar = DataConfig(kind="webdataset", path=str(folder / "tar"), **size)  # type: ignore[arg-type]
        parquet = DataConfig(kind="huggingface", path=str(folder / "parquet"), **size)  # type: ignore[arg-type]
        arrow = DataConfig(kind="huggingface", path=str(folder / "arrow"), **size)  # type: ignore[arg-type]
        manifests, seconds = {}, {}
        for name, config in (("folder", files), ("tar", tar), ("parquet", parquet), ("arrow", arrow)):
            started = time.perf_counter()
            manifests[name] = manifest(config)
            seconds[name] = time.perf_counter() - started
        rows_ = ImageSource(parquet, manifests["parquet"])
        staged = ImageSource(parquet, stage(manifests["parquet"], str(folder / "node"), lambda message: None))
        sources = []
        for workers in (1, 2):
            sources += [
                Source("image_folder", workers, ImageSource(files, manifests["folder"])),
                Source("webdataset (.tar)", workers, ImageSource(tar, manifests["tar"])),
                Source("huggingface (.arrow)", workers, ImageSource(arrow, manifests["arrow"])),
                Source("huggingface (.parquet), row groups kept", workers, rows_),
                Source(
                    "huggingface (.parquet), too large to keep", workers, ImageSource(parquet, manifests["parquet"]), 0
                ),
                Source("huggingface (.parquet), staged", workers, staged),
                Source("torch DataLoader and Pillow, folder", workers, Peer(folder / "files" / "train")),
            ]
        rates: list[list[float]] = [[] for _ in sources]
        for _ in range(arguments.repeats):
            for source, found in zip(sources, rates, strict=True):
                found.append(source.rate(arguments.batches))
        bytes_ = sum(path.stat().st_size for path in (folder / "files").rglob("*.jpg"))
    medians = {(s.name, s.workers): statistics.median(found) for s, found in zip(sources, rates, strict=True)}
    peer = sources[-1].name
    rows = [
        {
            "source": name,
            "workers": workers,
            "images_per_second": round(rate, 1),
            "ratio": round(rate / medians[peer, workers], 3),
        }
        for (name, workers), rate in medians.items()
    ]
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    result = {
        "images": arguments.images,
        "mean_bytes": round(bytes_ / arguments.images),
        "size": SIZE,
        "batch": BATCH,
        "repeats": arguments.repeats,
        "row_group": ROW_GROUP,
        "manifest_images_per_second": {name: round(arguments.images / value) for name, value in seconds.items()},
        "rows": rows,
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pillow": Image.__version__},
    }
    text = table(result)
    print(text)
    if arguments.output:
        (arguments.output / "data_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.output / "data_cpu.md").write_text(text)


def table(result: dict[str, Any]) -> str:
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        by_name.setdefault(row["source"], {})[row["workers"]] = row
    lines = [
        f"# Loading images: {result['size']} x {result['size']} JPEG, images a second",
        "",
        f"{result['cpu']}, {result['cores']} cores; Python {result['versions']['python']}, torch "
        f"{result['versions']['torch']}, Pillow {result['versions']['pillow']}. {result['images']} files of "
        f"{result['mean_bytes'] / 1e3:.0f} kB in the page cache, batches of {result['batch']}, medians of "
        f"{result['repeats']}; ratio to torch's DataLoader. Parquet in row groups of {result['row_group']}. Load "
        f"average before the start: {result['load_before']} (above 0.5: other work shared the cores, rates are low).",
        "Workers are threads in gsq and processes in the DataLoader. Made by `python tests/benchmarks/data.py`.",
        "",
        "| source | 1 worker | ratio | 2 workers | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, found in by_name.items():
        cells = [f"{found[w]['images_per_second']:.0f} | {found[w]['ratio']:.2f}" for w in (1, 2)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    made = ", ".join(f"{name} {rate}" for name, rate in result["manifest_images_per_second"].items())
    lines += ["", f"The manifest, made once (every image hashed and tried): {made} images a second."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
