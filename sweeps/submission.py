"""Carry a plan out: on this machine, or as SLURM job arrays through submitit."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from gsq.config import check_processes
from gsq.errors import UserError
from gsq.identity import require_weights
from gsq.record import RunRecord, runs_root
from sweeps.cancellation import clear, marked, with_cancelled
from sweeps.cluster import Cluster, load_cluster
from sweeps.cost import ResourceClass, estimate, resource_class, speed
from sweeps.folder import SweepFolder
from sweeps.planning import Cell, Plan
from sweeps.queue import LocalQueue
from sweeps.reconcile import ON_REQUEST, RESUMED_ON_SUBMIT, Action, reconcile
from sweeps.scheduler import largest_array, require_slurm, slurm_jobs
from sweeps.snapshot import environment, take

# submitit takes any time-out of a short job for the last; how often a cell is tried is reconcile's decision.
MAX_TIMEOUTS = 1000


@dataclass(frozen=True)
class Submission:
    """What a call of ``submit`` did."""

    folder: SweepFolder
    actions: list[Action]
    arrays: dict[str, list[str]]
    """Signatures by the SLURM id of the array (or single job) that was submitted."""


def submit(
    plan: Plan,
    cluster: Cluster | str = "local",
    *,
    runs: Path | None = None,
    retry: bool = False,
    on_update: Callable[[list[Action], dict[str, RunRecord]], None] = lambda actions, records: None,
) -> Submission:
    """Run what is missing of a plan and nothing else.

    local: blocks until every cell is finished or given up; on_update is called several times a second. slurm:
    returns once the job arrays are handed over. retry: try failed cells again that are not resumed by themselves.
    Raises UserError for missing weights or an unreachable cluster, before anything is submitted.
    """
    cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    folder = SweepFolder(runs or runs_root(), plan.name)
    for config in {cell.config for cell in plan.cells}:
        require_weights(config)
        check_processes(config, cluster.nodes * cluster.processes_per_node)
    if cluster.kind == "slurm":
        require_slurm()
    try:
        folder.write_plan(plan)
        source = take(folder)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot write the plan: {error.strerror}; $GSQ_RUNS names the folder") from None
    signatures = [cell.signature for cell in plan.cells]
    extra = ON_REQUEST if retry else frozenset()
    if cluster.kind == "local":
        clear(folder, signatures)
        # The longest first, so that no worker is left with a long one at the end.
        longest_first = [cell.signature for cell in sorted(plan.cells, key=lambda c: -c.cost.train_flops)]
        return Submission(folder, LocalQueue(folder, source, longest_first, cluster, on_update, extra).run(), {})
    records = folder.records(signatures)
    jobs = slurm_jobs(folder)
    if any(job.state == "unknown" for job in jobs.values()):
        raise UserError(
            f"cluster '{cluster.name}': sacct does not answer, so what runs already is not known; try later"
        )
    records, jobs = with_cancelled(marked(folder), records, jobs)
    actions = reconcile(signatures, records, jobs, time.time(), resumed=RESUMED_ON_SUBMIT | extra)
    wanted = {action.cell.signature for action in actions if action.kind == "submit"}
    clear(folder, wanted)
    arrays: dict[str, list[str]] = {}
    classes = resource_classes([c for c in plan.cells if c.signature in wanted], records, cluster)
    largest = largest_array() if wanted else 1
    parts = [(r, cells[i : i + largest]) for r, cells in classes.items() for i in range(0, len(cells), largest)]
    for resources, cells in parts:
        # The limit on jobs at the same time is one for the sweep; SLURM knows one for each array.
        parallel = max(1, cluster.parallel * len(cells) // len(wanted))
        job_id, members = _submit_array(folder, source, cluster, resources, cells, parallel)
        arrays[job_id] = members
    return Submission(folder, actions, arrays)


def resource_classes(
    cells: list[Cell], records: dict[str, RunRecord], cluster: Cluster
) -> dict[ResourceClass, list[Cell]]:
    """Cells by what their jobs ask for: their estimate rounded up, or what the cluster file fixes."""
    rate = speed(cells, records, cluster.device)
    grouped: dict[ResourceClass, list[Cell]] = defaultdict(list)
    for cell in cells:
        one = estimate(cell, rate, cluster.device)
        # The share of memory that is activations is smaller by as much; it is not worth a tight bound.
        shared = one._replace(
            seconds=one.seconds / (cluster.nodes * cluster.processes_per_node),
            memory_bytes=one.memory_bytes * cluster.processes_per_node,
        )
        wanted = resource_class(shared)
        grouped[ResourceClass(cluster.memory_gb or wanted.memory_gb, cluster.minutes or wanted.minutes)].append(cell)
    return dict(sorted(grouped.items()))


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without the SLURM variables of a job that this may run in: sbatch would hand them on to the new jobs."""
    leaked = {k: v for k, v in os.environ.items() if k.startswith(("SLURM_", "SBATCH_")) and k != "SLURM_CONF"}
    for name in leaked:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(leaked)


def _submit_array(
    folder: SweepFolder, source: Path, cluster: Cluster, resources: ResourceClass, cells: list[Cell], parallel: int
) -> tuple[str, list[str]]:
    import submitit
    from submitit.core.utils import FailedJobError

    from sweeps.cancellation import SlurmCellJob

    executor = submitit.AutoExecutor(folder.path / "slurm", cluster="slurm", slurm_max_num_timeout=MAX_TIMEOUTS)
    options: dict[str, object] = {
        "name": f"gsq-{folder.name}",
        "timeout_min": resources.minutes,
        "mem_gb": resources.memory_gb,
        "nodes": cluster.nodes,
        "tasks_per_node": cluster.processes_per_node,
        "cpus_per_task": max(1, cluster.cpus // cluster.processes_per_node),
        "slurm_array_parallelism": parallel,
        "slurm_setup": _setup(cluster, source),
        "stderr_to_stdout": True,
    }
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(cluster, key):
            options[f"slurm_{key}"] = getattr(cluster, key)
    if cluster.gpus:
        options["gpus_per_node"] = cluster.gpus
    executor.update_parameters(**options)
    try:
        # submitit repeats sbatch's words on stderr; they are in the error below.
        with _clean_environment(), redirect_stderr(StringIO()):
            job = SlurmCellJob(str(folder.runs), folder.name, str(source))
            submitted = executor.map_array(job, [c.signature for c in cells])
    except FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "sbatch: error" in line), lines[-1] if lines else "no reason given")
        raise UserError(f"cluster '{cluster.name}': sbatch refused the jobs: {reason}") from None
    by_signature = {cell.signature: job.job_id for cell, job in zip(cells, submitted, strict=True)}
    folder.append_journal(
        {
            "time": time.time(),
            "cluster": cluster.name,
            "memory_gb": resources.memory_gb,
            "minutes": resources.minutes,
            "jobs": by_signature,
        }
    )
    return next(iter(by_signature.values())).split("_")[0], list(by_signature)


def _setup(cluster: Cluster, source: Path) -> list[str]:
    exports = {
        "OMP_NUM_THREADS": str(max(1, cluster.cpus // cluster.processes_per_node) if cluster.gpus else 1),
        **cluster.environment,
    }
    copy = environment(source, "")
    # An empty entry would be the folder that the job starts in.
    copy["PYTHONPATH"] += "${PYTHONPATH:+:$PYTHONPATH}"
    return [
        *cluster.setup,
        *(f"export {name}={value}" for name, value in exports.items()),
        # Last, since a setup command (module load) may set PYTHONPATH, too.
        *(f'export {name}="{value}"' for name, value in copy.items()),
    ]
