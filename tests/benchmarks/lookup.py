"""Look-up timings against vector-quantize-pytorch and ``torch.cdist(...).argmin(1)``, in one process and thread count.

    python tests/benchmarks/lookup.py [--quick] [--threads 1] [--memory 20] [--seconds 6] [--small --update]

Prints a table and writes lookup_<device>.json and .md; with --update, rows of the file that are not timed stay. The
peer (pip install vector-quantize-pytorch) runs as its users run it, in eval mode without gradients; where it is absent
its columns say so. On a GPU, cdist and the bare float32 product, in tiles, stand beside it.
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
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsq.quantizers.lookup import nearest_rows

try:
    from vector_quantize_pytorch import VectorQuantize
except ImportError:
    VectorQuantize = None

DIMS, SIZES = (1, 2, 4, 8, 16, 32, 64), tuple(1 << power for power in range(8, 20))
TRAINING = [(8192, dim, size) for dim in (4, 8, 16) for size in (64, 256, 1024)]
SMALL = [(count, dim, size) for size in (16, 64, 256, 512, 1024) for count in (64, 1024, 16384) for dim in DIMS]
QUERIES = 16384
# What the peer holds for each pair of a query and a row (measured); cdist holds 4.
PEER_BYTES = 16
RUNS, LEAST = 7, 0.3


def medians_ms(calls: dict[str, Callable[[], Any]], clock: Callable[[], float], seconds: float) -> dict[str, Any]:
    """Medians of up to RUNS rounds (more within LEAST seconds) that fit in ``seconds``, without the first of several.

    The calls take turns, so that another load on the machine meets all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds and (len(times["ours"]) <= RUNS or passed < LEAST):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    timed = {name: values[1:] or values for name, values in times.items()}
    return {f"{name}_ms": statistics.median(values) * 1e3 for name, values in timed.items()} | {
        "runs": len(timed["ours"])
    }


def gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def vectors(count: int, dim: int, seed: int, device: str) -> Tensor:
    """Uniform on the sphere; at d = 1, where that is two points, normal."""
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return (F.normalize(x, dim=1) if dim > 1 else x).to(device)


def exact_share(index: Tensor, z: Tensor, rows: Tensor, normalise: bool) -> float:
    """Share of the first queries whose float64 distance is within 1e-6 of the least (equal to it where it is 0)."""
    z, rows = z.double(), rows.double()
    if normalise:
        z, rows = F.normalize(z, dim=1), F.normalize(rows, dim=1)
    count = max(16, min(256, (1 << 29) // rows.numel(), len(z)))
    right = 0
    for query, found in zip(z[:count], index[:count].tolist(), strict=True):
        distances = (rows - query).square_().sum(1)
        right += bool(distances[found] <= distances.min() * (1 + 1e-6))
    return right / count


def bare_product(z: Tensor, rows: Tensor) -> None:
    step = max(1, (1 << 28) // len(rows))
    for start in range(0, len(z), step):
        torch.mm(z[start : start + step], rows.T)


def cell(
    count: int, dim: int, size: int, device: str, memory: float, seconds: float, product: bool = False
) -> dict[str, Any]:
    """One row of the table. product: also time the bare product, as on a GPU."""
    pairs = memory * 2**30 / (PEER_BYTES if VectorQuantize is not None else 8)
    count = min(count, max(512, int(pairs / size) // 512 * 512))
    z, rows, normalise = vectors(count, dim, 1, device), vectors(size, dim, 2, device), dim > 1
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: nearest_rows(z, rows, normalise=normalise),
        "cdist": lambda: torch.cdist(z, rows).argmin(1),
    }
    if VectorQuantize is not None:
        peer = VectorQuantize(dim=dim, codebook_size=size, use_cosine_sim=normalise).eval().to(device)
        peer._codebook.embed.data.copy_(rows[None])
        ways["peer"] = lambda: peer(z[None])[1][0]
    calls: dict[str, Callable[[], Any]] = dict(ways)
    if product or device == "cuda":
        calls["product"] = lambda: bare_product(z, rows)
    # One thread's own processor time does not count what else runs on the machine.
    clock = gpu_clock if device == "cuda" else time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with torch.no_grad():
        out = {"N": count, "d": dim, "V": size} | medians_ms(calls, clock, seconds)
        return out | {f"{name}_exact": exact_share(call(), z, rows, normalise) for name, call in ways.items()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_here(count: int, dim: int, size: int) -> dict[str, float]:
    """What one look-up adds to the peak resident memory of this process."""
    z, rows = vectors(count, dim, 1, "cpu"), vectors(size, dim, 2, "cpu")
    before, begun = peak_mib(), time.perf_counter()
    nearest_rows(z, rows, normalise=dim > 1)
    seconds = time.perf_counter() - begun
    return {"N": count, "d": dim, "V": size, "before_mib": before, "added_mib": peak_mib() - before, "seconds": seconds}


def memory(count: int, dim: int, size: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", f"{count},{dim},{size}", "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def table(result: dict[str, Any]) -> str:
    """Markdown: times, and the others' as multiples of ours."""
    machine, packages = result["machine"], result["packages"]
    load = f", load average {machine['load']}" if "load" in machine else ""
    lines = [
        "# Look-up timings",
        "",
        *([result["note"], ""] if result.get("note") else []),
        f"{machine['processor']}, device {machine['device']}, threads {machine['threads']}{load}; "
        + ", ".join(f"{name} {number}" for name, number in packages.items())
        + ". Medians, of processor time where one thread runs; `peer` is vector-quantize-pytorch, `exact` the share of "
        + "exact look-ups. GPU speed: "
        + ("below." if machine["device"] != "cpu" else "not measured."),
        "",
        "| N | d | V | ours ms | peer / ours | cdist / ours | product / ours | ours exact | peer exact | cdist exact |",
        "|" + "---:|" * 10,
    ]
    for row in result["cells"]:

        def times(name: str, row: dict[str, Any] = row) -> str:
            absent = "not installed" if name == "peer" else "-"
            if name + "_ms" not in row:
                return absent
            ratio = row[name + "_ms"] / row["ours_ms"]
            return f"{ratio:.{1 if ratio >= 2 else 2}f}"

        shares = [f"{row[name]:.3f}" if name in row else "-" for name in ("ours_exact", "peer_exact", "cdist_exact")]
        ratios = [times(name) for name in ("peer", "cdist", "product")]
        cells = [
            str(row["N"]),
            str(row["d"]),
            str(row["V"]),
            f"{row['ours_ms']:.{3 if row['ours_ms'] < 1 else 2}f}",
            *ratios,
            *shares,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Peak memory that one look-up adds, in a fresh process:", "", "| N | d | V | MiB | seconds |"]
    lines.append("|" + "---:|" * 5)
    for row in result["memory"]:
        values = (row["N"], row["d"], row["V"], f"{row['added_mib']:.0f}", f"{row['seconds']:.1f}")
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines) + "\n"


def keep(result: dict[str, Any], before: dict[str, Any]) -> None:
    """Add the rows of an earlier file that were not timed again."""

    def case(row: dict[str, Any]) -> tuple[int, int, int]:
        return row["V"], row["N"], row["d"]

    timed = {case(row): row for row in result["cells"]}
    result["cells"] = sorted(({case(row): row for row in before["cells"]} | timed).values(), key=case)
    result["memory"] = result["memory"] or before["memory"]
    result["note"] = before.get("note", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every second codebook size and dimension")
    parser.add_argument("--training", action="store_true", help="only the sizes of training steps")
    parser.add_argument("--small", action="store_true", help="only few rows and few queries")
    parser.add_argument("--update", action="store_true", help="keep the rows of the file that are not timed")
    parser.add_argument("--sizes", help="codebook sizes instead of the grid's, by commas")
    parser.add_argument("--dims", help="dimensions instead of the grid's, by commas")
    parser.add_argument("--name", help="stem of the files, lookup_<device> if absent")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, default=20.0, help="GiB that a peer may take; fewer queries beyond")
    parser.add_argument("--seconds", type=float, default=6.0, help="after which a timing takes no further run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(memory_here(*map(int, args.memory_of.split(",")))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dims = list(map(int, args.dims.split(","))) if args.dims else DIMS[:: 1 + args.quick]
    sizes = list(map(int, args.sizes.split(","))) if args.sizes else SIZES[:: 1 + args.quick]
    grid = SMALL if args.small else [] if args.training else [(QUERIES, dim, size) for size in sizes for dim in dims]
    cases = ([] if args.sizes else TRAINING) + grid
    result: dict[str, Any] = {
        "machine": {
            "processor": torch.cuda.get_device_name() if device == "cuda" else processor(),
            "device": device,
            "threads": args.threads,
            "load": round(os.getloadavg()[0], 1),
        },
        "packages": {name: version(name) for name in ("torch", "scipy", "numpy", "triton", "vector-quantize-pytorch")},
        "cells": [],
        "memory": [],
    }
    for case in cases:
        row = cell(*case, device=device, memory=args.memory, seconds=args.seconds)
        result["cells"].append(row)
        print({name: round(value, 3) for name, value in row.items()}, flush=True)
    if device == "cpu" and not (args.sizes or args.training or args.small):
        for dim, count in ((1, 524288), (2, 524288), (4, 524288), (8, 524288), (16, 1024)):
            result["memory"].append(memory(count, dim, 524288, args.threads))
            print(result["memory"][-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / (args.name or f"lookup_{device}")
    if args.update:
        keep(result, json.loads(stem.with_suffix(".json").read_text()))
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
