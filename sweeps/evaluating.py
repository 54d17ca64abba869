"""Finished runs of a sweep evaluated by a further protocol: on this machine's cores or GPUs, or as SLURM arrays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.record import DONE, RunFolder
from gsq.signature import digest
from sweeps import journal
from sweeps.cluster import Cluster, load_cluster, local_gpus, local_workers
from sweeps.cost import speed
from sweeps.folder import SweepFolder, sweep_folder
from sweeps.job import EvaluationJob, evaluate_run, prepare_evaluator, unevaluated
from sweeps.monitoring import survey
from sweeps.planning import Cell
from sweeps.sbatch import check_path
from sweeps.scheduler import require_known, require_slurm, slurm_jobs
from sweeps.snapshot import take
from sweeps.submission import Arrays, settle


@dataclass(frozen=True)
class Evaluations:
    """What a call of ``evaluate_sweep`` did."""

    sweep: str
    finished: int
    """Finished runs."""
    new: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations made here, by the results table's column names."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why not, by signature."""
    arrays: dict[str, list[str]] = field(default_factory=dict)
    """Signatures by the SLURM id of the array that was submitted."""
    waiting: int = 0
    """Runs whose evaluation waits or runs on SLURM since an earlier call."""
    ended: tuple[str, ...] = ()
    """Runs whose earlier job ended without a result; they were submitted again."""
    logs: Path | None = None


@dataclass(frozen=True)
class _Jobs(SweepFolder):
    """Where evaluations by one set of changes keep what was handed to SLURM, in the form of a sweep's own jobs."""

    key: str

    @property
    def path(self) -> Path:
        return super().path / "evaluations" / self.key


def evaluate_sweep(
    sweep: str,
    changes: Mapping[str, Any],
    cluster: Cluster | str = "local",
    *,
    runs: Path | None = None,
    on_result: Callable[[int, dict[str, Any]], None] = lambda number, result: None,
) -> Evaluations:
    """Evaluate the finished runs of a sweep by another protocol, without training; each becomes a row of its table.

    changes: fields of EvaluationConfig that differ from those of the training. What was evaluated by that protocol
    before is left out. local: blocks, as many processes as cores or GPUs; on_result is told each new evaluation and how
    many runs are over. slurm: hands over an array for each class of resources and returns; a call while these wait or
    run submits nothing twice. Raises UserError for an unknown sweep, where none of its cells is done, and for missing
    weights.
    """
    cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    folder = sweep_folder(sweep, runs)
    found = survey(folder)
    finished = [signature for signature, state in found.states.items() if state.state == DONE]
    if not finished:
        raise UserError(
            f"sweep '{folder.name}': none of its {len(found.states)} cells is done (gsq status {folder.name})"
        )
    changes = dict(changes)
    todo: list[str] = []
    failed: dict[str, str] = {}
    for signature in finished:
        missing, damage = unevaluated(RunFolder.of(folder.runs, signature).path, changes)
        if damage:
            failed[signature] = damage
        elif missing:
            todo.append(signature)
    if cluster.kind == "slurm":
        cells = [cell for cell in found.plan.cells if cell.signature in set(todo)]
        return replace(_submit(folder, cells, changes, cluster), finished=len(finished), failed=failed)
    new: list[dict[str, Any]] = []
    over = len(finished) - len(todo)
    for signature, results, problem in _evaluate_here(folder, todo, changes, cluster):
        over += 1
        if problem:
            failed[signature] = problem
        for result in results:
            new.append({"signature": signature, **result})
            on_result(over, new[-1])
    return Evaluations(folder.name, len(finished), new, failed)


def _evaluate_here(
    folder: SweepFolder, todo: list[str], changes: dict[str, Any], cluster: Cluster
) -> Iterator[tuple[str, list[dict[str, Any]], str | None]]:
    """Signature, new evaluations and what went wrong, in the order in which they end."""
    paths = {signature: RunFolder.of(folder.runs, signature).path for signature in todo}
    count = min(local_workers(cluster), len(todo))
    if count <= 1:
        for signature, path in paths.items():
            yield signature, *evaluate_run(path, changes)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    devices, gpus = context.Queue(), local_gpus()
    # In a notebook there may be others.
    not_ours = set(multiprocessing.active_children())
    for i in range(count):
        devices.put({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})
    # Threads of several workers on the same cores slow each other down many times over; read as they start.
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=prepare_evaluator, initargs=(devices,))
    try:
        futures = {pool.submit(evaluate_run, path, changes): signature for signature, path in paths.items()}
        for future in as_completed(futures):
            yield futures[future], *future.result()
    except BrokenProcessPool:
        raise UserError(
            f"sweep '{folder.name}': a worker was killed (out of memory?). What was evaluated is kept; the same "
            "command goes on, with fewer at a time by a cluster file that says `workers: 1`"
        ) from None
    finally:
        # After Ctrl-C: workers ignore it, and a half-made evaluation leaves nothing behind.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - not_ours:
            process.terminate()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _submit(folder: SweepFolder, todo: list[Cell], changes: dict[str, Any], cluster: Cluster) -> Evaluations:
    check_path(folder.path)
    require_slurm()
    # One process with at most one GPU measures a run.
    share = max(1, cluster.processes_per_node * cluster.cells_per_job)
    cpus, gpus = max(1, cluster.cpus // share), min(1, cluster.gpus)
    cluster = replace(cluster, nodes=1, processes=0, cells_per_job=1, cpus=cpus, gpus=gpus)
    jobs = _Jobs(folder.runs, folder.name, digest(changes))
    source = take(folder)
    arrays: dict[str, list[str]] = {}
    while True:
        # Before the journal is read: what is submitted after this has a number that is taken.
        number = max(journal.numbers(jobs), default=0) + 1
        settle(jobs, cluster)
        handed_over = slurm_jobs(jobs)
        known = {cell.signature: handed_over[cell.signature] for cell in todo if cell.signature in handed_over}
        require_known(cluster.name, known.values())
        alive = {signature for signature, job in known.items() if job.state != "gone"}
        cells = [cell for cell in todo if cell.signature not in alive]
        try:
            rate = speed(cells, folder.records([cell.signature for cell in cells]), cluster.device, folder, cluster.gpu)
            # What a job asks for is what its training would: an evaluation is a part of that.
            Arrays(cells, rate, cluster, jobs, source).hand_over(
                number, lambda entry: EvaluationJob(str(entry.path), str(folder.runs), changes), arrays
            )
        except journal.Taken:
            time.sleep(0.1)
            continue
        ended = tuple(signature for signature in known if signature not in alive)
        logs = jobs.path / "submissions"
        return Evaluations(folder.name, len(todo), arrays=arrays, waiting=len(alive), ended=ended, logs=logs)
