"""Processor time of five horizons that share a trunk against that of the longest alone.

    python tests/benchmarks/horizons.py [--longest 1000] [--share 0.2]

Trains five equally spaced lengths of cpu-tiny with the schedule wsd in one process and one thread, the longest first as
the queues do, and then the longest in a runs folder of its own. The time includes the data, the evaluation of every
length (64 images) and the checkpoints, and leaves out the imports, which a first short run has paid. Prints a table and
writes horizons_cpu.json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=1000)
    parser.add_argument("--share", type=float, default=0.2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = cells_of(options.longest, options.share)
    with tempfile.TemporaryDirectory() as folder:
        seconds(cells_of(10, options.share)[0], Path(folder) / "warm")
        shared = {cell.config.train.steps: seconds(cell, Path(folder) / "shared") for cell in cells}
        alone = seconds(cells[0], Path(folder) / "alone")
    trained = options.longest + sum(c.config.train.steps - c.config.trunk_steps for c in cells[1:])
    result = {
        "decay_share": options.share,
        "seconds": shared,
        "longest_alone_seconds": alone,
        "ratio": sum(shared.values()) / alone,
        "ratio_of_steps": trained / options.longest,
        "limit": LIMIT,
        "machine": f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}",
    }
    rows = [f"| {steps:,} | {used:.1f} |" for steps, used in sorted(shared.items())]
    text = [
        f"Five horizons of cpu-tiny, decay over {options.share:g} of the steps ({result['machine']}), by",
        "`python tests/benchmarks/horizons.py`.",
        "",
        "| steps | processor seconds |",
        "|---|---|",
        *rows,
        f"| all five | {sum(shared.values()):.1f} |",
        f"| the longest alone | {alone:.1f} |",
        f"| ratio (limit {LIMIT:g}) | {result['ratio']:.2f} |",
        f"| ratio of steps | {result['ratio_of_steps']:.2f} |",
    ]
    (RESULTS / "horizons_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "horizons_cpu.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
