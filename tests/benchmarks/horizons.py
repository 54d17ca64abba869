"""Processor time of five horizons that share a trunk against that of the longest alone.

    python tests/benchmarks/horizons.py [--longest 200 800] [--share 0.2]

Trains five equally spaced lengths of cpu-tiny with the schedule wsd in one process and one thread, the longest first as
the queues do, and then the longest in a runs folder of its own; for each of the longest lengths. The time includes the
data, the evaluation of every length (64 images) and the checkpoints, and leaves out the imports, which a first short
run has paid. Prints a table and writes horizons_cpu.json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gsq import train
from gsq.sweeps.planning.cells import Cell, make_plan
from gsq.sweeps.planning.horizons import families
from gsq.sweeps.spec.sweep import load_spec

RESULTS = Path(__file__).parent / "results"
# At most so many times the longest.
LIMIT = 1.5


def cells_of(longest: int, share: float) -> list[Cell]:
    """Five lengths, the longest first."""
    optimizer = {"optimizer.schedule": "wsd", "optimizer.decay_share": share}
    base = {"evaluation.num_images": 64, "loss.discriminator_start": longest // 10, **optimizer}
    steps = [longest * i // 5 for i in range(1, 6)]
    plan = make_plan(load_spec({"name": "horizons", "base": "cpu-tiny", "set": base, "axes": {"steps": steps}}))
    ((*group,),) = families(plan.cells)
    return [cell for cell in group if isinstance(cell, Cell)]


def seconds(cell: Cell, runs: Path) -> float:
    """Processor seconds of one cell."""
    begun = time.process_time()
    train(cell.config, runs)
    return time.process_time() - begun


def measure(longest: int, share: float, folder: Path) -> dict[str, Any]:
    cells = cells_of(longest, share)
    shared = {cell.config.train.steps: seconds(cell, folder / f"shared-{longest}") for cell in cells}
    alone = seconds(cells[0], folder / f"alone-{longest}")
    trained = longest + sum(c.config.train.steps - c.config.trunk_steps for c in cells[1:])
    ratio, of_steps = sum(shared.values()) / alone, trained / longest
    # What a length costs besides its steps: images, networks, the checkpoint that it starts from, its evaluation.
    besides = (ratio - of_steps) * alone / (len(cells) - 1)
    return {
        "longest": longest,
        "seconds": shared,
        "longest_alone_seconds": alone,
        "ratio": ratio,
        "ratio_of_steps": of_steps,
        "seconds_besides_steps": besides,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--share", type=float, default=0.2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds(cells_of(10, options.share)[0], Path(folder) / "warm")
        found = [measure(longest, options.share, Path(folder)) for longest in options.longest]
    machine = f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}"
    result = {"decay_share": options.share, "limit": LIMIT, "machine": machine, "lengths": found}
    head = "".join(f" up to {one['longest']:,} steps |" for one in found)
    rows = [f"| the {word} |" for word in ("longest", "second", "third", "fourth", "shortest")]
    for one in found:
        rows = [f"{row} {used:.1f} |" for row, used in zip(rows, one["seconds"].values(), strict=True)]
    sums = {
        "all five": lambda one: f"{sum(one['seconds'].values()):.1f}",
        "the longest alone": lambda one: f"{one['longest_alone_seconds']:.1f}",
        f"ratio (limit {LIMIT:g})": lambda one: f"{one['ratio']:.2f}",
        "ratio of steps": lambda one: f"{one['ratio_of_steps']:.2f}",
        "besides its steps, a length takes": lambda one: f"{one['seconds_besides_steps']:.2f}",
    }
    text = [
        f"Five horizons of cpu-tiny, decay over {options.share:g} of the steps, processor seconds ({machine}), by",
        "`python tests/benchmarks/horizons.py`.",
        "",
        f"| |{head}",
        f"|---|{'---|' * len(found)}",
        *rows,
        *(f"| {name} |{''.join(f' {value(one)} |' for one in found)}" for name, value in sums.items()),
        "",
        "A length trains its decay alone, but loads its networks, images and checkpoint and is evaluated like any",
        "other run. So the ratio is that of the steps for long trainings, and above it for very short ones.",
    ]
    (RESULTS / "horizons_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "horizons_cpu.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
