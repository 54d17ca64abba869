"""What SLURM costs a cell: an array of short cells on a real cluster, and where the time goes. Prints Markdown.

    SLURM_CONF=... python tests/benchmarks/slurm_overhead.py --cells 200 [--peer PYTHON]

The cluster is the one of tests/slurm_tests/cluster.py. --peer: the Python of an environment with hydra-core and
hydra-submitit-launcher, which is given as many jobs that sleep for a second.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gsq.runs.provenance import cpu_name  # noqa: E402

SWEEP = """\
name: overhead
base: cpu-tiny
set:
  steps: {steps}
  batch_size: 4
  model: {{channels: 8, norm_groups: 4}}
  loss: {{perceptual: none, discriminator_start: {steps}}}
  evaluation: {{num_images: 8}}
  execution: {{checkpoint_every: {steps}, log_every: 1}}
axes:
  seed: {{range: [0, {last}]}}
"""
CLUSTER = "kind: slurm\npartition: test\nminutes: 30\nmemory_gb: 2\ncells_in_turn: {in_turn}\n"
PEER = """\
import os, signal, time
import hydra

@hydra.main(version_base=None, config_path=None)
def main(config):
    if config.seed == config.killed:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    return config.seed

if __name__ == "__main__":
    main()
    print("gathered", flush=True)
"""


def tasks() -> int:
    done = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
    return len(done.stdout.split())


def wait_until_idle(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while tasks():
        if time.monotonic() > deadline:
            raise TimeoutError("the jobs do not end")
        time.sleep(0.5)


def gsq(*words: str, folder: Path) -> float:
    """Seconds until the shell is free again."""
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "gsq.cli", *words], cwd=folder, env=environment, check=True)
    return time.perf_counter() - began


def ours(folder: Path, cells: int, steps: int, in_turn: int) -> dict[str, float]:
    """Median seconds by phase. in_turn: cells of a job, which has phases of its own only where it has one cell."""
    from gsq.files import read_json
    from gsq.records.folder import RunFolder
    from gsq.records.read import read_metrics
    from gsq.sweeps.planning.cells import make_plan
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.spec.sweep import load_spec
    from gsq.sweeps.state.slurm import slurm_jobs

    (folder / "sweep.yaml").write_text(SWEEP.format(steps=steps, last=cells - 1))
    (folder / "mine.yaml").write_text(CLUSTER.format(in_turn=in_turn))
    began = time.time()
    free = gsq("submit", "sweep.yaml", "--cluster", "mine.yaml", folder=folder)
    wait_until_idle(60 + 30 * cells)
    sweep = SweepFolder(folder / "runs", "overhead")
    jobs = slurm_jobs(sweep)
    ids = ",".join(sorted({job.name.split("_")[0] for job in jobs.values()}))
    command = ["sacct", "-X", "-n", "-P", "-j", ids, "-o", "JobID,Start,End"]
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    accounted = {line.split("|")[0]: line.split("|")[1:] for line in told.stdout.splitlines()}
    phases: dict[str, list[float]] = {}

    def note(name: str, seconds: float, of_the_job: bool = False) -> None:
        if in_turn > 1 and of_the_job:
            return
        phases.setdefault(name, []).append(seconds)

    last_end = began
    for cell in make_plan(load_spec(str(folder / "sweep.yaml"))).cells:
        run = RunFolder.of(folder / "runs", cell.signature)
        attempt = run.attempt_folders()[-1]
        status = read_json(attempt / "status.json")
        if status["state"] != "done":
            raise RuntimeError(f"{cell.signature} is {status['state']}")
        start, end = accounted[jobs[cell.signature].name]
        training = sum(4 / line["images_per_second"] for line in read_metrics(run))
        (evaluation,) = (attempt / "evaluations").glob("*.json")
        weights = (attempt / "model.safetensors").stat().st_mtime
        imported = (attempt / "env.json").stat().st_mtime
        note("job start to first line of gsq (srun, submitit, Python)", status["started"] - float(start), True)
        note("imports (torch) and attempt folder", imported - status["started"])
        note("model, images, first checkpoint and weights", weights - imported - training)
        note("training", training)
        note("evaluation", evaluation.stat().st_mtime - weights)
        note("last status, exit, SLURM's epilogue", float(end) - evaluation.stat().st_mtime, True)
        note("whole job", float(end) - float(start), True)
        last_end = max(last_end, float(end))
    found = {name: statistics.median(values) for name, values in phases.items()}
    slots = 4  # CPUs of the test cluster
    found["overhead a cell: slots x (first submit to last end) / cells - training"] = (
        slots * (last_end - began) / cells - found["training"]
    )
    return {"gsq submit, until the shell is free": free, **found}


def peer(python: str, folder: Path, cells: int, killed: int) -> tuple[float | None, float, int, str]:
    """Seconds until SLURM has all jobs, seconds until the shell is free, exit code, whether it gathered the results."""
    folder.mkdir()
    (folder / "app.py").write_text(PEER)
    words = ["-m", f"+seed=range({cells})", f"+killed={killed}", "hydra/launcher=submitit_slurm"]
    options = {"partition": "test", "timeout_min": 10, "mem_gb": 1, "cpus_per_task": 1, "array_parallelism": 256}
    words += [f"hydra.launcher.{name}={value}" for name, value in options.items()]
    with (folder / "out").open("w") as out:
        began = time.perf_counter()
        process = subprocess.Popen([python, "app.py", *words], cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        handed_over = None
        while process.poll() is None:
            if handed_over is None and tasks() >= max(1, cells - 8):
                handed_over = time.perf_counter() - began
            time.sleep(0.05)
        free = time.perf_counter() - began
    wait_until_idle(600)
    lines = (folder / "out").read_text().strip().splitlines()
    return handed_over, free, process.returncode, "yes" if "gathered" in lines else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40, help="of each cell: about a second")
    parser.add_argument("--in-turn", type=int, default=1, help="cells that a job trains one after the other")
    parser.add_argument("--peer", metavar="PYTHON")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gsq-overhead-"))
    try:
        print(
            f"{args.cells} cells, {args.in_turn} a job, load average {os.getloadavg()[0]:.1f}, {cpu_name()}, "
            f"{os.cpu_count()} cores, Linux {platform.release()}\n"
        )
        print("| gsq, medians | seconds |\n|---|---|")
        for phase, seconds in ours(folder, args.cells, args.steps, args.in_turn).items():
            print(f"| {phase} | {seconds:.2f} |", flush=True)
        if args.peer:
            print("\n| hydra-submitit-launcher | all handed over | shell is free | exit code | results gathered |")
            print("|---|---|---|---|---|")
            for label, killed in (("undisturbed", -1), ("one job killed", args.cells // 2)):
                over, free, code, gathered = peer(args.peer, folder / label.replace(" ", "-"), args.cells, killed)
                shown = f"{over:.1f} s" if over is not None else "not seen"
                print(f"| {label} | {shown} | {free:.1f} s | {code} | {gathered} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
