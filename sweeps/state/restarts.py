"""How often SLURM has started a job again, and when that is no use: it never comes to a further step.

Called from a signal handler while the job's modules may still be loading, hence with few imports.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from gsq.files import read_json, write_json
from gsq.records.attempt import DONE, FAILED
from gsq.records.folder import RunFolder
from gsq.records.read import read_run

# Restarts in a row without a further step after which a job is given up. The same holds for the local queue's
# attempts (gsq.sweeps.state.reconcile.PATIENCE).
PATIENCE = 3


def _file(entry: Path, job: str) -> Path:
    return entry / f"{job}_restarts.json"


def read(entry: Path, job: str) -> int:
    """How often a job (``12_3``) of a submission has been started again, as far as it could say."""
    known = read_json(_file(entry, job))
    return int(known.get("restarts", 0)) if isinstance(known, dict) else 0


def _this_job() -> tuple[str, int]:
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return job, int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def note_start(entry: Path) -> None:
    """Say that this job has started, where it is not for the first time. entry: folder of the submission."""
    job, count = _this_job()
    if count:
        _write(_file(entry, job), {**(read_json(_file(entry, job)) or {}), "restarts": count})


def worthwhile(entry: Path, steps: int) -> bool:
    """Whether this job should be started once more. steps: what its runs have come to, in all."""
    job, count = _this_job()
    known = {"steps": 0, "since": 0, **(read_json(_file(entry, job)) or {}), "restarts": count}
    if steps > known["steps"]:
        known |= {"steps": steps, "since": count}
    _write(_file(entry, job), known)
    return bool(count + 1 - known["since"] <= PATIENCE)


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        write_json(path, values)
    except OSError as error:
        # SLURM's own count of the restarts still ends it.
        print(f"cannot note the restart: {error}", flush=True)


def too_short(minutes: int, seconds: float) -> str:
    """What to tell the user. seconds: how long the last start ran."""
    return (
        f"SLURM stopped the job {PATIENCE + 1} times in a row before it made a further step, the last time after "
        f"{seconds / 60:.1f} of its {minutes} minutes; give it more time: minutes in the cluster file"
    )


def give_up(entry: Path, task: int, started: float) -> str:
    """Record in the run folders of a task's cells that they ended as a time-out; returns what it says there.

    started: seconds since the epoch at which this start of the job began.
    """
    values = read_json(entry / "entry.json")
    count = values["cells_per_job"]
    message = too_short(values["minutes"], time.time() - started)
    for signature in values["signatures"][task * count : (task + 1) * count]:
        folder = RunFolder.of(entry.parents[3], signature)
        record = read_run(folder)
        # A run that a user has cancelled has said so.
        if record.state != DONE and record.failure != "cancelled":
            folder.new_attempt().write_status(FAILED, record.step, record.steps, failure="timeout", message=message)
    return message


def steps_of(entry: Path, task: int) -> int:
    """Steps that the cells of a task have come to, in all."""
    values = read_json(entry / "entry.json")
    count, runs = values["cells_per_job"], entry.parents[3]
    members = values["signatures"][task * count : (task + 1) * count]
    return sum(read_run(RunFolder.of(runs, signature)).step for signature in members)
