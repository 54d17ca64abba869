"""The state of a sweep's jobs, from one call of squeue and one of sacct for all of them.

SLURM reuses job numbers (they wrap around, and a new database begins at 1), so number and name together identify a job.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gsq.errors import UserError
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state import journal
from gsq.sweeps.state.commands import Answer, run
from gsq.sweeps.state.deaths import FAILED_SOMEHOW
from gsq.sweeps.state.reconcile import Job, SchedulerState
from gsq.sweeps.state.turns import read_turns

# Any other state means that the job is over.
PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "RESV_DEL_HOLD", "SPECIAL_EXIT")
ACTIVE = ("RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING")
FAILURES = {
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "CANCELLED": "cancelled",
}
# After these states SLURM restarts a job itself, which accounting learns later than the controller.
REQUEUED_AFTER = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
# Time after its submission in which accounting may not know a job [s].
LAG_SECONDS = 600.0
UNLISTED = "neither squeue nor sacct lists it"


def require_slurm() -> None:
    """Raise UserError unless SLURM's commands are on the PATH and the controller answers."""
    missing = [name for name in ("sbatch", "sacct", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"cluster slurm: {', '.join(missing)} not found on the PATH; run this on a login node of the cluster, or "
            "use --cluster local"
        )
    ping = run("scontrol", "ping")
    if not ping.ok:
        words = (ping.output + ping.errors).strip().splitlines()
        said = ping.problem if ping.timed_out or not words else f"scontrol ping: {words[0]}"
        raise UserError(f"cluster slurm: the controller does not answer ({said})")


@dataclass(frozen=True)
class _Row:
    """A job in the list of squeue or sacct."""

    word: str
    """SLURM's word for the state."""
    name: str
    """Name of the job; empty if the line ends before it."""
    reason: str | None = None
    exit_code: str | None = None
    submit: str = ""

    @property
    def state(self) -> SchedulerState:
        return "pending" if self.word in PENDING else "running" if self.word in ACTIVE else "gone"


_Rows = dict[str, list[_Row]]


def _of_squeue(lines: Iterable[str]) -> _Rows:
    """Parse lines of ``%i|%T|%r|%j``, by job."""
    rows: _Rows = defaultdict(list)
    for line in lines:
        job_id, _, rest = line.partition("|")
        state, reason, name, *_ = (*rest.split("|", 2), "", "")
        told = reason.strip() not in ("", "None", "(null)", "N/A")
        rows[job_id].append(_Row(_word(state), name, reason.strip() if told else None))
    return rows


def _of_sacct(lines: Iterable[str]) -> _Rows:
    """Parse lines of ``JobID,State,JobName,ExitCode,Submit`` by job, each in the order of submission."""
    rows: _Rows = defaultdict(list)
    for line in lines:
        listed, _, rest = line.partition("|")
        state, name, exit_code, submit, *_ = (*rest.split("|"), "", "", "", "")
        row = _Row(_word(state), name, None, exit_code or None, submit)
        for job_id in _expanded(listed):
            rows[job_id].append(row)
    return {job_id: sorted(found, key=lambda row: row.submit) for job_id, found in rows.items()}


def _word(text: str) -> str:
    """Return ``CANCELLED`` for ``CANCELLED by 1000`` and ``CANCELLED+``."""
    return text.split()[0].rstrip("+") if text.split() else ""


def _expanded(job_id: str) -> list[str]:
    """Return the tasks of a pending array: ``7_1, 7_4, 7_6`` for ``7_[1,4-6:2%8]``; any other id alone."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    tasks: list[int] = []
    for part in match[2].split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part).groups()  # type: ignore[union-attr]
        tasks += range(int(first), int(last or first) + 1, int(step or 1))
    return [f"{match[1]}_{task}" for task in tasks]


@dataclass(frozen=True)
class Known:
    """A job of ours: its number and what else identifies it."""

    job_id: str
    """``12_3`` or ``12``."""
    name: str = ""
    """Empty for any job of that number."""
    submitted: float = 0.0
    """Seconds since the epoch; 0 for long ago."""
    clusters: str = ""
    """The cluster that sbatch named, if there are several."""


def ask(job_ids: Iterable[str]) -> dict[str, Job]:
    """Return the state of each job by its number alone, for jobs that are known to be ours."""
    return {job.job_id: state for job, state in states(Known(job_id) for job_id in job_ids).items()}


def states(jobs: Iterable[Known]) -> dict[Known, Job]:
    """Return the state of each job, ignoring other jobs with the same number.

    The controller (squeue) knows what waits and runs, accounting (sacct) how the rest ended. A state is "unknown" if
    squeue does not answer and accounting does not know the job, or may not know that it was requeued; and if neither
    lists a job that was just submitted.
    """
    found: dict[Known, Job] = {}
    by_cluster: dict[str, list[Known]] = defaultdict(list)
    for job in jobs:
        by_cluster[job.clusters].append(job)
    for clusters, members in by_cluster.items():
        where = _at(clusters)
        # "-t all" also lists what ended minutes ago, since accounting may not know it yet, or may not exist.
        queue = run("squeue", *where, "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%j")
        parents = sorted({job.job_id.split("_")[0] for job in members})
        # SLURM 22.05 lacks --array, which would expand pending arrays. The newest job of a number may not be ours, so
        # list --duplicates.
        options = ("-X", "-n", "-P", "--duplicates", "-o", "JobID,State,JobName,ExitCode,Submit")
        accounting = run("sacct", *where, *options, "-j", ",".join(parents))
        held, told, now = _of_squeue(queue.lines), _of_sacct(accounting.lines), time.time()
        for job in members:
            found[job] = _state(job, _ours(job, held), _ours(job, told), queue, accounting, now)
    return found


def _at(clusters: str) -> tuple[str, ...]:
    return ("-M", clusters) if clusters else ()


def _ours(job: Known, rows: Mapping[str, list[_Row]]) -> _Row | None:
    """The newest row of the job, whatever other jobs have its number."""
    fitting = [row for row in rows.get(job.job_id, ()) if not job.name or row.name in ("", job.name)]
    return fitting[-1] if fitting else None


def _state(job: Known, held: _Row | None, told: _Row | None, queue: Answer, accounting: Answer, now: float) -> Job:
    if held is not None and held.state != "gone":
        # The controller still holds the job, so accounting is behind if it says otherwise.
        return Job(held.state, name=job.job_id, reason=held.reason if held.state == "pending" else None)
    over = told if told is not None and told.state == "gone" else held
    if over is not None and (held is not None or queue.ok or over.word not in REQUEUED_AFTER):
        exit_code = over.exit_code or (FAILED_SOMEHOW if over.word == "FAILED" else None)
        return Job("gone", FAILURES.get(over.word), job.job_id, exit_code=exit_code)
    if told is not None and told.state != "gone":
        return Job(told.state, name=job.job_id)
    if not queue.ok:
        return Job("unknown", name=job.job_id, reason=queue.problem)
    # The controller knows what waits and runs; without accounting there is nothing to wait for.
    if accounting.ok and now - job.submitted < LAG_SECONDS:
        return Job("unknown", name=job.job_id, reason=f"{UNLISTED} yet")
    return Job("gone", name=job.job_id)


def require_known(cluster: str, jobs: Iterable[Job]) -> None:
    """Raise UserError if it is unknown whether one of these jobs still waits or runs.

    jobs: those of cells that are neither finished nor to be submitted.
    """
    if not (unknown := [job for job in jobs if job.state == "unknown"]):
        return
    names = sorted({job.name or "one that was being submitted" for job in unknown})
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    why = unknown[0].reason or "SLURM does not answer"
    when = f"{LAG_SECONDS / 60:g} minutes after their submission" if UNLISTED in why else "When squeue answers again"
    raise UserError(
        f"cluster '{cluster}': {why}. It is not known whether these jobs wait or run: {listed}. Nothing was submitted, "
        f"so that no cell runs twice. {when}, run the same command"
    )


def largest_array() -> int:
    """Return the most tasks of a job array: the cluster's MaxArraySize, or SLURM's default."""
    for line in run("scontrol", "show", "config").lines:
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return 1001


def jobs_by_name(clusters: str = "") -> dict[str, str] | None:
    """Return the id of each of our pending or running arrays and jobs by name; None if squeue does not answer.

    clusters: the clusters to ask, if not this machine's.
    """
    answer = run("squeue", *_at(clusters), "--me", "-h", "-o", "%F|%j")
    if not answer.ok:
        return None
    return {name: job_id for job_id, _, name in (line.partition("|") for line in answer.lines)}


def slurm_jobs(folder: SweepFolder) -> dict[str, Job]:
    """Return the newest SLURM job of each cell, by signature.

    A submission whose driver is between two steps, or died there, counts if SLURM knows its job or does not answer.
    """
    handed_over: dict[str, list[tuple[journal.Entry, str]]] = defaultdict(list)
    found: dict[Known, Job] = {}
    names: dict[str, dict[str, str] | None] = {}
    for entry in journal.entries(folder):
        jobs = entry.jobs
        if entry.open:
            if entry.clusters not in names:
                names[entry.clusters] = jobs_by_name(entry.clusters)
            known = names[entry.clusters]
            if known is None:
                # It may have become jobs whose numbers nobody noted.
                jobs = dict.fromkeys(entry.signatures, "")
                found[_known(entry, "")] = Job("unknown", reason="squeue does not answer")
            else:
                jobs = replace(entry, job=known.get(entry.name)).jobs
        for signature, job_id in jobs.items():
            handed_over[signature].append((entry, job_id))
    newest = {signature: _known(*given[-1]) for signature, given in handed_over.items()}
    found |= states(job for job in newest.values() if job.job_id)
    shared = {(g[-1][0].path, g[-1][1]) for g in handed_over.values() if g[-1][0].share > 1 and g[-1][1]}
    turns = {one: read_turns(*one) for one in shared}
    return {
        signature: replace(
            found[newest[signature]],
            earlier=tuple(job_id for _, job_id in given[:-1] if job_id),
            array=given[-1][0].name,
            clusters=given[-1][0].clusters,
            submitted=given[-1][0].time,
            log=journal.log_path(*given[-1]),
            turns=turns.get((given[-1][0].path, given[-1][1])),
        )
        for signature, given in handed_over.items()
    }


def _known(entry: journal.Entry, job_id: str) -> Known:
    return Known(job_id, entry.name, entry.time, entry.clusters)


def cancel_jobs(job_ids: Iterable[str], *options: str, name: str = "", clusters: str = "") -> None:
    """Cancel pending and running jobs and array tasks with one call of scancel. Raises UserError if it fails.

    name: cancel only jobs of this name, because a number may be another job's by now. clusters: the clusters that have
    the jobs, if not this machine's.
    """
    if not (wanted := sorted(set(job_ids))):
        return
    answer = run("scancel", *_at(clusters), *options, *([f"--name={name}"] if name else []), *wanted)
    if answer.code is None and not answer.timed_out:
        raise UserError("scancel not found on the PATH; cancel on a machine with the cluster's commands")
    lines = [line for line in answer.errors.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    # It is no failure if a job has ended in the meantime.
    ended = all("already completi" in line or "Invalid job id" in line for line in errors) and bool(errors)
    if answer.timed_out or (answer.code and not ended):
        raise UserError(f"{answer.problem}; jobs may still run, so run the command again")
