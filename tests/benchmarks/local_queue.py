"""The local queue against a pool that starts one fresh process, which imports torch, for each job.

    python tests/benchmarks/local_queue.py [--jobs 24] [--workers 2] [--seconds 10] [--rounds 1]

Both train the same cells of cpu-tiny (seeds 0, 1, ...) with the same function, gsq.runs.execute.execute, in fresh
processes of one thread, the same number at a time, each into an empty runs folder of its own. The steps of a cell are
chosen first so that it takes --seconds alone, start-up and evaluation included. The pool is the least that could do
it: threads of concurrent.futures that each start a process and wait for it, without journal, retries or a copy of the
source. The queue is the whole command, ``gsq submit SWEEP``: its own start-up, the plan, the copy of the source,
states read from disk four times a second. What is compared is wall clock over a round of all jobs; rounds alternate in
order, and medians are shown. Prints a table and writes local_queue_cpu.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# At most so much more than the pool.
LIMIT = 0.10
JOB = """
import sys
from pathlib import Path
import torch
from gsq import override, preset
from gsq.runs.execute import execute
runs, steps, seed = sys.argv[1:]
execute(override(preset("cpu-tiny"), {"steps": int(steps), "seed": int(seed)}), Path(runs))
"""


def environment(runs: Path) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT), "GSQ_RUNS": str(runs), "CUDA_VISIBLE_DEVICES": ""}


def job(runs: Path, steps: int, seed: int) -> float:
    """Seconds of one cell in a fresh process."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", JOB, str(runs), str(steps), str(seed)]
    subprocess.run(command, env=environment(runs), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def steps_for(seconds: float, folder: Path) -> int:
    """From two short cells: what a step takes, and everything else."""
    job(folder / "warm", 10, 0)
    few, many = job(folder / "few", 20, 0), job(folder / "many", 140, 0)
    step = (many - few) / 120
    return max(10, round((seconds - (few - 20 * step)) / step))


def pool(folder: Path, jobs: int, workers: int, steps: int) -> float:
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(lambda seed: job(folder / "pool", steps, seed), range(jobs)))
    return time.perf_counter() - begun


def local_queue(folder: Path, jobs: int, workers: int, steps: int) -> float:
    sweep, cluster = folder / "timed.yaml", folder / "here.yaml"
    sweep.write_text(
        f"name: timed\nbase: cpu-tiny\nset: {{steps: {steps}}}\naxes: {{seed: {{range: [0, {jobs - 1}]}}}}\n"
    )
    cluster.write_text(f"kind: local\nworkers: {workers}\n")
    command = [sys.executable, "-m", "gsq.cli", "submit", str(sweep), "--cluster", str(cluster)]
    begun = time.perf_counter()
    subprocess.run(command, env=environment(folder / "queue"), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def finished(runs: Path, jobs: int) -> None:
    """Raise unless every cell is done in one attempt."""
    states = [json.loads(p.read_text())["state"] for p in runs.glob("[0-9a-f][0-9a-f]/*/attempts/*/status.json")]
    assert states == ["done"] * jobs, f"{runs}: {states}"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    more = result["queue_s"] / result["pool_s"] - 1
    return (
        "# The local queue against a pool of fresh processes\n\n"
        f"{machine['processor']}, {machine['cores']} cores, load average before {machine['load']:.1f}; "
        f"{result['jobs']} cells of {result['steps']} steps of cpu-tiny ({result['alone_s']:.1f} s alone), "
        f"{result['workers']} at a time; wall clock, medians of {len(result['rounds'])} rounds.\n\n"
        "| | seconds | a job and worker |\n|---|---:|---:|\n"
        + "".join(
            f"| {name} | {result[key]:.1f} | {result[key] * result['workers'] / result['jobs']:.2f} |\n"
            for name, key in (("pool", "pool_s"), ("local queue", "queue_s"))
        )
        + f"\nThe queue takes {more:+.1%} (at most {LIMIT:+.0%} asked for).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one job alone")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    load, rounds = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = steps_for(args.seconds, folder)
        alone = job(folder / "alone", steps, 0)
        for number in range(args.rounds):
            ways = {"pool": pool, "queue": local_queue}
            times = {}
            for way in sorted(ways, reverse=bool(number % 2)):
                place = folder / f"{number}-{way}"
                place.mkdir()
                times[f"{way}_s"] = ways[way](place, args.jobs, args.workers, steps)
                finished(place / way, args.jobs)
            rounds.append(times)
            print(times, flush=True)
    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": load},
        "jobs": args.jobs,
        "workers": args.workers,
        "steps": steps,
        "alone_s": alone,
        "rounds": rounds,
        **{key: statistics.median(r[key] for r in rounds) for key in ("pool_s", "queue_s")},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "local_queue_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "local_queue_cpu.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
