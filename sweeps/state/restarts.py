"""Count how often SLURM restarts a job, and stop a job that makes no further step.

A signal handler calls this while the job's modules may still be loading, so it has few imports.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from gsq.files import read_json, write_json
from gsq.records.attempt import DONE, FAILED
from gsq.records.folder import RunFolder, probe_progress
from gsq.records.read import read_run
from gsq.sweeps.state.turns import read_turns

# A job is given up after so many restarts in a row without a further step, like the local queue's attempts
# (gsq.sweeps.state.reconcile.PATIENCE).
PATIENCE = 3


def _file(entry: Path, job: str) -> Path:
    return entry / f"{job}_restarts.json"


def read(entry: Path, job: str) -> int:
    """Return how often a job (``12_3``) of a submission has been restarted, as far as is known."""
    known = read_json(_file(entry, job))
    return int(known.get("restarts", 0)) if isinstance(known, dict) else 0


def _this_job() -> tuple[str, int]:
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return job, int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def note_start(entry: Path) -> None:
    """Record that this job has started again. entry: folder of the submission."""
    job, count = _this_job()
    if count:
        _write(_file(entry, job), {**(read_json(_file(entry, job)) or {}), "restarts": count})


def worthwhile(entry: Path, steps: int) -> bool:
    """Return whether to start this job once more. steps: of its runs, as ``steps_of`` counts them."""
    job, count = _this_job()
    known = {"steps": 0, "since": 0, **(read_json(_file(entry, job)) or {}), "restarts": count}
    if steps > known["steps"]:
        known |= {"steps": steps, "since": count}
    _write(_file(entry, job), known)
    return bool(count + 1 - known["since"] <= PATIENCE)


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        write_json(path, values, sync=False)
    except OSError as error:
        # SLURM's own count of the restarts still ends the job.
        print(f"cannot note the restart: {error}", flush=True)


def too_short(minutes: int, seconds: float) -> str:
    """Return the message for a job without progress. seconds: how long its last start ran."""
    return (
        f"SLURM stopped the job {PATIENCE + 1} times in a row before it made a further step, the last time after "
        f"{seconds / 60:.1f} of its {minutes} minutes; give it more time: minutes in the cluster file"
    )


def _runs(entry: Path, task: int) -> list[RunFolder]:
    """Run folders of the cells of a task."""
    values = read_json(entry / "entry.json")
    count = values["cells_per_job"] * values.get("cells_in_turn", 1)
    return [RunFolder.of(entry.parents[3], one) for one in values["signatures"][task * count : (task + 1) * count]]


def give_up(entry: Path, task: int, started: float) -> str:
    """Record a time-out in the run folders of a task's cells that have begun and not ended. Returns its message.

    started: seconds since the epoch at which this start of the job began.
    """
    message = too_short(read_json(entry / "entry.json")["minutes"], time.time() - started)
    turns = read_turns(entry, _this_job()[0])
    for folder in _runs(entry, task):
        record = read_run(folder)
        if turns is not None and turns.left(folder.signature, gone=True):
            continue
        # A cancelled run has already recorded its end.
        if record.state != DONE and record.failure != "cancelled":
            folder.new_attempt().write_status(FAILED, record.step, record.steps, failure="timeout", message=message)
    return message


def steps_of(entry: Path, task: int) -> int:
    """Return a number that grows with each step of a task's cells, and with what their probes save."""
    return sum(read_run(folder).step + probe_progress(folder) for folder in _runs(entry, task))
