"""Why a job ended without a record in the run folder, from its exit code and the end of its log."""

from __future__ import annotations

import errno
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

from gsq.records.attempt import FAILED
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.folder import SweepFolder

# Bytes read from the end of a log, and from its beginning; characters shown of its last line.
TAIL_BYTES, HEAD_BYTES, LINE_LENGTH = 8192, 1 << 20, 300
# The first line of Python in a job, through submitit.
_BEGAN = re.compile(r"^submitit INFO ", re.MULTILINE)
# Lines that SLURM adds to the log of every failed job; they say less than the line before them.
_ROUTINE = re.compile(
    r"^srun: error: \S+: tasks? [\d,-]+: |^srun: (Force Terminated|Terminating|Job step aborted|launch/)"
    r"|^slurmstepd: error: \*\*\* |^<no Python frame>|^Current thread 0x"
)
# The line before each start of a local worker or job.
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
# Stands in for the exit code if only the controller answers, which does not report it.
FAILED_SOMEHOW = "failed"
# Signals that end a process from outside, and the exit codes by which srun and the shell report them.
_KILLED_SIGNALS = tuple(
    int(number)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
)
_KILLED_CODES = tuple(128 + number for number in _KILLED_SIGNALS)
# The last line of a process that could not even write its status.
_NO_ROOM = re.compile("|".join(re.escape(os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT)))
# SLURM's signal number if it cannot open the log of a job.
_NO_LOG_SIGNAL = 53


def killed_from_outside(exit_code: str, tail: str) -> bool:
    """Return whether an exit code of sacct (``code:signal``) means that the job was killed, or its node was away, and
    that it did not fail by itself."""
    if _NODE_AWAY.search(_STARTED.split(tail)[-1]):
        return True
    code, number = _numbers(exit_code)
    if number in _KILLED_SIGNALS or code in _KILLED_CODES:
        return True
    return code in _KILLED_SIGNALS and _ENDED_FROM_OUTSIDE.search(tail) is not None


def _own_failure(log: Path | None) -> str:
    """Return the class of a job that failed by itself: ``error``, or ``disk_full`` if its last line says so."""
    return "disk_full" if _NO_ROOM.search(last_line(log)) else "error"


def note_worker_death(folder: SweepFolder, signature: str, code: int) -> None:
    """Record a failed attempt for a local worker that ended before it wrote anything.

    code: its exit code, negative for a signal. A killed worker is lost, any other an error. Raises OSError if the run
    folder cannot be written.
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
    """Return ``error``, ``disk_full`` or ``lost`` for a job that ended without a record in its run folder.

    exit_code: as sacct prints it, or FAILED_SOMEHOW; None if unknown. log: the job's output. A job that failed by
    itself would fail again and is an error; a job that was killed, or of which nothing is known, is lost.
    """
    text = tail(log)
    if exit_code == FAILED_SOMEHOW:
        outside = _ENDED_FROM_OUTSIDE.search(text) or killed_from_outside("", text)
        return "lost" if outside else _own_failure(log)
    if exit_code is not None and _numbers(exit_code) != (0, 0):
        return "lost" if killed_from_outside(exit_code, text) else _own_failure(log)
    # It ended well, or SLURM has forgotten how. Python should at least have started.
    began = _BEGAN.search(_STARTED.split(_part(log, HEAD_BYTES, os.SEEK_SET))[-1]) or _ENDED_FROM_OUTSIDE.search(text)
    return "lost" if began or not text.strip() else _own_failure(log)


def before_python(log: Path | None) -> bool:
    """Return whether the last of a job's starts ended before Python began; False if its log does not tell."""
    _, *starts = _STARTED.split(tail(log))
    return bool(starts) and _BEGAN.search(starts[-1]) is None


def described(exit_code: str | None, log: Path | None) -> tuple[str, str]:
    """Return how a job ended (`` with exit code 3``) and the last line of its log (``: module: command not found``).

    Each part begins with what joins it to a sentence, and is empty if there is nothing to say.
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
    """Return the last line that is specific to this job, else SLURM's routine line, else an empty string."""
    # A progress bar overwrites its line.
    lines = _STARTED.split(tail(log))[-1].split("\n")
    lines = [line.rstrip("\r").rpartition("\r")[2].strip() for line in lines]
    lines = [line for line in lines if line]
    own = [line for line in lines if not _ROUTINE.search(line)]
    return (own or lines or [""])[-1][:LINE_LENGTH]


def tail(log: Path | None) -> str:
    """Return the end of a log; empty if there is none."""
    return _part(log, TAIL_BYTES, os.SEEK_END)


def _part(log: Path | None, count: int, whence: int) -> str:
    """The first or last ``count`` bytes of a log; empty if there is none."""
    with suppress(OSError):
        if log is not None:
            with log.open("rb") as file:
                if whence == os.SEEK_END:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - count))
                return file.read(count).decode(errors="replace")
    return ""


def _numbers(exit_code: str) -> tuple[int, int]:
    match = re.match(r"(\d+)(?::(\d+))?", exit_code)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)
