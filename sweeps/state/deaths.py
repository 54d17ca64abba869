"""Why a job ended that left no word of its own in the run folder: its exit code, and the end of what it printed."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

from gsq.records.attempt import FAILED
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.folder import SweepFolder

# How much of the end of a log is read, and how much of its last line is shown.
TAIL_BYTES, LINE_LENGTH = 8192, 300
# What Python says first in a job, through submitit.
_BEGAN = re.compile(r"^submitit INFO ", re.MULTILINE)
# What SLURM adds to the log of every job that fails; it says less than the line before it.
_ROUTINE = re.compile(
    r"^srun: error: \S+: tasks? [\d,-]+: |^srun: (Force Terminated|Terminating|Job step aborted|launch/)"
    r"|^slurmstepd: error: \*\*\* |^<no Python frame>|^Current thread 0x"
)
# Before each start of a local worker or of a job.
_STARTED = re.compile(r"^--- gsq (?:worker|job) started .*$", re.MULTILINE)
_ENDED_FROM_OUTSIDE = re.compile(
    r"^slurmstepd: error: \*\*\* (JOB|STEP)|^srun: error: .*: (Killed|Terminated|Hangup|Interrupt|User defined signal)",
    re.MULTILINE,
)
# srun could not reach the node's slurmd, which was just restarting, say.
_NODE_AWAY = re.compile(
    r"^srun: error: (?:Task|Application) launch .*"
    r"(?:Zero Bytes were transmitted|[Cc]ommunication connection failure|Socket timed out|Unable to contact slurmd)",
    re.MULTILINE,
)
# In place of an exit code, where only the controller has been heard, which tells none.
FAILED_SOMEHOW = "failed"
# Somebody else ended it, or told it to stop before it could listen. srun and the shell have their own ways to say so.
_KILLED_SIGNALS = tuple(
    int(number)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
)
_KILLED_CODES = tuple(128 + number for number in _KILLED_SIGNALS)
# The last line of a process that could not even write its status.
_NO_ROOM = re.compile("|".join(re.escape(os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT)))
# What SLURM says where it cannot open the log of a job.
_NO_LOG_SIGNAL = 53


def killed_from_outside(exit_code: str, tail: str) -> bool:
    """Whether an exit code of sacct (``code:signal``) means that the job was killed, or its node was away, rather than
    that it failed."""
    if _NODE_AWAY.search(_STARTED.split(tail)[-1]):
        return True
    code, number = _numbers(exit_code)
    if number in _KILLED_SIGNALS or code in _KILLED_CODES:
        return True
    return code in _KILLED_SIGNALS and _ENDED_FROM_OUTSIDE.search(tail) is not None


def _own_failure(log: Path | None) -> str:
    """The class of a job that failed by itself: an error, unless it says that there was no room for a record of it."""
    return "disk_full" if _NO_ROOM.search(last_line(log)) else "error"


def note_worker_death(folder: SweepFolder, signature: str, code: int) -> None:
    """Record for a worker of the local queue, which ended before it wrote anything, that its attempt failed.

    code: its exit code, negative for a signal: a worker that was killed is lost, and any other an error. Raises OSError
    where the run folder cannot be written.
    """
    how = f"with exit code {code}" if code > 0 else f"by signal {-code}"
    log = folder.log(signature)
    line = last_line(log)
    message = f"the worker ended {how} before the run wrote anything{f': {line}' if line else ''} (see {log})"
    steps = folder.read_cell(signature).config.train.steps
    attempt = RunFolder.of(folder.runs, signature).new_attempt()
    failure = "lost" if -code in _KILLED_SIGNALS else _own_failure(log)
    attempt.write_status(FAILED, 0, steps, failure=failure, message=message)


def failure_of(exit_code: str | None, log: Path | None) -> str:
    """``error``, ``disk_full`` or ``lost``, for a job that ended without a word in its run folder.

    exit_code: as sacct prints it, or FAILED_SOMEHOW; None where nobody knows it. log: the file with what the job
    printed. A job that failed by itself would fail again and is an error; a job that was killed, or of which nothing is
    known, is lost.
    """
    text = tail(log)
    if exit_code == FAILED_SOMEHOW:
        outside = _ENDED_FROM_OUTSIDE.search(text) or killed_from_outside("", text)
        return "lost" if outside else _own_failure(log)
    if exit_code is not None and _numbers(exit_code) != (0, 0):
        return "lost" if killed_from_outside(exit_code, text) else _own_failure(log)
    # It ended well, or SLURM has forgotten how: then Python should at least have begun.
    began = _BEGAN.search(_STARTED.split(_head(log))[-1]) or _ENDED_FROM_OUTSIDE.search(text)
    return "lost" if began or not text.strip() else _own_failure(log)


def before_python(log: Path | None) -> bool:
    """Whether a job's last start, of several, ended before Python began; False where its log does not tell."""
    _, *starts = _STARTED.split(tail(log))
    return bool(starts) and _BEGAN.search(starts[-1]) is None


def described(exit_code: str | None, log: Path | None) -> tuple[str, str]:
    """How it ended (`` with exit code 3``), and the last line of its log (``: module: command not found``).

    Each begins with what joins it to a sentence, and is empty where there is nothing to say.
    """
    how = ""
    code, number = _numbers(exit_code or "0:0")
    if exit_code not in (None, FAILED_SOMEHOW):
        how = f" by signal {number}" if number else f" with exit code {code}"
    line = last_line(log)
    if number == _NO_LOG_SIGNAL and log is not None and not line:
        line = f"SLURM could not open its log {log}; can the compute nodes see that folder and write to it?"
    return how, f": {line}" if line else ""


def last_line(log: Path | None) -> str:
    """The last line that says something of this job; what SLURM says of every such job where there is none."""
    # A progress bar writes its line again and again.
    lines = _STARTED.split(tail(log))[-1].split("\n")
    lines = [line.rstrip("\r").rpartition("\r")[2].strip() for line in lines]
    lines = [line for line in lines if line]
    own = [line for line in lines if not _ROUTINE.search(line)]
    return (own or lines or [""])[-1][:LINE_LENGTH]


def tail(log: Path | None) -> str:
    """The end of a log; empty where there is none."""
    try:
        if log is None:
            return ""
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _head(log: Path | None) -> str:
    """The whole log, but of a long one its beginning: enough to see whether Python began."""
    try:
        if log is None:
            return ""
        with log.open("rb") as file:
            return file.read(1 << 20).decode(errors="replace")
    except OSError:
        return ""


def _numbers(exit_code: str) -> tuple[int, int]:
    match = re.match(r"(\d+)(?::(\d+))?", exit_code)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)
