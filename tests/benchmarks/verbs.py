"""Processor time of short commands, start-up included, beside an earlier commit's.

    python tests/benchmarks/verbs.py [--before COMMIT] [--rounds 3] [--count]

Whole processes with one thread, user and system time. The two trees take turns, on the same table, with Python's
bytecode and gsq's caches filled as after a first call; medians. A machine that shares its processor is faster at one
hour than at another: --count has valgrind (Debian's package) count instructions as well, which are the same at any
hour, and takes minutes. Prints a table and writes verbs_cpu.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lookup import processor, version

ROOT = Path(__file__).resolve().parents[2]
GSQ = ["-c", "from gsq.cli.main import main; main()"]
TRAIN = ["train", "cpu-tiny", "-s", "steps=2", "-s", "evaluation.num_images=64"]
# Arguments of Python, and the seconds asked for; of the tokenizer, those beyond torch.
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "import torch": (["-c", "import torch"], None),
    "import gsq; gsq.Tokenizer": (["-c", "import gsq; gsq.Tokenizer"], 0.2),
    "gsq report quickstart": ([*GSQ, "report", "quickstart", "--output", "{out}.html"], 4.0),
    "gsq fit quickstart --compare": ([*GSQ, "fit", "quickstart", "--compare"], 2.5),
    "gsq plot quickstart": ([*GSQ, "plot", "quickstart", "--output", "{out}.png"], 2.0),
    "gsq train cpu-tiny, 2 steps": ([*GSQ, *TRAIN], None),
}


def seconds(arguments: list[str], tree: Path, folder: Path) -> float:
    """Processor seconds of a Python process that imports gsq from a tree."""
    before = os.times()
    run([], arguments, tree, folder)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def instructions(arguments: list[str], tree: Path, folder: Path) -> int:
    """Instructions of such a process, counted by valgrind."""
    run([], arguments, tree, folder)  # fills caches
    done = run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"], arguments, tree, folder)
    return int(re.findall(r"Collected : (\d+)", done.stderr)[-1])


def run(before: list[str], arguments: list[str], tree: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    command = [*before, sys.executable, *(one.format(out=folder / "output") for one in arguments)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    own |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    own |= {"GSQ_CACHE": str(folder / "cache"), "GSQ_RUNS": tempfile.mkdtemp(dir=folder)}
    return subprocess.run(command, cwd=tree, env={**os.environ, **own}, check=True, capture_output=True, text=True)


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Short commands",
        "",
        f"{result['processor']}, one thread, load average {result['load']}; "
        + ", ".join(f"{name} {number}" for name, number in result["packages"].items())
        + f". Processor seconds of whole processes, medians of {result['rounds']}, in turns with commit "
        f"`{result['before']}`, and billions of instructions, which do not depend on how fast the machine is at that "
        "hour.",
        "",
        "| command | seconds | asked for | before | before / now | instructions | before | before / now |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["commands"].items():
        wanted = row["wanted"]
        if name.endswith("Tokenizer"):
            wanted = f"{result['commands']['import torch']['now'] + wanted:.2f}"
        now, before = row["now"], row["before"]
        cells = [f"`{name}`", f"{now:.2f}", f"{wanted or '-'}", f"{before:.2f}", f"{before / now:.2f}"]
        if row["instructions"]:
            now, before = (row["instructions"][which] / 1e9 for which in ("now", "before"))
            cells += [f"{now:.1f}", f"{before:.1f}", f"{before / now:.2f}"]
        else:
            cells += ["not counted", "not counted", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", action="store_true", help="count instructions, too (valgrind)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", args.before], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    load = os.getloadavg()[0]
    times: dict[str, dict[str, list[float]]] = {name: {"now": [], "before": []} for name in COMMANDS}
    counts: dict[str, dict[str, int]] = {name: {} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        tree.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
        # The first round fills caches.
        for number in range(args.rounds + 1):
            for name, (arguments, _) in COMMANDS.items():
                for which, where in (("now", ROOT), ("before", tree)):
                    found = seconds(arguments, where, Path(folder))
                    if number:
                        times[name][which].append(found)
                print(
                    name, {which: round(values[-1], 2) for which, values in times[name].items() if values}, flush=True
                )
        for name, (arguments, _) in COMMANDS.items() if args.count else ():
            if arguments[:2] == GSQ:
                with ThreadPoolExecutor() as pool:
                    jobs = {
                        which: pool.submit(instructions, arguments, where, Path(folder) / which)
                        for which, where in (("now", ROOT), ("before", tree))
                    }
                counts[name] = {which: job.result() for which, job in jobs.items()}
                print(name, counts[name], flush=True)
    result = {
        "processor": processor(),
        "packages": {name: version(name) for name in ("torch", "numpy", "scipy", "pandas", "matplotlib", "sympy")},
        "before": commit,
        "rounds": args.rounds,
        "load": round(load, 1),
        "commands": {
            name: {
                "wanted": wanted,
                **{which: statistics.median(values) for which, values in times[name].items()},
                "instructions": counts[name],
            }
            for name, (_, wanted) in COMMANDS.items()
        },
    }
    (args.out / "verbs_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "verbs_cpu.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
