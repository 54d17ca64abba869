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
# What becomes of a cell, in turn: states of its attempts, sacct's word for its job, and what gsq status must say.
FATES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("done",), "COMPLETED", "done"),
    (("preempted", "done"), "COMPLETED", "done"),
    (("done",), "COMPLETED", "done"),
    (("running",), "RUNNING", "running"),
    (("diverged",), "FAILED", "failed"),
    (("preempted", "running"), "RUNNING", "running"),
    (("done",), "COMPLETED", "done"),
    ((), "PENDING", "queued"),
    (("preempted", "out_of_memory"), "FAILED", "failed"),
    (("preempted",), "PENDING", "queued"),
)
ARRAY = 1000
NODE = "node17"


def write_sweep(folder: Path, cells: int) -> Path:
    """A sweep file of that many cells, and about a quarter as many that a constraint leaves out."""
    seeds = cells // 1000
    assert cells == seeds * 1000, "a multiple of 1000 cells"
    path = folder / f"scale-{cells}.yaml"
    path.write_text(
        f"name: scale-{cells}\n"
        "base: cpu-tiny\n"
        "axes:\n"
        "  latent_dim: [8, 16, 32, 64, 128]\n"
        "  groups: [1, 2, 4, 8, 16]\n"
        "  codebook_size: {log2: [6, 15]}\n"
        "  width: [16, 32, 64, 128, 256]\n"
        f"  seed: {{range: [0, {seeds - 1}]}}\n"
        "where:\n"
        "  - latent_dim % groups == 0 and groups <= 8 and bits_per_pixel <= 100\n"
    )
    return path


def evaluation(step: int, index: int) -> dict[str, Any]:
    groups = [0.5 + index % 7 / 20] * 4
    return {
        "protocol": "dd46299f57e9",
        "protocol_fields": {"split": "validation", "num_images": 384, "features": "efficientnet_lite0"},
        "num_images": 384,
        "features": "efficientnet_lite0@57934424",
        "feature_dim": 320,
        "rank_deficient": False,
        "rfid": 80.0 + index % 101,
        "psnr_db": 25.0,
        "ssim": 0.75,
        "mse": 0.018,
        "usage": 0.98,
        "perplexity": 497.0,
        "usage_per_group": groups,
        "perplexity_per_group": [100 * share for share in groups],
        "effective_bits": 29.9,
        "tokens": 393216,
        "uniform_usage": 1.0,
        "step": step,
        "images_seen": 8 * step,
        "train_flops": 8.5e11,
    }


ENVIRONMENT = {
    "source": "86847a790d03",
    "commit": "3d14fb30a7e464d545f4718f2b5c6b778b0f7f64",
    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "scipy": "1.17.1", "pillow": "13.0.0"},
    "device": "a processor",
    "threads": 1,
    "world_size": 1,
    "micro_batch": 8,
    "execution_signature": "c0a4ca0a9d9c",
}


def write_attempt(path: str, state: str, index: int, steps: int) -> None:
    os.makedirs(path)
    failure = None if state in ("done", "running") else state
    now = time.time()
    status = {
        "state": "failed" if failure else state,
        "step": steps if state == "done" else 7 + index % 90,
        "steps": steps,
        "started": now - 60,
        "heartbeat": now,
        "seconds": 60.0,
        "host": NODE,
        "node": NODE,
        "pid": 1000 + index,
        "images_per_second": 55.5,
        "peak_memory_bytes": 5 << 27,
        "processes": 1,
    }
    if failure:
        status |= {"failure": failure, "message": f"{failure} at step {status['step']}"}
    with open(f"{path}/status.json", "w") as file:
        json.dump(status, file, indent=1)
    with open(f"{path}/env.json", "w") as file:
        json.dump(ENVIRONMENT, file, indent=1)
    if state == "done":
        os.mkdir(f"{path}/evaluations")
        with open(f"{path}/evaluations/dd46299f57e9-{steps:08d}.json", "w") as file:
            json.dump(evaluation(steps, index), file, indent=1)


def submitted(source: Path, runs: Path, tools: Path) -> None:
    """The sweep folder, run folders and the answers of sacct and squeue, as after a submission to SLURM."""
    from gsq.sweeps import load_spec, plan
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.state import journal

    made = plan(load_spec(str(source)))
    folder = SweepFolder(runs, made.name)
    folder.write_plan(made)
    accounted: list[str] = []
    for start in range(0, len(made.cells), ARRAY):
        members = made.cells[start : start + ARRAY]
        array = 100_000 + start // ARRAY
        waiting = []
        for task, cell in enumerate(members):
            index = start + task
            attempts, job_state, _ = FATES[index % len(FATES)]
            for number, state in enumerate(attempts, 1):
                path = f"{runs}/{cell.signature[:2]}/{cell.signature}/attempts/{number}"
                write_attempt(path, state, index, cell.config.train.steps)
            if job_state == "PENDING":
                waiting.append(str(task))
            else:
                accounted.append(f"{array}_{task}|{job_state}")
        accounted.append(f"{array}_[{','.join(waiting)}%32]|PENDING")
        number = start // ARRAY + 1
        entry = journal.Entry(
            path=journal.path_of(folder, number),
            name=f"gsq-{made.name}-{number}",
            cluster="slurm",
            source="",
            minutes=15,
            memory_gb=2,
            time=time.time(),
            host=NODE,
            pid=1,
            signatures=tuple(cell.signature for cell in members),
        )
        journal.add(entry, {})
        entry.decide(str(array))
    (tools / "answer").write_text("\n".join(accounted) + "\n")


def write_tools(folder: Path) -> Path:
    """sacct and squeue print prepared files, sbatch and scontrol as SLURM's do; each adds its name to ``calls``."""
    folder.mkdir(parents=True)
    (folder / "answer").touch()
    (folder / "queue").touch()
    scripts = {
        "sacct": f"exec cat {folder}/answer",
        "squeue": f"exec cat {folder}/queue",
        "sbatch": f'echo "Submitted batch job $(grep -c sbatch {folder}/calls)"',
        "scontrol": "echo 'MaxArraySize = 1001'",
    }
    for name, answer in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\necho {name} >> {folder}/calls\n{answer}\n")
        path.chmod(0o755)
    return folder


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
            assert f"{self.cells} cells" in printed and f"... and {self.cells - 60} more" in printed, printed[-500:]

        def rows(printed: str) -> None:
            assert len({cell["signature"] for cell in json.loads(printed)["cells"]}) == self.cells

        self.time("plan", self.gsq("plan", source), table)
        self.time("plan --json", self.gsq("plan", "--json", source), rows)
        program = "import sys, sweeps; print(len(sweeps.plan(sweeps.load_spec(sys.argv[1])).cells))"
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
            arrays = [int(count) for count in re.findall(r"submitted SLURM job \d+: (\d+) cells", printed)]
            asked = Counter((self.tools / "calls").read_text().split())
            self._equal((sum(arrays), len(arrays)), (self.cells, asked["sbatch"]))

        def waiting() -> None:
            jobs = journal.newest_jobs(place).values()
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
