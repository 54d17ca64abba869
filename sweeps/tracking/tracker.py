"""The interface that gsq needs from an experiment tracker, and the list of trackers."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gsq.errors import UserError, choose
from gsq.sweeps.spec.container import TRACKERS
from gsq.sweeps.tracking.contents import Contents, Point


class Gone(UserError):
    """A run that was sent is no longer where it was."""


class Tracker(Protocol):
    """One place of one tracker. A run there is known by an id of the tracker's own, which never changes."""

    at: str
    """The place to send to: a folder or an address, as given to ``--at``."""
    project: str
    errors: tuple[type[Exception], ...]
    """Exceptions that its library raises if the tracker cannot be reached or refuses something."""

    def begin(self, run: Contents) -> str:
        """Make a run with its config, unless there is one of this signature. Returns its id."""

    def sent(self, run: str) -> set[tuple[str, int]]:
        """Series and step of each point that the run has. Raises Gone if there is no such run."""

    def send(self, run: str, contents: Contents, points: Iterable[Point]) -> None:
        """Add points to a run. When this returns, ``sent`` has them."""

    def end(self, run: str, contents: Contents) -> None:
        """Note how a run has ended."""

    def close(self) -> None:
        """Write out what is open."""


def make_tracker(to: str, at: str | None, project: str) -> Tracker:
    """Return a tracker by its name. at: its place; None for the usual one. Raises UserError if its package is missing,
    or the place cannot be used."""
    choose("--to", to, TRACKERS)
    require_package(to)
    tracker: Tracker = importlib.import_module(f"gsq.sweeps.tracking.to_{to}").make(at, project)
    return tracker


def require_package(to: str) -> None:
    """Raise UserError, with the command that installs it, if the package of a tracker is not here."""
    if (found := importlib.util.find_spec(to)) is None or found.origin is None:
        raise UserError(
            f"--to {to}: the package '{to}' is not installed here; install it with: pip install 'gsq[{to}]'"
        )


def folder_of(at: str | None, default: str) -> Path:
    """Return the folder to write to. Raises UserError if it cannot be made."""
    path = Path(at or default).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--at: {path} cannot be made: {error.strerror}; name a folder that you may write to") from None
    return path


def gone(to: str, run: str, where: str) -> Gone:
    return Gone(
        f"--to {to}: the run {run} was sent to {where} before and is not there any more: it was deleted or renamed. "
        "Put it back, or send it once more with --again"
    )
