"""What SLURM says of a sweep's jobs: one call of squeue and one of sacct for all of them.

SLURM gives the numbers of jobs to other jobs again (they wrap around, a new database begins at 1), so a job is known
by its number and its name together, and nothing is concluded or done from a number alone.
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

# Everything else that SLURM prints means that the job is over.
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
# After these SLURM itself starts a job again, which accounting hears of later than the controller.
REQUEUED_AFTER = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
# How long after its submission accounting may not have heard of a job; seconds.
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
    """A job as squeue or sacct lists it."""

    word: str
    """Its state."""
    name: str
    """The job's name; empty where the line ended before it."""
    reason: str | None = None
    exit_code: str | None = None
    submit: str = ""

    @property
    def state(self) -> SchedulerState:
        return "pending" if self.word in PENDING else "running" if self.word in ACTIVE else "gone"


_Rows = dict[str, list[_Row]]


def _of_squeue(lines: Iterable[str]) -> _Rows:
    """Lines of ``%i|%T|%r|%j``, by job."""
    rows: _Rows = defaultdict(list)
    for line in lines:
        job_id, _, rest = line.partition("|")
        state, reason, name, *_ = (*rest.split("|", 2), "", "")
        told = reason.strip() not in ("", "None", "(null)", "N/A")
        rows[job_id].append(_Row(_word(state), name, reason.strip() if told else None))
    return rows


def _of_sacct(lines: Iterable[str]) -> _Rows:
    """Lines of ``JobID,State,JobName,ExitCode,Submit``, by job, each job's in the order of submission."""
    rows: _Rows = defaultdict(list)
    for line in lines:
        listed, _, rest = line.partition("|")
        state, name, exit_code, submit, *_ = (*rest.split("|"), "", "", "", "")
        row = _Row(_word(state), name, None, exit_code or None, submit)
        for job_id in _expanded(listed):
            rows[job_id].append(row)
    return {job_id: sorted(found, key=lambda row: row.submit) for job_id, found in rows.items()}


def _word(text: str) -> str:
    """``CANCELLED`` of ``CANCELLED by 1000`` and of ``CANCELLED+``."""
    return text.split()[0].rstrip("+") if text.split() else ""


def _expanded(job_id: str) -> list[str]:
    """The tasks of an array that waits as one: ``7_1, 7_4, 7_6`` of ``7_[1,4-6:2%8]``; any other id alone."""
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
    """A job of ours: its number and what else tells it from others."""

    job_id: str
    """``12_3`` or ``12``."""
    name: str = ""
    """Empty where any job of the number is meant."""
    submitted: float = 0.0
    """Seconds since the epoch; 0 where that is long ago."""
    clusters: str = ""
    """The cluster that sbatch named, where there are several."""


def ask(job_ids: Iterable[str]) -> dict[str, Job]:
    """State of each job, by its number alone: only for jobs that are known to be ours."""
    return {job.job_id: state for job, state in states(Known(job_id) for job_id in job_ids).items()}


def states(jobs: Iterable[Known]) -> dict[Known, Job]:
    """State of each job. A job of another name that has the same number is not taken for it.

    The controller (squeue) knows what waits and runs, and accounting (sacct) how the rest ended. "unknown" where
    squeue does not answer and accounting has not heard of the job, or may not have heard that it was requeued; and
    where neither lists a job that was submitted a moment ago.
    """
    found: dict[Known, Job] = {}
    by_cluster: dict[str, list[Known]] = defaultdict(list)
    for job in jobs:
        by_cluster[job.clusters].append(job)
    for clusters, members in by_cluster.items():
        where = _at(clusters)
        # What has just ended is listed, too, for a few minutes: accounting may not know it yet, or not exist.
        queue = run("squeue", *where, "--me", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%j")
        parents = sorted({job.job_id.split("_")[0] for job in members})
        # --array would expand what is still pending, but SLURM 22.05 does not know it. With --duplicates, since the
        # newest job of a number need not be ours.
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
        # Accounting lags behind the controller: what that holds is not over.
        return Job(held.state, name=job.job_id, reason=held.reason if held.state == "pending" else None)
    over = told if told is not None and told.state == "gone" else held
    if over is not None and (held is not None or queue.ok or over.word not in REQUEUED_AFTER):
        exit_code = over.exit_code or (FAILED_SOMEHOW if over.word == "FAILED" else None)
        return Job("gone", FAILURES.get(over.word), job.job_id, exit_code=exit_code)
    if told is not None and told.state != "gone":
        return Job(told.state, name=job.job_id)
    if not queue.ok:
        return Job("unknown", name=job.job_id, reason=queue.problem)
    # Without accounting there is nothing to wait for: the controller knows what waits and runs.
    if accounting.ok and now - job.submitted < LAG_SECONDS:
        return Job("unknown", name=job.job_id, reason=f"{UNLISTED} yet")
    return Job("gone", name=job.job_id)


def require_known(cluster: str, jobs: Iterable[Job]) -> None:
    """Raise UserError where nobody knows whether one of these jobs still waits or runs.

    jobs: of cells that are neither finished nor to be submitted; those that are need no answer of SLURM.
    """
    unknown = [job for job in jobs if job.state == "unknown"]
    if not unknown:
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
    """Tasks that one job array may have: the cluster's MaxArraySize, or SLURM's default where it does not say."""
    for line in run("scontrol", "show", "config").lines:
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return 1001


def jobs_by_name(clusters: str = "") -> dict[str, str] | None:
    """Ids of our jobs that wait or run, an array by its own id, by their names; None where squeue does not answer.

    clusters: where they were submitted to, if not to the cluster of this machine.
    """
    answer = run("squeue", *_at(clusters), "--me", "-h", "-o", "%F|%j")
    if not answer.ok:
        return None
    return {name: job_id for job_id, _, name in (line.partition("|") for line in answer.lines)}


def slurm_jobs(folder: SweepFolder) -> dict[str, Job]:
    """The newest SLURM job of each cell, by signature. A submission whose driver is between two steps, or died
    there, counts where SLURM knows its job, or where SLURM does not answer."""
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
                # It may have become jobs, whose numbers nobody has noted.
                jobs = dict.fromkeys(entry.signatures, "")
                found[_known(entry, "")] = Job("unknown", reason="squeue does not answer")
            else:
                jobs = replace(entry, job=known.get(entry.name)).jobs
        for signature, job_id in jobs.items():
            handed_over[signature].append((entry, job_id))
    newest = {signature: _known(*given[-1]) for signature, given in handed_over.items()}
    found |= states(job for job in newest.values() if job.job_id)
    return {
        signature: replace(
            found[newest[signature]],
            earlier=tuple(job_id for _, job_id in given[:-1] if job_id),
            array=given[-1][0].name,
            clusters=given[-1][0].clusters,
            submitted=given[-1][0].time,
            log=journal.log_path(*given[-1]),
        )
        for signature, given in handed_over.items()
    }


def _known(entry: journal.Entry, job_id: str) -> Known:
    return Known(job_id, entry.name, entry.time, entry.clusters)


def cancel_jobs(job_ids: Iterable[str], *options: str, name: str = "", clusters: str = "") -> None:
    """Cancel jobs and array tasks, waiting or running, with one call of scancel. Raises UserError where it fails.

    name: only those that have this name; the number may have become another job's since it was asked for. clusters:
    where they were submitted to, if not to the cluster of this machine.
    """
    wanted = sorted(set(job_ids))
    if not wanted:
        return
    answer = run("scancel", *_at(clusters), *options, *([f"--name={name}"] if name else []), *wanted)
    if answer.code is None and not answer.timed_out:
        raise UserError("scancel not found on the PATH; cancel where the cluster's commands are")
    lines = [line for line in answer.errors.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    # A job that has ended in the meantime is no failure.
    ended = all("already completi" in line or "Invalid job id" in line for line in errors) and bool(errors)
    if answer.timed_out or (answer.code and not ended):
        raise UserError(f"{answer.problem}; the jobs may go on, run the command again")
