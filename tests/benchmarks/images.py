"""A cell on large originals against the same cell on the same pictures made small, and against an earlier commit.

    python tests/benchmarks/images.py [--steps 60] [--rounds 3] [--before CHECKOUT] [--pictures DIR] [--output DIR]

60 photographs of 24 megapixels (6,000 x 4,000, JPEG of quality 90; parts of scikit-image's photographs, enlarged, with
some noise) and the same at 768 x 512. A cell trains cpu-tiny and evaluates once, in a process of its own with one
thread; each has another seed. The first cell on the large ones decodes them; the next ones find them decoded. What
counts is processor time, since other work may share the cores; wall clock, largest resident memory and the memory that
``gsq plan`` expects stand beside it. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
COUNT, LARGE, SMALL = 60, (6000, 4000), (768, 512)
PHOTOS = (
    *("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png"),
    *("motorcycle_right.png", "retina.jpg", "rocket.jpg"),
)
SET = {"data.kind": "image_folder", "evaluation.num_images": 16}
CELL = """
import json, os, resource, sys, time
begun = time.perf_counter()
from pathlib import Path
from gsq import override, preset
from gsq.runs.execute import execute
execute(override(preset("cpu-tiny"), json.loads(sys.argv[2])), Path(sys.argv[1]))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": used.ru_utime + used.ru_stime, "wall": time.perf_counter() - begun,
                  "memory": used.ru_maxrss * 1024}))
"""


def make_pictures(folder: Path) -> None:
    """Write ``large`` and ``small`` below ``folder``, unless they are there."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations
    photos = Path(spec.submodule_search_locations[0]) / "data"
    for name in ("large", "small"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(COUNT):
        if (folder / "small" / f"{i:02d}.jpg").exists():
            continue
        with Image.open(photos / PHOTOS[i % len(PHOTOS)]) as opened:
            source = opened.convert("RGB")
        random = np.random.default_rng(i)
        width = min(source.width, source.height * 1.5) * random.uniform(0.6, 1)
        left, top = random.random(2) * (source.width - width, source.height - width / 1.5)
        large = source.resize(LARGE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + width / 1.5))
        noise = np.tile(random.integers(-6, 7, (1000, 1500, 3), dtype=np.int16), (4, 4, 1))
        large = Image.fromarray((np.asarray(large) + noise).clip(0, 255).astype(np.uint8))
        large.save(folder / "large" / f"{i:02d}.jpg", quality=90)
        large.resize(SMALL, Image.Resampling.BICUBIC).save(folder / "small" / f"{i:02d}.jpg", quality=95)


def environment(checkout: Path, folder: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(checkout), "GSQ_RUNS": str(folder / "runs"), "GSQ_CACHE": str(folder / "cache")}
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **own}


def started(command: list[str], checkout: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    # Python puts the working folder before PYTHONPATH.
    more: dict[str, Any] = {"env": environment(checkout, folder), "cwd": folder, "stdout": subprocess.PIPE}
    return subprocess.run(command, check=True, text=True, **more)


def planned(checkout: Path, folder: Path, values: dict[str, Any]) -> dict[str, float]:
    """Bytes that gsq plan expects for a cell, and the seconds of the plan, the first look at the images included."""
    sweep = folder / "sweep.yaml"
    lines = [f"  {key}: {json.dumps(value)}" for key, value in values.items()]
    sweep.write_text("\n".join(("name: images", "base: cpu-tiny", "set:", *lines, "axes: {seed: [0]}")) + "\n")
    command = [sys.executable, "-m", "gsq.cli", "plan", str(sweep), "--json"]
    begun = time.perf_counter()
    ran = started(command, checkout, folder)
    seconds = time.perf_counter() - begun
    return {"memory": json.loads(ran.stdout)["forecast"]["memory_bytes"], "seconds": seconds}


def cell(checkout: Path, folder: Path, values: dict[str, Any], seed: int) -> dict[str, float]:
    command = [sys.executable, "-c", CELL, str(folder / "runs"), json.dumps({**values, "seed": seed})]
    ran = started(command, checkout, folder)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def measured(checkout: Path, pictures: Path, folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Plan, first cell and medians of the next cells, on small and large pictures, which take turns."""
    result: dict[str, Any] = {}
    for name in ("small", "large"):
        (folder / name).mkdir(parents=True)
        values = {**SET, "data.path": str(pictures / name), "train.steps": steps}
        result[name] = {"plan": planned(checkout, folder / name, values), "values": values}
        result[name]["first"] = cell(checkout, folder / name, values, 100)
        print(checkout.name, name, result[name], flush=True)
    rows: dict[str, list[dict[str, float]]] = {"small": [], "large": []}
    for seed in range(rounds):
        for name, found in rows.items():
            found.append(cell(checkout, folder / name, result[name]["values"], seed))
            print(checkout.name, name, found[-1], flush=True)
    for name, found in rows.items():
        result[name]["next"] = (
            {key: statistics.median(one[key] for one in found) for key in found[0]} if found else None
        )
        files = [path for path in (folder / name / "cache").rglob("*") if path.is_file()]
        result[name]["cache_bytes"] = sum(path.stat().st_size for path in files)
    return result


def table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        "# Cells on photographs of 24 megapixels, and on the same at 512 pixels",
        "",
        f"{machine['processor']}, {machine['cores']} cores, load average before {machine['load']:.1f}; torch "
        f"{machine['torch']}, Pillow {machine['pillow']}. cpu-tiny, {result['steps']} steps, {COUNT} photographs; "
        f"medians of {result['rounds']} cells. The ratio is that of processor time to the same cell on small pictures. "
        "Memory is the largest resident one.",
        "",
        "| commit | pictures | cell | processor s | ratio | wall s | memory MB | plan MB |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for commit in ("before", "now"):
        for name in ("small", "large"):
            for which in ("first", "next"):
                found = result.get(commit, {}).get(name, {}).get(which)
                if not found:
                    lines.append(f"| {commit} | {name} | {which} | not measured | | | | |")
                    continue
                base = (result[commit]["small"][which] or result[commit]["small"]["first"])["seconds"]
                plan = result[commit][name]["plan"]["memory"]
                lines.append(
                    f"| {commit} | {name} | {which} | {found['seconds']:.1f} | {found['seconds'] / base:.2f} | "
                    f"{found['wall']:.1f} | {found['memory'] / 1e6:.0f} | {plan / 1e6:.0f} |"
                )
    if "now" in result:
        size = result["now"]["large"]["cache_bytes"] / 1e9
        lines += ["", f"The decoded and resized large pictures take {size:.2f} GB on disk."]
    return "\n".join(lines) + "\n"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit, of which one cell is measured")
    parser.add_argument("--pictures", type=Path, help="folder to keep the pictures in")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "pillow": PIL.__version__,
    }
    result: dict[str, Any] = {"machine": machine, "steps": args.steps, "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = (args.pictures or folder / "pictures").resolve()
        make_pictures(pictures)
        args.output.mkdir(parents=True, exist_ok=True)
        for commit, checkout, rounds in (("now", ROOT, args.rounds), ("before", args.before, 0)):
            if checkout is not None:
                result[commit] = measured(checkout.resolve(), pictures, folder / commit, args.steps, rounds)
                (args.output / "images_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
                (args.output / "images_cpu.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
