"""Send what a tracker lacks of a sweep's runs, and nothing twice.

The runs themselves stay as they are. The sweep folder remembers, for each tracker and place, the tracker's own id of
each run (``tracking/<tracker>-<hash>.json``); which steps a run has, the tracker itself is asked.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsq.config.signature import digest
from gsq.errors import UserError
from gsq.files import read_json, write_json
from gsq.records.folder import RunFolder
from gsq.records.read import results_changed
from gsq.sweeps.planning.cells import Cell
from gsq.sweeps.planning.folder import SweepFolder, sweep_folder
from gsq.sweeps.state.status import status
from gsq.sweeps.tracking.contents import SAMPLES, TRAIN, Contents, read_contents
from gsq.sweeps.tracking.tracker import Tracker, make_tracker

FOLDER = "tracking"
# Time between two looks at the runs [s].
WATCH_SECONDS = 5.0


@dataclass
class Tracked:
    """The result of a call of ``track``: what it has sent."""

    to: str
    at: str
    project: str
    runs: int = 0
    """Runs at the tracker, sent now or before."""
    points: dict[str, int] = field(default_factory=lambda: {"train": 0, "evaluations": 0, "samples": 0})
    """Steps of curves, evaluations and pictures that were sent."""

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "points": dict(self.points)}


def track(
    sweep: str | SweepFolder,
    to: str,
    *,
    at: str | None = None,
    project: str | None = None,
    watch: bool = False,
    again: bool = False,
    runs: Path | None = None,
    on_update: Callable[[Tracked], None] = lambda found: None,
) -> Tracked:
    """Send the training curves, evaluations, samples and configs of a sweep's runs to a tracker.

    to: tensorboard, wandb, mlflow or trackio. at: its folder or address; by default where the sweep was sent before,
    or else the tracker's usual place. project: what the tracker calls the sweep (default: its name). watch: go on until
    every cell has ended; on_update is called after each look at the runs. again: send runs anew that were removed
    there. Only reads the run folders, and sends nothing twice. Raises UserError for an unknown sweep or tracker, a
    missing package, a place that cannot be used, another process that sends there now, and runs that were sent before
    and are gone.
    """
    folder = sweep_folder(sweep, runs)
    folder.signatures()  # raises for an unknown sweep
    ledger = _ledger(folder, to, at, project)
    tracker = make_tracker(to, at or ledger.get("at"), project or ledger.get("project") or folder.name)
    file = _file(folder, to, tracker.at, tracker.project)
    with _alone(file, to, tracker):
        mirror = Mirror(folder, to, tracker, file, again)
        try:
            while True:
                ended = not watch or status(folder).ended
                mirror.look()
                on_update(mirror.tracked)
                if ended:
                    return mirror.tracked
                time.sleep(WATCH_SECONDS)
        except tracker.errors as error:
            raise UserError(
                f"--to {to}: {tracker.at}: {error}; run the command again to send what is missing"
            ) from None
        finally:
            tracker.close()


class Mirror:
    """The runs of one sweep at one tracker."""

    def __init__(self, folder: SweepFolder, to: str, tracker: Tracker, file: Path, again: bool) -> None:
        self.folder, self.tracker, self.file, self.again = folder, tracker, file, again
        self.tracked = Tracked(to, tracker.at, tracker.project)
        self._ids: dict[str, str] = (read_json(file) or {}).get("runs", {})
        self._has: dict[str, set[tuple[str, int]]] = {}
        self._seen: dict[str, object] = {}
        self._cells: dict[str, Cell] = {}

    def look(self) -> None:
        """Send what has come since the last look."""
        if set(self.folder.signatures()) != self._cells.keys():
            self._cells = {cell.signature: cell for cell in self.folder.read_plan().cells}
        for cell in self._cells.values():
            run = RunFolder.of(self.folder.runs, cell.signature)
            seen = (results_changed(run), tuple(_size(path) for path in run.attempt_folders()))
            if seen != self._seen.get(cell.signature) and (contents := read_contents(run, cell)):
                self._send(contents)
                self._seen[cell.signature] = seen
        self.tracked.runs = len(self._ids)

    def _send(self, contents: Contents) -> None:
        signature = contents.signature
        run = self._ids.get(signature)
        if run is not None and signature not in self._has:
            try:
                self._has[signature] = self.tracker.sent(run)
            except UserError:
                if not self.again:
                    raise
                run = None
        if run is None:
            run = self._ids[signature] = self.tracker.begin(contents)
            self._has[signature] = self.tracker.sent(run)
            write_json(self.file, {"at": self.tracker.at, "project": self.tracker.project, "runs": self._ids})
        has = self._has[signature]
        new = [point for point in contents.points if point.key not in has]
        if new:
            self.tracker.send(run, contents, new)
            has.update(point.key for point in new)
        for point in new:
            kind = point.series if point.series in (TRAIN, SAMPLES) else "evaluations"
            self.tracked.points[kind] += 1
        if not contents.running:
            self.tracker.end(run, contents)


def _size(attempt: Path) -> tuple[int, int]:
    """Bytes of an attempt's curve, and when its status last changed."""
    found = []
    for name in ("metrics.jsonl", "status.json"):
        try:
            found.append((attempt / name).stat())
        except OSError:
            return 0, 0
    return found[0].st_size, found[1].st_mtime_ns


def _ledger(folder: SweepFolder, to: str, at: str | None, project: str | None) -> dict[str, Any]:
    """Return where the sweep was sent before, for whatever the user did not give; empty if that is ambiguous."""
    known = [read_json(file) or {} for file in sorted((folder.path / FOLDER).glob(f"{to}-*.json"))]
    fitting = [one for one in known if at in (None, one.get("at")) and project in (None, one.get("project"))]
    if at is None and len(fitting) > 1:
        places = "; ".join(f"--at {one['at']} --project {one['project']}" for one in fitting)
        raise UserError(f"--to {to}: sweep '{folder.name}' was sent to several places; say which: {places}")
    return fitting[0] if len(fitting) == 1 else {}


def _file(folder: SweepFolder, to: str, at: str, project: str) -> Path:
    return folder.path / FOLDER / f"{to}-{digest([at, project])[:8]}.json"


@contextmanager
def _alone(file: Path, to: str, tracker: Tracker) -> Iterator[None]:
    """Let one process at a time send to a place. Raises UserError if another one does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--to {to}: another gsq track sends this sweep to {tracker.at} now; stop it, or let it do the work"
            ) from None
        except OSError:
            pass  # The file system has no locks.
        yield
