"""What the commands of a large sweep take: whole processes, start-up included, on 10,000 and 100,000 cells.

    python tests/benchmarks/scale.py [--cells N ...] [--what plan submit status gather] [--repeats 3] [--folder DIR]

The sweep is cpu-tiny with five axes and a constraint. Its run folders are made here, beforehand: every state, one or
two attempts each with what a real one leaves for these commands to read (status.json, env.json, an evaluation), and
every cell has a job in an array on a SLURM whose sacct and squeue are small scripts that print prepared answers and
count how often they are asked; sbatch takes everything at once. Each program runs --repeats times; medians of wall
clock and of processor time (user and system, which do not count what else runs on the machine), and the largest
resident memory of any run. Every output is compared with what was put there. Prints a table and writes scale_cpu.json
and .md; a row stays there until it is measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scale_runs import FATES, submitted, write_sweep, write_tools

ROOT = Path(__file__).resolve().parents[2]
# What the commands may take at 10,000 cells: seconds, and MiB; and at 100,000 over 10,000 cells.
LIMITS = {
    "plan": 3.0,
    "plan --json": 3.0,
    "plan (Python)": 3.0,
    "status": 2.0,
    "status --json": 2.0,
    "gather, first": 10.0,
    "gather, one run changed": None,
    "gather, nothing changed": 1.5,
    "submit": 5.0,
    "submit, nothing missing": None,
}
MEMORY_MIB, RATIO = 500, 12


# A small process of its own starts the command and waits for it: on Linux the peak memory of a process counts what its
# parent held when it was started.
LAUNCHER = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
wall = time.perf_counter() - begun
code = os.waitstatus_to_exitcode(status)
numbers = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024, "code": code}
with open(sys.argv[1], "w") as file:
    json.dump(numbers, file)
"""


def measured(command: list[str], environment: dict[str, str], folder: Path) -> tuple[dict[str, float], str]:
    """Wall and processor seconds and peak resident MiB of a process, and what it printed."""
    found = folder / "measured.json"
    launch = [sys.executable, "-S", "-E", "-c", LAUNCHER, str(found), *command]
    done = subprocess.run(launch, capture_output=True, text=True, check=True, env=environment, cwd=folder)
    numbers = json.loads(found.read_text())
    if numbers["code"]:
        raise SystemExit(f"{' '.join(command)}: exit code {numbers['code']}\n{done.stderr}")
    return numbers, done.stdout


class Bench:
    """One size of sweep in a folder of its own."""

    def __init__(self, folder: Path, cells: int, repeats: int) -> None:
        self.folder, self.cells, self.repeats = folder, cells, repeats
        folder.mkdir(parents=True)
        self.source = write_sweep(folder, cells)
        self.name = self.source.stem
        self.runs, self.tools = folder / "runs", write_tools(folder / "tools")
        self.environment = {
            **os.environ,
            "GSQ_RUNS": str(self.runs),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }
        self.rows: list[dict[str, Any]] = []

    def time(
        self,
        what: str,
        command: list[str],
        check: Callable[[str], None],
        before: Callable[[], None] = lambda: None,
        calls: dict[str, int] | None = None,
    ) -> None:
        """Run it, check what it printed and, where given, how often sacct and squeue were asked, and add a row."""
        found, load = [], os.getloadavg()[0]
        for _ in range(self.repeats):
            before()
            (self.tools / "calls").unlink(missing_ok=True)
            numbers, printed = measured([sys.executable, *command], self.environment, self.folder)
            check(printed)
            if calls is not None:
                asked = Counter((self.tools / "calls").read_text().split())
                assert dict(asked) == calls, f"{what}: asked {dict(asked)}, expected {calls}"
            found.append(numbers)
        self.rows.append(
            {
                "what": what,
                "cells": self.cells,
                "wall_s": statistics.median(n["wall"] for n in found),
                "cpu_s": statistics.median(n["cpu"] for n in found),
                "peak_mib": max(n["mib"] for n in found),
                "runs": self.repeats,
                "load": load,
            }
        )
        print({key: round(v, 2) if isinstance(v, float) else v for key, v in self.rows[-1].items()}, flush=True)

    def gsq(self, *words: str) -> list[str]:
        return ["-m", "gsq.cli", *words]

    def plan(self) -> None:
        source = str(self.source)

        def table(printed: str) -> None:
            assert f"{self.cells:,} cells" in printed and f"... and {self.cells - 60} more" in printed, printed[-500:]

        def rows(printed: str) -> None:
            assert len({cell["signature"] for cell in json.loads(printed)["cells"]}) == self.cells

        self.time("plan", self.gsq("plan", source), table)
        self.time("plan --json", self.gsq("plan", "--json", source), rows)
        program = "import sys; from gsq import sweeps; print(len(sweeps.plan(sweeps.load_spec(sys.argv[1])).cells))"
        self.time("plan (Python)", ["-c", program, source], lambda printed: self._equal(int(printed), self.cells))

    def _equal(self, found: object, expected: object) -> None:
        assert found == expected, f"found {found}, expected {expected}"

    def expected_states(self) -> dict[str, int]:
        return dict(Counter(FATES[index % len(FATES)][2] for index in range(self.cells)))

    def status(self) -> None:
        self._submitted()
        states = self.expected_states()

        def table(printed: str) -> None:
            words = [f"{states[state]} {state}" for state in ("queued", "running", "done", "failed")]
            assert ", ".join(words) in printed and f"... and {self.cells - 60} more" in printed, printed[-500:]

        def rows(printed: str) -> None:
            document = json.loads(printed)
            self._equal({state: count for state, count in document["counts"].items() if count}, states)
            self._equal(Counter(cell["state"] for cell in document["cells"]), Counter(states))

        once = {"sacct": 1, "squeue": 1}
        self.time("status", self.gsq("status", self.name), table, calls=once)
        self.time("status --json", self.gsq("status", "--json", self.name), rows, calls=once)

    def gather(self) -> None:
        import pyarrow.parquet as pq

        self._submitted()
        output = self.folder / "results" / f"{self.name}.parquet"
        states = self.expected_states()

        def check(_: str) -> None:
            found = pq.read_table(output, columns=["state", "signature", "rfid"])
            self._equal(Counter(found["state"].to_pylist()), Counter(states))
            self._equal(len(found) - found["rfid"].null_count, states["done"])

        once = {"sacct": 1, "squeue": 1}
        gather = self.gsq("gather", self.name)
        self.time("gather, first", gather, check, lambda: output.unlink(missing_ok=True), once)
        status_file = next(self.runs.glob("[0-9a-f][0-9a-f]/*/attempts/1/status.json"))

        def change() -> None:
            status = json.loads(status_file.read_text()) | {"seconds": time.time()}
            partial = status_file.with_name(".status.json.partial")
            partial.write_text(json.dumps(status))
            partial.replace(status_file)

        self.time("gather, one run changed", gather, check, change, once)
        self.time("gather, nothing changed", gather, check, calls=once)

    def submit(self) -> None:
        """To an sbatch that takes everything at once, into an empty runs folder; then again, with all of it waiting."""
        from gsq.sweeps.planning.folder import SweepFolder
        from gsq.sweeps.state import journal

        runs = self.folder / "handed-over"
        place = SweepFolder(runs, self.name)
        submit = self.gsq("submit", str(self.source), "--cluster", "slurm")

        def empty() -> None:
            shutil.rmtree(runs, ignore_errors=True)
            (self.tools / "queue").write_text("")

        def check(printed: str) -> None:
            found = re.findall(r"submitted SLURM job \d+: ([\d,]+) cells", printed)
            arrays = [int(count.replace(",", "")) for count in found]
            asked = Counter((self.tools / "calls").read_text().split())
            self._equal((sum(arrays), len(arrays)), (self.cells, asked["sbatch"]))

        def waiting() -> None:
            jobs = [job for entry in journal.entries(place) for job in entry.jobs.values()]
            (self.tools / "queue").write_text("".join(f"{job}|PENDING\n" for job in jobs))

        def nothing(printed: str) -> None:
            assert "nothing to submit" in printed, printed

        before, self.environment["GSQ_RUNS"] = self.environment["GSQ_RUNS"], str(runs)
        self.time("submit", submit, check, empty)
        self.time("submit, nothing missing", submit, nothing, waiting)
        self.environment["GSQ_RUNS"] = before
        empty()

    def _submitted(self) -> None:
        if not self.runs.exists():
            print(f"making {self.cells} run folders", flush=True)
            submitted(self.source, self.runs, self.tools)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(result: dict[str, Any]) -> str:
    """Markdown: the smaller size against its limits, the larger one against the smaller."""
    machine, (small, *larger) = result["machine"], sorted({row["cells"] for row in result["rows"]})
    found = {(row["what"], row["cells"]): row for row in result["rows"]}
    loads, runs = [row["load"] for row in result["rows"]], [row["runs"] for row in result["rows"]]
    lines = [
        "# Commands on large sweeps",
        "",
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; load average before a "
        f"command {min(loads):.1f} to {max(loads):.1f} (beside other work, wall clocks say little). Whole processes, "
        f"start-up included: medians of {min(runs)} to {max(runs)} runs, wall clock (and processor time); "
        "the largest resident memory of any. Limits are for 10,000 cells; ratio is that of the "
        f"processor times of the two sizes, at most {RATIO} asked for.",
        "",
        f"| command | {small} cells | limit | MiB |" + "".join(f" {n} cells | MiB | ratio |" for n in larger),
        "|---|" + "---:|" * (3 + 3 * len(larger)),
    ]
    for what, limit in LIMITS.items():
        if (what, small) not in found:
            continue
        one = found[what, small]
        cells = [
            f"`gsq {what}`" if "," not in what and "(" not in what else what,
            f"{one['wall_s']:.2f} s ({one['cpu_s']:.2f})",
            f"{limit} s" if limit else "-",
            f"{one['peak_mib']:.0f}",
        ]
        for n in larger:
            more = found.get((what, n))
            cells += (
                [
                    f"{more['wall_s']:.1f} s ({more['cpu_s']:.1f})",
                    f"{more['peak_mib']:.0f}",
                    f"{more['cpu_s'] / one['cpu_s']:.1f}",
                ]
                if more
                else ["not measured"] * 3
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000], help="sizes; multiples of 1000")
    parser.add_argument("--what", nargs="+", choices=("plan", "submit", "status", "gather"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the run folders go (100,000 need 5 GB); default: temporary")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for cells in args.cells:
            bench = Bench(Path(folder) / str(cells), cells, args.repeats)
            for what in args.what or ("plan", "submit", "status", "gather"):
                getattr(bench, what)()
            rows += bench.rows
    path = args.out / "scale_cpu.json"
    new = {(row["what"], row["cells"]) for row in rows}
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    result = {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "rows": [row for row in old if (row["what"], row["cells"]) not in new] + rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
