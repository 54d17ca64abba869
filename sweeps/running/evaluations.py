"""What became of the evaluations of finished cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Evaluations:
    """What a call of ``evaluate_sweep`` did."""

    sweep: str
    finished: int
    """Finished runs."""
    new: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations made here, by the results table's column names."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why not, by signature."""
    arrays: dict[str, list[str]] = field(default_factory=dict)
    """Signatures by the SLURM id of the array that was submitted."""
    waiting: int = 0
    """Runs whose evaluation waits or runs on SLURM since an earlier call."""
    ended: tuple[str, ...] = ()
    """Runs whose earlier job ended without a result; they were submitted again."""
    logs: Path | None = None
