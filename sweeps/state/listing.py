"""All sweeps below a runs folder, and the cells that run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.records.attempt import RUNNING
from gsq.records.folder import runs_root
from gsq.sweeps.planning.folder import SweepFolder, sweep_names
from gsq.sweeps.state.status import CellStatus, status


@dataclass(frozen=True)
class SweepLine:
    """One sweep of the list."""

    name: str
    submitted: float
    """When cells were last submitted, seconds since the epoch."""
    counts: dict[str, int]
    """Cells by state as people are told it; those that are not there are left out."""
    running: tuple[CellStatus, ...] = ()
    problem: str = ""
    """Why its plan cannot be read; then nothing else is known of it."""

    def to_dict(self) -> dict[str, Any]:
        running = [dict(vars(cell)) for cell in self.running]
        return {"sweep": self.name, "counts": self.counts, "running": running, "problem": self.problem}


def overview(runs: Path | None = None) -> tuple[SweepLine, ...]:
    """Every sweep below a runs folder, default ``$GSQ_RUNS``, the one that was submitted last first."""
    root = runs or runs_root()
    lines = [_line(SweepFolder(root, name)) for name in sweep_names(root)]
    return tuple(sorted(lines, key=lambda line: -line.submitted))


def _line(folder: SweepFolder) -> SweepLine:
    submitted = max(path.stat().st_mtime for path in folder.plan_files())
    try:
        found = status(folder)
    except UserError as error:
        return SweepLine(folder.name, submitted, {}, problem=str(error))
    running = tuple(cell for cell in found.cells if cell.state == RUNNING)
    return SweepLine(folder.name, submitted, found.shown_counts, running)
