"""Sweep folders as a whole: what they hold on disk, renamed and removed."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from gsq.errors import UserError
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps.planning.folder import SweepFolder, sweep_names
from gsq.sweeps.spec.states import QUEUED
from gsq.sweeps.state.status import status

NAME = re.compile(r"(?!\.)[\w.-]+")


@dataclass(frozen=True)
class Removal:
    """What removing a sweep took away, and what it left."""

    bytes: int
    lone: int
    """Runs that no sweep mentions any more; gsq clean --orphans removes them."""


def sweep_bytes(name: str, runs: Path | None = None) -> int:
    """Return the bytes of a sweep: its folder and its runs, also those that other sweeps share."""
    folder = SweepFolder(runs or runs_root(), name)
    return _bytes(folder.path) + sum(_bytes(RunFolder.of(folder.runs, s).path) for s in folder.signatures())


def rename_sweep(name: str, new: str, runs: Path | None = None) -> SweepFolder:
    """Give a sweep another name; its runs, known by signature, stay where they are. Returns the new folder.

    Raises UserError for an unknown or live sweep, and for a name that is taken or cannot be one.
    """
    folder = _idle(name, runs)
    target = SweepFolder(folder.runs, new)
    if not NAME.fullmatch(new):
        raise UserError(f"gsq sweeps rename: {new!r} is not a name; use letters, digits, _, - and .")
    if target.path.exists():
        raise UserError(f"gsq sweeps rename: there is a sweep '{new}' already; choose another name, or remove it first")
    folder.path.rename(target.path)
    return target


def remove_sweep(name: str, runs: Path | None = None) -> Removal:
    """Remove a sweep's folder: its plan, logs and source copies. Runs and results tables stay.

    Raises UserError for an unknown or live sweep.
    """
    folder = _idle(name, runs)
    own, size = set(folder.signatures()), _bytes(folder.path)
    # Out of sight at once, so that no half of it is ever read as a sweep.
    hidden = folder.path.with_name(f".{name}.removed")
    folder.path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
    others = {s for other in sweep_names(folder.runs) for s in SweepFolder(folder.runs, other).signatures()}
    return Removal(size, sum(RunFolder.of(folder.runs, s).path.is_dir() for s in own - others))


def _idle(name: str, runs: Path | None) -> SweepFolder:
    """Return a sweep's folder. Raises UserError if a cell may be running or queued, or a queue is at work."""
    folder = SweepFolder(runs or runs_root(), name)
    try:
        found = status(folder)
    except UserError as error:
        if not folder.path.is_dir():
            raise
        raise UserError(
            f"{error}; so nobody can tell whether its cells run: if none does (squeue says it, or ps), remove the "
            f"folder {folder.path} yourself, which leaves all runs where they are"
        ) from None
    alive = [
        cell for cell in found.cells if cell.state in ("running", QUEUED) and (cell.job or cell.state == "running")
    ]
    if alive or _queue_at_work(folder):
        what = f"{len(alive)} of its cells run or wait in a queue" if alive else "a gsq run is at work on it"
        raise UserError(f"sweep '{name}': {what}; stop it first with: gsq cancel {name}")
    return folder


def _queue_at_work(folder: SweepFolder) -> bool:
    """Whether a local driver holds the lock of the sweep's queue."""
    import fcntl

    try:
        with (folder.path / "queue.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _bytes(path: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for where, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_size
            except OSError:
                continue
    return total
