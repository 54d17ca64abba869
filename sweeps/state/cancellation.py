"""Markers of cancelled cells in the sweep folder, which last until the cell is submitted again.

``cancelled/<signature>`` keeps a running queue from starting the cell, and tells a SLURM job that its SIGTERM means
cancellation and not preemption. ``cancelled/<signature>.<pid>`` records that the worker with that process id has its
signal, because a second one would end it without a checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from gsq.records.attempt import FAILED, PRUNED, RUNNING
from gsq.records.read import RunRecord
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.states import CANCELLED, RESUMED
from gsq.sweeps.state.reconcile import Action, Job, can_shrink


def _folder(folder: SweepFolder) -> Path:
    return folder.path / "cancelled"


def mark(folder: SweepFolder, signatures: Iterable[str]) -> None:
    """Keep every queue from starting these cells."""
    _folder(folder).mkdir(parents=True, exist_ok=True)
    for signature in signatures:
        (_folder(folder) / signature).touch()


def clear(folder: SweepFolder, signatures: Collection[str]) -> None:
    """Forget that these cells were cancelled, because they are submitted again."""
    for path in list(_folder(folder).glob("*")):
        if path.name.partition(".")[0] in signatures:
            path.unlink(missing_ok=True)


def marked(folder: SweepFolder) -> set[str]:
    """Return the signatures of the cancelled cells."""
    return {path.name for path in _folder(folder).glob("*") if not path.suffix}


def stopping(folder: SweepFolder, actions: Iterable[Action]) -> tuple[str, ...]:
    """Return the signatures of cancelled cells whose job or worker has not ended yet."""
    cancelled = marked(folder)
    return tuple(a.cell.signature for a in actions if a.kind == "wait" and a.cell.signature in cancelled)


def claim_signal(folder: SweepFolder, signature: str, pid: int) -> bool:
    """Return True to the only caller that should send the worker its signal."""
    try:
        (_folder(folder) / f"{signature}.{pid}").touch(exist_ok=False)
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def resumes_by_itself(record: RunRecord) -> bool:
    """Return whether a queue on this machine retries a failed run by itself."""
    return record.state == FAILED and (record.failure in RESUMED or can_shrink(record, record.failure))


def with_cancelled(
    cancelled: Collection[str], records: Mapping[str, RunRecord], jobs: Mapping[str, Job]
) -> tuple[dict[str, RunRecord], dict[str, Job]]:
    """Return records and jobs in which every cancelled cell that waited, or waited to be resumed, has ended."""
    records, jobs = dict(records), dict(jobs)
    for signature in set(cancelled) & set(records):
        record, job = records[signature], jobs.get(signature)
        if record.state in (None, PRUNED) or resumes_by_itself(record):
            where = f"at step {record.step}" if record.step else "before its first step"
            records[signature] = replace(record, state=FAILED, failure=CANCELLED, message=f"cancelled {where}")
            if job is not None and job.state == "gone":
                jobs[signature] = replace(job, failure=CANCELLED)
        elif record.state == RUNNING and job is not None and job.state == "gone":
            jobs[signature] = replace(job, failure=CANCELLED)
    return records, jobs
