"""What SLURM says of a sweep's jobs: one sacct call for all of them, squeue as a tie-break."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from gsq.errors import UserError
from sweeps import journal
from sweeps.folder import SweepFolder
from sweeps.reconcile import Job, SchedulerState

# Everything else that sacct prints means that the job is over.
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


def require_slurm() -> None:
    """Raise UserError unless SLURM's commands are on the PATH and the controller answers."""
    missing = [name for name in ("sbatch", "sacct", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"cluster slurm: {', '.join(missing)} not found on the PATH; run this on a login node of the cluster, or "
            "use --cluster local"
        )
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    if ping.returncode:
        lines = (ping.stdout + ping.stderr).strip().splitlines()
        raise UserError(
            f"cluster slurm: the controller does not answer (scontrol ping: {lines[0] if lines else 'failed'})"
        )


def _lines(*words: str) -> list[str] | None:
    """Lines that a command prints; None where it is missing, fails or hangs."""
    try:
        # Without a limit on the list of an array's tasks, which is cut at 64 characters otherwise.
        environment = {**os.environ, "SLURM_BITSTR_LEN": "0"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _state(text: str) -> tuple[SchedulerState, str | None]:
    word = text.split()[0].rstrip("+") if text.split() else ""
    if word in PENDING:
        return "pending", None
    if word in ACTIVE:
        return "running", None
    return "gone", FAILURES.get(word)


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


def ask(job_ids: Iterable[str]) -> dict[str, Job]:
    """State of each job (``12_3`` or ``12``); "unknown" where sacct does not answer and squeue has nothing on it."""
    wanted = set(job_ids)
    if not wanted:
        return {}
    parents = sorted({job_id.split("_")[0] for job_id in wanted})
    # --array would expand what is still pending, but SLURM 22.05 does not know it. --duplicates is left out: the newest
    # run of a requeued job counts.
    accounted = _lines("sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(parents))
    # A job that accounting has forgotten is over; where accounting is down, nothing is known.
    found = {job_id: Job("unknown" if accounted is None else "gone", name=job_id) for job_id in wanted}
    for line in accounted or []:
        listed, _, text = line.partition("|")
        for job_id in wanted.intersection(_expanded(listed)):
            found[job_id] = Job(*_state(text), name=job_id)
    # Accounting lags behind the controller: what squeue still holds is not over, whatever sacct says.
    for line in _lines("squeue", "--me", "-h", "-r", "-o", "%i|%T") or []:
        job_id, _, text = line.partition("|")
        if job_id in wanted:
            found[job_id] = Job(*_state(text), name=job_id)
    return found


def largest_array() -> int:
    """Tasks that one job array may have: the cluster's MaxArraySize, or SLURM's default where it does not say."""
    for line in _lines("scontrol", "show", "config") or []:
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return 1001


def jobs_by_name() -> dict[str, str] | None:
    """Ids of our jobs that wait or run, an array by its own id, by their names; None where squeue does not answer."""
    lines = _lines("squeue", "--me", "-h", "-o", "%F|%j")
    if lines is None:
        return None
    return {name: job_id for job_id, _, name in (line.partition("|") for line in lines)}


def slurm_jobs(folder: SweepFolder) -> dict[str, Job]:
    """The newest SLURM job of each cell, by signature. A submission whose driver is between two steps, or died
    there, counts where SLURM knows its job."""
    handed_over: dict[str, list[str]] = defaultdict(list)
    names: dict[str, str] | None = None
    for entry in journal.entries(folder):
        if entry.open:
            names = jobs_by_name() or {} if names is None else names
            entry = replace(entry, job=names.get(entry.name))
        for signature, job_id in entry.jobs.items():
            handed_over[signature].append(job_id)
    states = ask(job_ids[-1] for job_ids in handed_over.values())
    return {
        signature: replace(states[job_id], earlier=tuple(earlier)) if earlier else states[job_id]
        for signature, (*earlier, job_id) in handed_over.items()
    }


def cancel_jobs(job_ids: Iterable[str], *options: str) -> None:
    """Cancel jobs and array tasks, waiting or running, with one call of scancel. Raises UserError where it fails."""
    wanted = sorted(set(job_ids))
    if not wanted:
        return
    try:
        done = subprocess.run(["scancel", *options, *wanted], capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise UserError("scancel not found on the PATH; cancel where the cluster's commands are") from None
    except subprocess.TimeoutExpired:
        raise UserError("scancel does not answer; try later") from None
    # A job that has ended in the meantime is no failure.
    problems = [line for line in done.stderr.splitlines() if line.strip() and "already completi" not in line]
    if done.returncode and problems:
        raise UserError(f"scancel: {problems[0]}")
