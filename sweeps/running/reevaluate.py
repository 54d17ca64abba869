"""Evaluate finished runs without training, on this machine or as SLURM arrays: by another protocol
(``evaluate_sweep``), or as their sweep file says now (``evaluate_missing``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gsq.config.run import DataConfig
from gsq.config.signature import digest
from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.records.attempt import DONE, FAILED
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.costing.cost import speed
from gsq.sweeps.planning.cells import Cell, Plan
from gsq.sweeps.planning.folder import SweepFolder, absolute, sweep_folder
from gsq.sweeps.running.array_job import EvaluationJob
from gsq.sweeps.running.evaluations import Evaluations
from gsq.sweeps.running.evaluators import Request, WorkerDied, evaluate_in_processes
from gsq.sweeps.running.sbatch import check_path
from gsq.sweeps.running.slurm_arrays import Arrays, settle
from gsq.sweeps.running.snapshot import take
from gsq.sweeps.running.worker import evaluate_run, unevaluated
from gsq.sweeps.spec.cluster import Cluster, load_cluster, local_workers
from gsq.sweeps.state import journal
from gsq.sweeps.state.slurm import require_known, require_slurm, slurm_jobs
from gsq.sweeps.state.status import survey

# Interval between questions to SLURM about evaluations [s].
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class _Request:
    """The settings of an evaluation of a run."""

    changes: dict[str, Any]
    """Fields of EvaluationConfig that replace those of the training."""
    data: dict[str, Any] | None = None
    """Fields of DataConfig with the present place of the images; None for that of the training."""


OnResult = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class _Jobs(SweepFolder):
    """A sweep folder's part for the SLURM jobs of evaluations with one set of changes."""

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
    on_result: OnResult = lambda number, result: None,
) -> Evaluations:
    """Evaluate the finished runs of a sweep by another protocol, without training; each adds a row to its table.

    changes: fields of EvaluationConfig that differ from those of the training. It skips existing evaluations by that
    protocol. local: blocks, with as many processes as cores or GPUs; on_result receives the number of runs that have
    ended and each new evaluation. slurm: submits an array for each resource class and returns; later calls submit no
    job twice. Raises UserError for an unknown sweep, a sweep without a finished cell, and missing weights.
    """
    cluster = load_cluster(cluster)
    folder = sweep_folder(sweep, runs)
    found = survey(folder)
    finished = [signature for signature, state in found.states.items() if state.state == DONE]
    if not finished:
        total = len(found.states)
        raise UserError(f"sweep '{folder.name}': none of its {total} cells is done (gsq status {folder.name})")
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
        return replace(_submit(folder, cells, _Request(changes), cluster), finished=len(finished), failed=failed)
    done = _evaluate_here(folder, dict.fromkeys(todo, _Request(changes)), cluster, on_result, len(finished) - len(todo))
    return replace(done, finished=len(finished), failed={**failed, **done.failed})


def evaluate_missing(
    plan: Plan,
    cluster: Cluster | str = "local",
    *,
    runs: Path | None = None,
    on_result: OnResult = lambda n, result: None,
) -> Evaluations | None:
    """Make the evaluations that finished cells lack by the plan's sweep file (gsq.sweeps.planning.protocols.lacking).

    Acts like ``evaluate_sweep``; on_result counts these cells only. Returns None if nothing is missing. Raises
    UserError if this machine lacks weights or a module.
    """
    cluster = load_cluster(cluster)
    folder = SweepFolder(runs or runs_root(), plan.name)
    if not (found := _missing(plan, folder)):
        return None
    requests = {cell.signature: _request(cell) for cell in found}
    if cluster.kind == "local":
        return _evaluate_here(folder, requests, cluster, on_result)
    made = Evaluations(folder.name, len(found))
    for request, cells in _by_request(found):
        one = _submit(folder, cells, request, cluster)
        made = replace(
            made,
            arrays={**made.arrays, **one.arrays},
            waiting=made.waiting + one.waiting,
            ended=(*made.ended, *one.ended),
            logs=one.logs,
        )
    return made


def wait_for_evaluations(plan: Plan, *, runs: Path | None = None) -> dict[str, str]:
    """Wait until no SLURM job evaluates a cell of the plan. Returns why evaluations are missing, by signature."""
    folder = SweepFolder(runs or runs_root(), plan.name)
    while found := _missing(plan, folder):
        alive, logs = False, ""
        for request, cells in _by_request(found):
            jobs = _jobs(folder, request)
            states = slurm_jobs(jobs)
            alive |= any(states[c.signature].state != "gone" for c in cells if c.signature in states)
            logs = str(jobs.path / "submissions")
        if not alive:
            # Read the folders again, because a job may have written its result since.
            left = _missing(plan, folder)
            return {
                cell.signature: f"{cell.title}: its evaluation ended without a result; logs in {logs}" for cell in left
            }
        time.sleep(POLL_SECONDS)
    return {}


def _missing(plan: Plan, folder: SweepFolder) -> list[Cell]:
    from gsq.sweeps.planning.protocols import lacking

    records = folder.records([cell.signature for cell in plan.cells])
    coming = {signature for signature, record in records.items() if record.state not in (DONE, FAILED)}
    return list(lacking(plan, folder, records, coming).cells)


def _request(cell: Cell) -> _Request:
    # Jobs may start in another folder, so make paths absolute.
    return _Request(asdict(cell.config.evaluation), asdict(absolute(cell.config).data))


@lru_cache(8)
def _train_images(data: DataConfig) -> int:
    return len(manifest(data).train)


def _changed(cell: Cell, request: _Request) -> Cell:
    """The cell as it is evaluated, whose probe has a cost of its own."""
    evaluation = replace(cell.config.evaluation, **request.changes)
    images = cell.train_images
    if evaluation.probe != "none" and not images:
        images = _train_images(cell.config.data)
    return replace(cell, config=replace(cell.config, evaluation=evaluation), train_images=images)


def _by_request(cells: Iterable[Cell]) -> list[tuple[_Request, list[Cell]]]:
    grouped: dict[str, tuple[_Request, list[Cell]]] = {}
    for cell in cells:
        request = _request(cell)
        grouped.setdefault(digest(asdict(request)), (request, []))[1].append(cell)
    return list(grouped.values())


def _jobs(folder: SweepFolder, request: _Request) -> _Jobs:
    return _Jobs(folder.runs, folder.name, digest(request.changes))


def _evaluate_here(
    folder: SweepFolder, todo: Mapping[str, _Request], cluster: Cluster, on_result: OnResult, over: int = 0
) -> Evaluations:
    """Evaluate on this machine. on_result counts the runs that have ended from ``over``."""
    new: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for signature, results, problem in _in_turn(folder, todo, cluster):
        over += 1
        if problem:
            failed[signature] = problem
        for result in results:
            new.append({"signature": signature, **result})
            on_result(over, new[-1])
    return Evaluations(folder.name, len(todo), new, failed)


def _in_turn(
    folder: SweepFolder, todo: Mapping[str, _Request], cluster: Cluster
) -> Iterator[tuple[str, list[dict[str, Any]], str | None]]:
    """Yield signature, new evaluations and the problem of each run, in the order of completion."""
    work = {s: Request(RunFolder.of(folder.runs, s).path, one.changes, one.data) for s, one in todo.items()}
    count = min(local_workers(cluster), len(todo))
    if count <= 1:
        for signature, arguments in work.items():
            yield signature, *evaluate_run(*arguments)
        return
    try:
        yield from evaluate_in_processes(work, count)
    except WorkerDied as died:
        raise UserError(
            f"sweep '{folder.name}': a worker {died}. Finished evaluations are kept, and the same command resumes; a "
            "cluster file with `workers: 1` runs fewer at a time"
        ) from None


def _submit(folder: SweepFolder, todo: list[Cell], request: _Request, cluster: Cluster) -> Evaluations:
    check_path(folder.path)
    require_slurm()
    # An evaluation needs one process with at most one GPU.
    share = max(1, cluster.processes_per_node * cluster.cells_per_job)
    cpus, gpus = max(1, cluster.cpus // share), min(1, cluster.gpus)
    cluster = replace(cluster, nodes=1, processes=0, cells_per_job=1, cells_in_turn=1, cpus=cpus, gpus=gpus)
    jobs = _jobs(folder, request)
    source = take(folder)
    arrays: dict[str, list[str]] = {}
    while True:
        # Take the number before reading the journal, so that any later submission collides with it.
        number = max(journal.numbers(jobs), default=0) + 1
        settle(jobs, cluster)
        handed_over = slurm_jobs(jobs)
        known = {cell.signature: handed_over[cell.signature] for cell in todo if cell.signature in handed_over}
        require_known(cluster.name, known.values())
        alive = {signature for signature, job in known.items() if job.state != "gone"}
        cells = [_changed(cell, request) for cell in todo if cell.signature not in alive]
        try:
            rate = speed(cells, folder.records([cell.signature for cell in cells]), cluster.device, folder, cluster.gpu)
            # Training ends with an evaluation, so the resources of the training and of a probe are enough.
            Arrays(cells, rate, cluster, jobs, source).hand_over(
                number,
                lambda entry: EvaluationJob(str(entry.path), str(folder.runs), request.changes, request.data),
                arrays,
            )
        except journal.Taken:
            time.sleep(0.1)
            continue
        ended = tuple(signature for signature in known if signature not in alive)
        logs = jobs.path / "submissions"
        return Evaluations(folder.name, len(todo), arrays=arrays, waiting=len(alive), ended=ended, logs=logs)
