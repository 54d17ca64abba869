"""The first hour on a GPU, in ten minutes: one table of speed, memory and exactness on one device.

    make gpu                                    (or: python tests/benchmarks/gpu.py [--seconds 600] [--only NAME ...])
    python tests/benchmarks/gpu.py --toy        the same rows at toy sizes on the CPU, as the tests run it

Every row runs in a process of its own, so that one that fails or runs out of memory leaves the others, and the table
(results/gpu.md and .json) is written after each. Rows that the time does not reach say so. gpu_rows.py has the rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Imported once, before the rows' processes are forked. Nothing here may touch the GPU: a fork cannot use it after that.
import gpu_rows

NOT_MEASURED = "not measured"
# The most seconds of one row.
ROW_SECONDS = 240.0


def child(row: gpu_rows.Row, toy: bool, answer: Path) -> None:
    os.setsid()
    try:
        found: dict[str, Any] = {"state": "measured", "lines": row.measure(toy)}
    except gpu_rows.NotMeasured as reason:
        found = {"state": NOT_MEASURED, "reason": str(reason)}
    except Exception as error:
        out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        found = {"state": "failed", "reason": "out of memory" if out_of_memory else text}
    answer.write_text(json.dumps(found))


def run(row: gpu_rows.Row, toy: bool, seconds: float) -> dict[str, Any]:
    """The row's state (measured, failed, not measured), with its lines or the reason."""
    if seconds < 5:
        return {"state": NOT_MEASURED, "reason": "no time left"}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        process = multiprocessing.get_context("fork").Process(target=child, args=(row, toy, answer))
        process.start()
        process.join(seconds)
        late = process.is_alive()
        if process.pid and (late or process.exitcode):
            # With what it started, such as the compiler's processes.
            for kill in (os.killpg, os.kill):
                try:
                    kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        process.join()
        if late:
            found = {"state": "failed", "reason": f"stopped after {seconds:.0f} s"}
        elif answer.exists():
            found = json.loads(answer.read_text())
        else:
            found = {"state": "failed", "reason": f"its process ended with code {process.exitcode}"}
    return {**found, "seconds": round(time.perf_counter() - begun, 1)}


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    device = result.get("device")
    basis = "No GPU was at hand; `make gpu` fills this table on one."
    if device:
        versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
        toy = " Toy sizes, which only show that the rows run." if result["toy"] else ""
        memory = f", {device['memory_gib']:.0f} GiB" if device["memory_gib"] else ""
        basis = f"{device['name']}{memory}; {versions}.{toy}"
    lines = [
        "# On a GPU",
        "",
        f"Device: {device['name'] if device else NOT_MEASURED}",
        "",
        f"{basis} Medians. A ratio above 1 means that gsq is faster; that of memory is the plan's estimate over the "
        "peak. Training is in bfloat16; `written plainly` is the same step as a bare loop, not compiled, in the same "
        "memory layout, with its images at hand.",
        "",
        "| row | what | gsq | compared with | ratio |",
        "|---|---|---:|---|---:|",
    ]
    for row in result["rows"]:
        if row["state"] != "measured":
            reason = f" ({row['reason']})" if row.get("reason") else ""
            lines.append(f"| {row['title']} | {row['state']}{reason} | | | |")
        for line in row.get("lines", ()):
            ratio = f"{line['ratio']:.2f}" if line.get("ratio") is not None else ""
            lines.append(f"| {row['title']} | {line['what']} | {line['ours']} | {line.get('other', '')} | {ratio} |")
    return "\n".join(lines) + "\n"


def save(result: dict[str, Any], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", table(result))):
        part = stem.with_suffix(suffix + ".part")
        part.write_text(text)
        part.replace(stem.with_suffix(suffix))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all rows together")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to measure; the others keep their last result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    begun = time.perf_counter()
    rows = gpu_rows.rows()
    unknown = {*(args.only or ())} - {row.name for row in rows}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; rows are {', '.join(row.name for row in rows)}")
    stem = args.out / ("gpu_toy" if args.toy else "gpu")
    device = run(gpu_rows.Row("device", "device", gpu_rows.device), args.toy, 120)
    here = device["lines"][0] if device["state"] == "measured" else None
    result: dict[str, Any] = {"device": here, "toy": args.toy, "rows": []}
    last = json.loads(stem.with_suffix(".json").read_text()) if stem.with_suffix(".json").exists() else None
    kept = {row["name"]: row for row in last["rows"]} if last and args.only and last["device"] == here else {}
    for row in rows:
        result["rows"].append(kept.get(row.name) or {"name": row.name, "title": row.title, "state": NOT_MEASURED})
    if here is None:
        if last is None:
            save(result, stem)
        sys.exit(f"make gpu needs a CUDA GPU: {device['reason']}. {stem}.md was not measured anew.")
    save(result, stem)
    for place, row in enumerate(rows):
        if args.only and row.name not in args.only:
            continue
        left = args.seconds - (time.perf_counter() - begun)
        result["rows"][place] = {"name": row.name, "title": row.title, **run(row, args.toy, min(left, ROW_SECONDS))}
        save(result, stem)
        print(json.dumps(result["rows"][place]), flush=True)
    print(table(result))


if __name__ == "__main__":
    main()
