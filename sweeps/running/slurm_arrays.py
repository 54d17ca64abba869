"""Submit the cells of a plan: to this machine's queue, or as SLURM job arrays through submitit."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.config.run import check_processes
from gsq.errors import UserError
from gsq.pretrained.required import require_weights
from gsq.records.attempt import RUNNING
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import RunRecord, note_killed
from gsq.sweeps.costing.cost import Speed, speed
from gsq.sweeps.costing.forecast import admit, by_class
from gsq.sweeps.costing.resource_class import ResourceClass
from gsq.sweeps.planning.cells import Cell, Plan
from gsq.sweeps.planning.folder import SweepFolder, absolute
from gsq.sweeps.planning.horizons import families, waiting
from gsq.sweeps.running.array_job import ArrayJob
from gsq.sweeps.running.local_queue import LocalQueue
from gsq.sweeps.running.sbatch import Refused, check_path, hand_over, handed_on, job_script, pickled
from gsq.sweeps.running.snapshot import source_folder, take
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state import journal
from gsq.sweeps.state.cancellation import clear, marked, stopping, with_cancelled
from gsq.sweeps.state.local import alive, with_local_jobs
from gsq.sweeps.state.reconcile import Action, Job, OnUpdate, coming, no_update, reconcile
from gsq.sweeps.state.slurm import jobs_by_name, largest_array, require_known, require_slurm, slurm_jobs
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.sweeps.running.evaluations import Evaluations


# Time that a submission waits for another one that seems to be between its steps [s].
DRIVER_SECONDS = 20.0
# Time that it waits for the jobs of cancelled cells to end before it submits them again [s].
STOP_SECONDS = 30.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Submission:
    """Result of ``submit``."""

    folder: SweepFolder
    actions: list[Action]
    arrays: dict[str, list[str]]
    """Signatures by the SLURM id of each submitted array or job."""
    evaluations: Evaluations | None = None
    """Evaluations that finished cells lacked; None if nothing was missing."""

    @property
    def stopping(self) -> tuple[str, ...]:
        """Signatures of cancelled cells that were not submitted because their jobs have not ended yet."""
        return stopping(self.folder, self.actions)


def submit_cells(
    plan: Plan,
    cluster: Cluster,
    *,
    runs: Path | None = None,
    retry: bool = False,
    over_budget: bool = False,
    on_update: OnUpdate = no_update,
) -> Submission:
    """Train the missing cells of a plan like ``submit``, without evaluating finished cells."""
    from gsq.sweeps.planning.protocols import note_asked

    folder = SweepFolder(runs or runs_root(), plan.name)
    check(plan, cluster, folder)
    if not over_budget:
        plan = admit(plan, cluster, runs=folder.runs, retry=retry)
    try:
        folder.write_plan(plan)
        note_asked(plan, folder)
        source = take(folder)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot write the plan: {error.strerror}; $GSQ_RUNS names the folder") from None
    with explained_disk(folder):
        if cluster.kind == "local":
            clear(folder, [cell.signature for cell in plan.cells])
            # Start with the longest, so that no worker has a long cell at the end.
            longest_first = [cell.signature for cell in sorted(plan.cells, key=lambda c: -c.cost.train_flops)]
            held = partial(waiting, families(plan.cells), runs=folder.runs)
            queue = LocalQueue(folder, source, longest_first, cluster, on_update, retry, held=held)
            return Submission(folder, queue.run(), {})
        resumed = cluster.resumed("request" if retry else "submit")
        return Submission(folder, *submit_missing(plan, cluster, folder, source, resumed))


@contextmanager
def explained_disk(folder: SweepFolder) -> Iterator[None]:
    """Explain what to do about a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise UserError(
            f"{folder.path}: {error.strerror}. Earlier submissions are unaffected. Free some space (gsq clean) and "
            "run the command again"
        ) from None


def check(plan: Plan, cluster: Cluster, folder: SweepFolder) -> None:
    """Raise UserError if weights are missing, or the cluster or the runs folder cannot take the cells."""
    check_path(folder.path)
    require_weights(*(cell.config for cell in plan.cells))
    for cell in plan.cells:
        check_processes(cell.config, cluster.nodes * cluster.processes_per_node)
    if cluster.kind == "slurm":
        require_slurm()


def submit_missing(
    plan: Plan, cluster: Cluster, folder: SweepFolder, source: Path, resumed: Collection[str]
) -> tuple[list[Action], dict[str, list[str]]]:
    """Submit arrays until no cell is missing, looking again whenever another driver was quicker."""
    arrays: dict[str, list[str]] = {}
    first: list[Action] | None = None
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        # Take the number before reading the journal, so that any later submission collides with it.
        number = max(journal.numbers(folder), default=0) + 1
        settle(folder, cluster)
        actions, wanted, records, jobs = _missing(plan, folder, cluster, resumed)
        if stopping(folder, actions) and time.monotonic() < deadline:
            time.sleep(1)
            continue
        first = first or actions
        if not wanted:
            return first, arrays
        clear(folder, {cell.signature for cell in wanted})
        try:
            rate = speed(plan.cells, records, cluster.device, folder, cluster.gpu)
            hosts = waiting(families(plan.cells), coming(actions), records, runs=folder.runs)
            all_of_them = Arrays(wanted, rate, cluster, folder, source, hosts, jobs)
            all_of_them.hand_over(number, lambda entry: ArrayJob(str(entry.path)), arrays)
        except journal.Taken:
            continue
        return first, arrays


def settle(folder: SweepFolder, cluster: Cluster) -> None:
    """Decide submissions whose driver did not record their job: find the job, or revoke them.

    A driver that seems to be at work gets a moment to finish.
    """
    deadline = time.monotonic() + DRIVER_SECONDS
    while open_entries := [entry for entry in journal.entries(folder) if entry.open]:
        if any(_driver_alive(entry) for entry in open_entries) and time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        for clusters in {entry.clusters for entry in open_entries}:
            names = jobs_by_name(clusters)
            if names is None:
                raise UserError(
                    f"cluster '{cluster.name}': squeue does not answer, so pending jobs are unknown; retry later"
                )
            for entry in open_entries:
                if entry.clusters == clusters:
                    entry.decide(names.get(entry.name))


def _driver_alive(entry: journal.Entry) -> bool:
    if entry.host != os.uname().nodename:
        return True  # Unknown, so assume that it is.
    return entry.pid != os.getpid() and alive(entry.pid, entry.time)


def _missing(
    plan: Plan, folder: SweepFolder, cluster: Cluster, resumed: Collection[str], note: bool = True
) -> tuple[list[Action], list[Cell], dict[str, RunRecord], dict[str, Job]]:
    """Return the action for each cell, the cells to submit, the records of the run folders, and the jobs."""
    signatures = [cell.signature for cell in plan.cells]
    records = folder.records(signatures)
    # Runs in this machine's queue are alive, too.
    jobs = with_local_jobs(slurm_jobs(folder), records)
    known, jobs = with_cancelled(marked(folder), records, jobs)
    actions = reconcile(signatures, known, jobs, time.time(), resumed=resumed, search=folder.search_id)
    waiting = [action.cell.signature for action in actions if action.kind == "wait"]
    require_known(cluster.name, (jobs[signature] for signature in waiting if signature in jobs))
    wanted = {action.cell.signature for action in actions if action.kind == "submit"}
    for action in actions:
        # Record this for the next attempt, because the scheduler may forget it.
        if action.cell.failure == "out_of_memory" and records[action.cell.signature].state == RUNNING and note:
            note_killed(RunFolder.of(folder.runs, action.cell.signature), "out_of_memory")
    return actions, [cell for cell in plan.cells if cell.signature in wanted], records, jobs


@dataclass(frozen=True)
class Arrays:
    """The job arrays of some cells: their requests and submission."""

    cells: Sequence[Cell]
    rate: Speed
    cluster: Cluster
    folder: SweepFolder
    source: Path
    """The source copy that the jobs run."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """Longer cell to wait for, by signature (gsq.sweeps.planning.horizons.waiting)."""
    jobs: Mapping[str, Job] = field(default_factory=dict)
    """Jobs of cells that were submitted before."""

    def _classes(self) -> tuple[list[tuple[ResourceClass, list[Cell]]], int]:
        """Group cells by resource class, and those that wait for others last. Also returns how many tasks an array can
        have."""
        largest = largest_array() if self.cells else 1
        rounds = ([cell for cell in self.cells if (cell.signature in self.hosts) == late] for late in (False, True))
        return [pair for cells in rounds for pair in by_class(cells, self.rate, self.cluster).items()], largest

    def _share(self, resources: ResourceClass) -> int:
        """Return how many cells of a class share a job."""
        return self.cluster.cells_per_job * resources.cells_in_turn

    def _awaited(self, members: Sequence[Cell], arrays: Mapping[str, Sequence[str]]) -> set[str]:
        """Return the SLURM jobs of the cells that these wait for. arrays: those of this submission."""
        hosts = {self.hosts[cell.signature] for cell in members if cell.signature in self.hosts}
        earlier = {job.name for s in hosts if (job := self.jobs.get(s)) and job.array and job.state != "gone"}
        return earlier | {array for array, signatures in arrays.items() if hosts.intersection(signatures)}

    def entry(
        self, number: int, resources: ResourceClass, members: Sequence[Cell], after: Collection[str] = ()
    ) -> tuple[journal.Entry, str]:
        """Return the journal entry and the job script of one array. after: jobs that it waits for."""
        entry = journal.Entry(
            path=journal.path_of(self.folder, number),
            # The name is unique even if two runs folders have a sweep of the same name.
            name=f"gsq-{self.folder.name}-{number}-{secrets.token_hex(4)}",
            cluster=self.cluster.name,
            source=str(self.source),
            minutes=resources.minutes,
            memory_gb=resources.memory_gb,
            time=time.time(),
            host=os.uname().nodename,
            pid=os.getpid(),
            signatures=tuple(cell.signature for cell in members),
            cells_per_job=self.cluster.cells_per_job,
            cells_in_turn=resources.cells_in_turn,
            clusters=str(self.cluster.sbatch.get("clusters", "")),
        )
        # The sweep has one limit on parallel jobs, but SLURM needs one for each array.
        parallel = max(1, self.cluster.parallel * len(members) // len(self.cells))
        images = sorted({path for cell in members if (path := absolute(cell.config).data.path)})
        return entry, job_script(entry, self.cluster, parallel, sys.executable, handed_on(os.environ), after, images)

    def scripts(self, number: int) -> list[str]:
        """Return the job scripts of all arrays from ``number`` on, if sbatch refuses none."""
        classes, largest = self._classes()
        sized = [(r, group, largest * self._share(r)) for r, group in classes]
        parts = [(r, group[i : i + size]) for r, group, size in sized for i in range(0, len(group), size)]
        return [self.entry(number + i, *part, self._awaited(part[1], {}))[1] for i, part in enumerate(parts)]

    def hand_over(self, number: int, job_of: Callable[[journal.Entry], Any], arrays: dict[str, list[str]]) -> None:
        """Submit all arrays as entries from ``number`` on, adding signatures to ``arrays`` by the array's id.

        A refused resource class does not affect the others. If a limit on the number of jobs may be the reason, the
        array is halved until sbatch takes it. Raises NotTaken at the end if cells are left, and journal.Taken if
        another driver was quicker.
        """
        numbers = itertools.count(number)
        left: list[tuple[ResourceClass, int, Refused]] = []
        classes, largest = self._classes()
        for resources, members in classes:
            share = self._share(resources)
            while members:
                size = largest * share
                after = self._awaited(members[:size], arrays)
                entry, script = self.entry(next(numbers), resources, members[:size], after)
                job = pickled(job_of(entry), entry.minutes)
                journal.add(entry, {journal.SCRIPT: script.encode(), journal.PICKLE: job})
                try:
                    arrays[hand_over(entry, jobs_by_name)] = list(entry.signatures)
                except Refused as refused:
                    if refused.limit and len(entry.signatures) > share:
                        largest = -(-len(entry.signatures) // share) // 2
                        continue
                    left.append((resources, len(members), refused))
                    break
                members = members[len(entry.signatures) :]
        if left:
            raise NotTaken(self.cluster.name, len(self.cells), left, arrays)


class NotTaken(UserError):
    """sbatch refused some cells. ``arrays``: the accepted ones. ``limit``: only the number of jobs was the problem."""

    def __init__(
        self, cluster: str, cells: int, left: list[tuple[ResourceClass, int, Refused]], arrays: dict[str, list[str]]
    ) -> None:
        self.arrays = arrays
        self.limit = all(refused.limit for _, _, refused in left)
        by_words: dict[str, list[str]] = defaultdict(list)
        for resources, count, refused in left:
            each = f"{resources.minutes} minutes and {resources.memory_gb} GB"
            by_words[refused.words].append(f"{counted(count, 'cell')} of {each}")
        refusals = ". ".join(f"{' and '.join(classes)}: {words}" for words, classes in by_words.items())
        jobs = f" (SLURM jobs {', '.join(arrays)})" if arrays else ""
        taken = cells - sum(count for _, count, _ in left)
        fix = "once jobs have ended" if self.limit else "once the cluster file, or the limit, has been changed"
        super().__init__(
            f"cluster '{cluster}': sbatch refused {cells - taken} of {counted(cells, 'cell')}, and took {taken}{jobs}. "
            f"{refusals}. gsq submit submits the rest {fix}"
        )


def dry_run(plan: Plan, cluster: Cluster, *, runs: Path | None = None, retry: bool = False) -> list[str]:
    """Return the job scripts that ``submit`` would give to sbatch now, or the cells that it would run here.

    Writes nothing. Raises UserError like ``submit``.
    """
    folder = SweepFolder(runs or runs_root(), plan.name)
    check(plan, cluster, folder)
    resumed = cluster.resumed("request" if retry else "submit")
    actions, wanted, records, jobs = _missing(plan, folder, cluster, resumed, note=False)
    if cluster.kind == "local":
        return [f"{cell.signature} {cell.title}" for cell in wanted]
    number = max(journal.numbers(folder), default=0) + 1
    rate, source = speed(plan.cells, records, cluster.device, folder, cluster.gpu), source_folder(folder)
    hosts = waiting(families(plan.cells), coming(actions), records, runs=folder.runs)
    return Arrays(wanted, rate, cluster, folder, source, hosts, jobs).scripts(number)
