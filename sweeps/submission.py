"""Carry a plan out: on this machine, or as SLURM job arrays through submitit."""

from __future__ import annotations

import errno
import os
import pickle
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.config import check_processes
from gsq.errors import UserError
from gsq.identity import require_weights
from gsq.record import RUNNING, RunFolder, RunRecord, note_killed, runs_root
from sweeps import journal
from sweeps.cancellation import clear, marked, with_cancelled
from sweeps.cluster import Cluster, load_cluster
from sweeps.cost import Speed, speed
from sweeps.folder import SweepFolder
from sweeps.forecasting import admit, by_class
from sweeps.job import ArrayJob
from sweeps.notes import check_images
from sweeps.planning import Cell, Plan
from sweeps.queue import LocalQueue, alive, with_local_jobs
from sweeps.reconcile import Action, reconcile
from sweeps.scheduler import jobs_by_name, largest_array, require_slurm, slurm_jobs
from sweeps.snapshot import environment, source_folder, take

if TYPE_CHECKING:
    from sweeps.evaluating import Evaluations

# submitit takes any time-out of a short job for the last; how often a cell is tried is reconcile's decision.
MAX_TIMEOUTS = 1000
# How long a submission waits for another one that seems to be between its steps.
DRIVER_SECONDS = 20.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Submission:
    """What a call of ``submit`` did."""

    folder: SweepFolder
    actions: list[Action]
    arrays: dict[str, list[str]]
    """Signatures by the SLURM id of the array (or single job) that was submitted."""
    evaluations: Evaluations | None = None
    """Of finished cells that were not evaluated as the sweep file says now; None where none was missing."""


def submit(
    plan: Plan,
    cluster: Cluster | str = "local",
    *,
    runs: Path | None = None,
    retry: bool = False,
    over_budget: bool = False,
    on_update: Callable[[list[Action], dict[str, RunRecord]], None] = lambda actions, records: None,
    on_evaluation: Callable[[int, dict[str, Any]], None] = lambda number, result: None,
) -> Submission:
    """Run what is missing of a plan and nothing else.

    Finished cells that were not evaluated as the sweep file says now are evaluated, without training
    (sweeps.evaluating.evaluate_missing, which on_evaluation goes to). local: blocks until every cell is finished or
    given up; on_update is called several times a second. slurm: returns once the job arrays are handed over. retry: try
    failed cells again that are not resumed by themselves. over_budget: do not ask what it will cost. Raises UserError
    for missing weights, too few images to evaluate on, an unreachable cluster or a plan that is over its budget, before
    anything is submitted.
    """
    cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    check_images(plan, runs)
    if plan.search is not None:
        from sweeps.searching import submit_search

        return submit_search(plan, cluster, runs=runs, retry=retry, over_budget=over_budget, on_update=on_update)
    from sweeps.evaluating import evaluate_missing
    from sweeps.protocols import note_asked

    folder = SweepFolder(runs or runs_root(), plan.name)
    check(plan, cluster)
    if not over_budget:
        plan = admit(plan, cluster, runs=folder.runs, retry=retry)
    try:
        folder.write_plan(plan)
        note_asked(plan, folder)
        source = take(folder)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot write the plan: {error.strerror}; $GSQ_RUNS names the folder") from None
    signatures = [cell.signature for cell in plan.cells]
    try:
        if cluster.kind == "local":
            clear(folder, signatures)
            # The longest first, so that no worker is left with a long one at the end.
            longest_first = [cell.signature for cell in sorted(plan.cells, key=lambda c: -c.cost.train_flops)]
            done = Submission(folder, LocalQueue(folder, source, longest_first, cluster, on_update, retry).run(), {})
        else:
            resumed = cluster.resumed("request" if retry else "submit")
            done = Submission(folder, *_submit_missing(plan, cluster, folder, source, resumed))
        evaluations = evaluate_missing(plan, cluster, runs=folder.runs, on_result=on_evaluation)
        return replace(done, evaluations=evaluations)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{folder.path}: {error.strerror}; what was submitted before stays. Make room (gsq clean) and say it again"
        ) from None


def check(plan: Plan, cluster: Cluster) -> None:
    """Raise UserError where the plan's weights are missing or the cluster cannot take its cells."""
    require_weights(*(cell.config for cell in plan.cells))
    for cell in plan.cells:
        check_processes(cell.config, cluster.nodes * cluster.processes_per_node)
    if cluster.kind == "slurm":
        require_slurm()


def _submit_missing(
    plan: Plan, cluster: Cluster, folder: SweepFolder, source: Path, resumed: Collection[str]
) -> tuple[list[Action], dict[str, list[str]]]:
    """One array after the other, until no cell is missing. Whenever another driver was quicker, look again."""
    arrays: dict[str, list[str]] = {}
    first: list[Action] | None = None
    while True:
        # Before the journal is read: what is submitted after this has a number that is taken.
        number = max(journal.numbers(folder), default=0) + 1
        settle(folder, cluster)
        actions, wanted, records = _missing(plan, folder, cluster, resumed)
        first = first or actions
        if not wanted:
            return first, arrays
        clear(folder, {cell.signature for cell in wanted})
        try:
            rate = speed(plan.cells, records, cluster.device, folder, cluster.gpu)
            for entry, script in array_entries(wanted, rate, cluster, folder, source, number):
                job_pickle = pickled(ArrayJob(str(entry.path)), entry.minutes)
                journal.add(entry, {journal.SCRIPT: script.encode(), journal.PICKLE: job_pickle})
                job = hand_over(entry, cluster)
                arrays[job] = list(entry.signatures)
        except journal.Taken:
            continue
        return first, arrays


def settle(folder: SweepFolder, cluster: Cluster) -> None:
    """Find out what became of submissions whose driver did not say: they are jobs, or are taken back.

    A driver that seems to be at work is given a moment, so that its submission need not be made again.
    """
    deadline = time.monotonic() + DRIVER_SECONDS
    while open_entries := [entry for entry in journal.entries(folder) if entry.open]:
        if any(_driver_alive(entry) for entry in open_entries) and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        names = jobs_by_name()
        if names is None:
            raise UserError(f"cluster '{cluster.name}': squeue does not answer, so what waits is not known; try later")
        for entry in open_entries:
            entry.decide(names.get(entry.name))


def _driver_alive(entry: journal.Entry) -> bool:
    if entry.host != os.uname().nodename:
        return True  # Nobody knows.
    return entry.pid != os.getpid() and alive(entry.pid, entry.time)


def _missing(
    plan: Plan, folder: SweepFolder, cluster: Cluster, resumed: Collection[str], note: bool = True
) -> tuple[list[Action], list[Cell], dict[str, RunRecord]]:
    """What is to be done about each cell, those to submit, and what the run folders say."""
    signatures = [cell.signature for cell in plan.cells]
    records = folder.records(signatures)
    # A run on this machine's queue is alive, too.
    jobs = with_local_jobs(slurm_jobs(folder), records)
    if any(job.state == "unknown" for job in jobs.values()):
        raise UserError(
            f"cluster '{cluster.name}': sacct does not answer, so what runs already is not known; try later"
        )
    known, jobs = with_cancelled(marked(folder), records, jobs)
    actions = reconcile(signatures, known, jobs, time.time(), resumed=resumed, search=folder.search_id)
    wanted = {action.cell.signature for action in actions if action.kind == "submit"}
    for action in actions:
        # The next attempt is to know it, when the scheduler may have forgotten.
        if action.cell.failure == "out_of_memory" and records[action.cell.signature].state == RUNNING and note:
            note_killed(RunFolder.of(folder.runs, action.cell.signature), "out_of_memory")
    return actions, [cell for cell in plan.cells if cell.signature in wanted], records


def array_entries(
    cells: list[Cell],
    rate: Speed,
    cluster: Cluster,
    folder: SweepFolder,
    source: Path,
    number: int,
) -> Iterator[tuple[journal.Entry, str]]:
    """The job arrays for these cells, each with its job script; ``number`` is that of the first."""
    classes = by_class(cells, rate, cluster)
    largest = largest_array() * cluster.cells_per_job if cells else 1
    parts = [(r, group[i : i + largest]) for r, group in classes.items() for i in range(0, len(group), largest)]
    for offset, (resources, members) in enumerate(parts):
        path = journal.path_of(folder, number + offset)
        entry = journal.Entry(
            path=path,
            # Unique, also where two runs folders have a sweep of the same name.
            name=f"gsq-{folder.name}-{number + offset}-{secrets.token_hex(4)}",
            cluster=cluster.name,
            source=str(source),
            minutes=resources.minutes,
            memory_gb=resources.memory_gb,
            time=time.time(),
            host=os.uname().nodename,
            pid=os.getpid(),
            signatures=tuple(cell.signature for cell in members),
            cells_per_job=cluster.cells_per_job,
        )
        # The limit on jobs at the same time is one for the sweep; SLURM knows one for each array.
        parallel = max(1, cluster.parallel * len(members) // len(cells))
        yield entry, job_script(entry, cluster, parallel, sys.executable)


def dry_run(plan: Plan, cluster: Cluster, *, runs: Path | None = None, retry: bool = False) -> list[str]:
    """The job scripts that ``submit`` would hand to sbatch now, or the cells that it would run here. Writes nothing.

    Raises UserError as ``submit`` does.
    """
    folder = SweepFolder(runs or runs_root(), plan.name)
    check(plan, cluster)
    resumed = cluster.resumed("request" if retry else "submit")
    _, wanted, records = _missing(plan, folder, cluster, resumed, note=False)
    if cluster.kind == "local":
        return [f"{cell.signature} {cell.title}" for cell in wanted]
    number = max(journal.numbers(folder), default=0) + 1
    rate, source = speed(plan.cells, records, cluster.device, folder, cluster.gpu), source_folder(folder)
    return [script for _, script in array_entries(wanted, rate, cluster, folder, source, number)]


def job_script(entry: journal.Entry, cluster: Cluster, parallel: int, python: str) -> str:
    """What sbatch is given: submitit's script for an array, as a pure function of these arguments."""
    from submitit.slurm.slurm import _make_sbatch_string

    tasks = -(-len(entry.signatures) // entry.cells_per_job)
    folder = shlex.quote(str(entry.path))
    options: dict[str, Any] = {key: getattr(cluster, key) or None for key in ("partition", "account", "qos")}
    options |= {key: getattr(cluster, key) or None for key in ("constraint", "dependency")}
    script: str = _make_sbatch_string(
        command=f"{shlex.quote(python)} -u -m submitit.core._submit {folder}",
        folder=entry.path,
        map_count=tasks,
        array_parallelism=parallel,
        job_name=entry.name,
        time=entry.minutes,
        mem=f"{entry.memory_gb}GB",
        nodes=cluster.nodes,
        ntasks_per_node=cluster.processes_per_node,
        cpus_per_task=max(1, cluster.cpus // cluster.processes_per_node),
        gpus_per_node=cluster.gpus or None,
        stderr_to_stdout=True,
        setup=_setup(entry, cluster),
        additional_parameters=dict(cluster.sbatch),
        **options,
    )
    return script


def _setup(entry: journal.Entry, cluster: Cluster) -> list[str]:
    threads = max(1, cluster.cpus // (cluster.processes_per_node * cluster.cells_per_job)) if cluster.gpus else 1
    exports = {"OMP_NUM_THREADS": str(threads), **cluster.environment}
    copy = environment(Path(entry.source), "")
    # An empty entry would be the folder that the job starts in.
    copy["PYTHONPATH"] += "${PYTHONPATH:+:$PYTHONPATH}"
    return [
        *cluster.setup,
        *(f"export {name}={_in_double_quotes(value)}" for name, value in exports.items()),
        # After the commands, since one of them (module load) may set PYTHONPATH, too.
        *(f'export {name}="{value}"' for name, value in copy.items()),
        # submitit looks for a pickle by the job's id, which nobody knew when this was written. It replaces the link
        # when it requeues the job; what a kill left of that would stop it the next time.
        f'task={shlex.quote(str(entry.path))}/"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"',
        'rm -f "$task"*.save_tmp',
        f'[ -e "$task"_submitted.pkl ] || ln -s {journal.PICKLE} "$task"_submitted.pkl',
    ]


def _in_double_quotes(value: str) -> str:
    """For the shell; variables of the job, such as $TMPDIR, are replaced."""
    return '"' + re.sub(r'(["`\\])', r"\\\1", value) + '"'


def pickled(job: Any, minutes: int) -> bytes:
    """What submitit loads on the node. job: called without arguments, and has submitit's ``checkpoint``."""
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(job)
    delayed.set_timeout(minutes, MAX_TIMEOUTS)
    return pickle.dumps(delayed)


def hand_over(entry: journal.Entry, cluster: Cluster) -> str:
    """Hand an entry to SLURM; returns the array's id. Raises UserError where SLURM refuses it, and Taken where
    another driver took it back."""
    # Without the variables of a job that this may run in: sbatch would hand them on to the new jobs.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_")) or k == "SLURM_CONF"}
    command = ["sbatch", str(entry.path / journal.SCRIPT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    found = re.search(r"Submitted batch job (\d+)", done.stdout)
    # An error may come after the controller has taken the job (its answer timed out).
    names = {} if found else jobs_by_name() or {}
    settled = entry.decide(found[1] if found else names.get(entry.name))
    if settled.job is not None:
        return settled.job
    if found:
        raise journal.Taken
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    reason = next((line for line in lines if "sbatch: error" in line), lines[-1] if lines else "no reason given")
    raise UserError(
        f"cluster '{cluster.name}': sbatch refused the jobs: {reason}; what was submitted before stays, and "
        "gsq submit hands over the rest later"
    )
