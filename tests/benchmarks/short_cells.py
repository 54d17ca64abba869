"""What a short cell costs on the local queue, in processor seconds, beside an earlier commit.

    python tests/benchmarks/short_cells.py [--before 8dd8987] [--rounds 1]

Eight cells of cpu-tiny with two steps each, an evaluation of 64 images included, and eight cells of a program that
imports nothing and returns at once; two at a time. Counted is the processor time of ``gsq submit`` and of every process
that it starts, since wall clock says little on a machine that others use. The science columns of both sides must be
equal. Rounds alternate in order; medians are shown. Prints a table and writes short_cells_cpu.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gsq.runs.provenance import cpu_name  # noqa: E402

CELLS, LIMIT = 8, 2.0
SWEEPS = {
    "two steps": "name: {name}\nbase: cpu-tiny\nset: {{steps: 2, evaluation: {{num_images: 64}}}}\n"
    "axes: {{seed: {{range: [0, 7]}}}}\n",
    "program": "name: {name}\nprogram: short:train\naxes: {{x: {{range: [0, 7]}}}}\n",
}
PROGRAM = "def train(config, run):\n    run.log(1, loss=0.5)\n    return {'loss': 0.5}\n"


def seconds(source: Path, folder: Path, text: str) -> float:
    """Processor seconds of gsq submit with the gsq of a source folder."""
    folder.mkdir(parents=True)
    (folder / "short.py").write_text(PROGRAM)
    (folder / "sweep.yaml").write_text(text.format(name="short"))
    (folder / "here.yaml").write_text("kind: local\nworkers: 2\n")
    variables = {
        "PYTHONPATH": f"{source}{os.pathsep}{folder}",
        "GSQ_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, **variables, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "gsq.cli", "submit", "sweep.yaml", "--cluster", "here.yaml"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    gather = [*command[:3], "gather", "short"]
    subprocess.run(gather, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def same_science(one: Path, other: Path) -> None:
    import pandas as pd

    from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table

    tables = [read_table(folder / "results" / "short.parquet") for folder in (one, other)]
    assert len(tables[0]) == CELLS
    assert set(tables[0]["state"]) == {"done"}
    columns = [name for name in SCIENCE_COLUMNS if name in tables[1]]
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns], check_exact=True)


def measure(before: Path, folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {name: {"before": [], "now": []} for name in SWEEPS}
    for number in range(rounds):
        for name, text in SWEEPS.items():
            place = folder / f"{number}-{name.replace(' ', '-')}"
            for way in sorted(("before", "now"), reverse=bool(number % 2)):
                source = before if way == "before" else ROOT
                found[name][way].append(seconds(source, place / way, text) / CELLS)
                print(name, way, f"{found[name][way][-1]:.2f} s a cell", flush=True)
            same_science(place / "before", place / "now")
    return found


def table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    rows = [
        (name, *(statistics.median(ways[way]) for way in ("before", "now"))) for name, ways in result["cells"].items()
    ]
    return (
        "# Processor seconds of a short cell on the local queue\n\n"
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, load average before "
        f"{machine['load']:.1f}; {CELLS} cells, two at a time, everything that `gsq submit` starts included; medians "
        f"of {result['rounds']} rounds. Before: commit {result['before']}. Science columns are equal bit for bit. Made "
        "by `python tests/benchmarks/short_cells.py`.\n\n| a cell of | before | now | ratio |\n|---|---:|---:|---:|\n"
        + "".join(f"| {name} | {old:.2f} s | {new:.2f} s | {new / old:.2f} |\n" for name, old, new in rows)
        + f"\nAt most {LIMIT} s asked for, for a cell of two steps.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="8dd8987", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    from importlib.metadata import version

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="gsq-short-") as name:
        before = Path(name) / "before"
        before.mkdir()
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", args.before], capture_output=True, check=True)
        subprocess.run(["tar", "x", "-C", str(before)], input=archive.stdout, check=True)
        cells = measure(before, Path(name) / "runs", args.rounds)
    machine = {"processor": cpu_name(), "cores": os.cpu_count(), "load": load, "torch": version("torch")}
    machine["system"] = platform.release()
    result = {"machine": machine, "before": args.before, "rounds": args.rounds, "cells": cells}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "short_cells_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "short_cells_cpu.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
