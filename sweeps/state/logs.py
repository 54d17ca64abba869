"""The output of a cell, from the log of its local workers or the output files of its SLURM jobs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gsq.errors import UserError
from gsq.files import read_json
from gsq.records.attempt import DONE, FAILED, RUNNING
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder
from gsq.sweeps.spec.states import PLANNED, QUEUED
from gsq.sweeps.state import journal
from gsq.sweeps.state.reconcile import STOPPED, shown_state
from gsq.sweeps.state.selection import select_one
from gsq.sweeps.state.status import CellStatus, status

# The first line of each start, which the local queue or the job script writes; in older logs submitit does.
START = re.compile(r"^--- gsq (?:worker|job) started (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)$", re.MULTILINE)
SUBMITIT_START = re.compile(r"^submitit INFO \((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+\) - Starting with ", re.MULTILINE)
# Lines of the training curve to show, because a healthy run prints nothing else.
CURVE_LINES = 3
CURVE = {
    "step": "step",
    "loss": "loss",
    "mse": "mse",
    "perceptual": "perceptual",
    "images_per_second": "images/s",
    "loader_wait_seconds": "image wait s",
}


@dataclass(frozen=True)
class Log:
    """The log of one attempt."""

    folder: SweepFolder
    cell: CellStatus
    attempt: int
    """0 if the cell has not been tried."""
    state: str
    failure: str | None
    message: str | None
    text: str
    """Output of the attempt."""
    curve: tuple[str, ...]
    """The last lines of its training curve."""
    traceback: str
    """Empty if there is none, or if the text has it."""
    files: tuple[Path, ...]
    """Log files of the cell, oldest first, which may not exist."""

    @property
    def headline(self) -> str:
        """Attempt, state, failure and message in a line."""
        none = "a start without an attempt" if self.cell.attempts else "no attempt yet"
        which = f"attempt {self.attempt} of {self.cell.attempts}" if self.attempt else none
        state = shown_state(self.state, self.failure)
        state = f"{state} ({self.failure})" if self.failure and state != STOPPED else state
        message = f": {self.message}" if self.message else ""
        step = f" at step {self.cell.step}/{self.cell.steps}" if self.attempt == self.cell.attempts else ""
        return f"{self.cell.signature} {self.cell.title}, {which}, {state}{step}{message}"


def read_log(
    sweep: str | SweepFolder, cell: str | Sequence[str], attempt: int | None = None, *, runs: Path | None = None
) -> Log:
    """Read the log of a cell's newest attempt, or of the attempt with a number from 1.

    cell: a selection of one cell; an empty one means the only running cell, or the only cell. Raises UserError for an
    unknown sweep, cell or attempt.
    """
    folder = sweep_folder(sweep, runs)
    words = [cell] if isinstance(cell, str) else cell
    found = status(folder)
    if not words and [one.state for one in found.cells].count(RUNNING) == 1:
        words = [RUNNING]
    chosen = select_one(folder.read_plan(), found, words)
    files = log_files(folder, chosen.signature)
    paths = {int(path.name): path for path in RunFolder.of(folder.runs, chosen.signature).attempt_folders()}
    if attempt is not None and attempt not in paths:
        there = f"there are {', '.join(map(str, paths))}" if paths else "it has not been tried yet"
        raise UserError(f"--attempt: {chosen.signature} has no attempt {attempt}; {there}")
    number = attempt or max(paths, default=0)
    starts = _starts(files)
    own = (read_json(paths[number] / "status.json") if number else None) or {}
    ended = (chosen.state, chosen.failure, chosen.message)
    later = bool(starts) and starts[-1][0] > float(own.get("heartbeat", 0)) + 1 and own.get("state") != DONE
    if not number or (attempt is None and later):
        # The last start made no attempt, so only its output says why.
        return Log(folder, chosen, 0, *ended, starts[-1][1] if starts else "", (), "", files)
    if number != max(paths):
        ended = (own.get("state", RUNNING), own.get("failure"), own.get("message"))
    text = _of_attempt(starts, list(paths), number, float(own.get("started", 0)))
    traceback = ""
    with suppress(OSError):
        traceback = (paths[number] / "traceback.txt").read_text()
    lines = traceback.strip().splitlines()
    traceback = "" if lines and lines[-1] in text else traceback
    return Log(folder, chosen, number, *ended, text, _curve(paths[number], CURVE_LINES), traceback, files)


def log_files(folder: SweepFolder, signature: str) -> tuple[Path, ...]:
    """Return the log files of a cell: one for all workers on this machine, and one for each SLURM job."""
    jobs = ((entry, entry.jobs.get(signature)) for entry in journal.entries(folder))
    return folder.log(signature), *(journal.log_path(entry, job) for entry, job in jobs if job)


def _starts(files: Sequence[Path]) -> list[tuple[float, str]]:
    """Return time (seconds since the epoch) and output of each start of a worker, oldest first."""
    found = []
    for path in files:
        try:
            text, changed = path.read_text(errors="replace"), path.stat().st_mtime
        except OSError:
            continue
        matches = list(START.finditer(text)) or list(SUBMITIT_START.finditer(text))
        # Earlier lines belong to the first start: SLURM's own, or those of a job that got no further.
        bounds = [0, *(match.start() for match in matches[1:]), len(text)]
        times = [time.mktime(time.strptime(match[1], "%Y-%m-%d %H:%M:%S")) for match in matches] or [changed]
        pieces = [text[start:end] for start, end in pairwise(bounds)]
        found += [(begun, piece) for begun, piece in zip(times, pieces, strict=True) if piece.strip()]
    return sorted(found, key=lambda start: start[0])


def _of_attempt(starts: list[tuple[float, str]], attempts: list[int], number: int, begun: float) -> str:
    if len(starts) == len(attempts):
        return starts[attempts.index(number)][1]
    # A start made no attempt, or an attempt was made elsewhere (gsq train), so take the last start before it.
    before = [text for time_of_start, text in starts if time_of_start <= begun + 1]
    return before[-1] if before else ""


def _curve(attempt: Path, count: int | None = None) -> tuple[str, ...]:
    try:
        lines = (attempt / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return ()
    shown = []
    for line in lines if count is None else lines[-count:]:
        try:
            value = json.loads(line)
        except ValueError:
            continue  # The line is torn or still being written.
        shown.append(", ".join(f"{name} {value[key]:.4g}" for key, name in CURVE.items() if key in value))
    return tuple(shown)


def follow(log: Log, poll_seconds: float = 1.0) -> Iterator[str]:
    """Yield new output of the cell and lines of its training curve until the cell has ended."""
    signature = log.cell.signature
    run = RunFolder.of(log.folder.runs, signature)
    offsets = {path: path.stat().st_size for path in log.files if path.exists()}
    seen = {path: len(_curve(path)) for path in run.attempt_folders()}
    while True:
        found = next(cell for cell in status(log.folder).cells if cell.signature == signature)
        for path in log_files(log.folder, signature):
            with suppress(OSError), path.open("rb") as file:
                file.seek(offsets.get(path, 0))
                piece = file.read()
                offsets[path] = file.tell()
                if piece:
                    yield piece.decode(errors="replace")
        for path in run.attempt_folders():
            lines = _curve(path)
            for line in lines[seen.get(path, 0) :]:
                yield line + "\n"
            seen[path] = len(lines)
        if found.state not in (PLANNED, QUEUED, "running"):
            state = shown_state(found.state, found.failure)
            why = f" ({found.failure})" if state == FAILED else ""
            why += f": {found.message}" if state in (FAILED, STOPPED) else ""
            yield f"{signature} {state}{why}\n"
            return
        # Other users share sacct.
        time.sleep(max(poll_seconds, 5.0) if journal.numbers(log.folder) else poll_seconds)
