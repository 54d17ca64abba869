"""The result of evaluating finished cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Evaluations:
    """Result of ``evaluate_sweep``."""

    sweep: str
    finished: int
    """Number of finished runs."""
    new: list[dict[str, Any]] = field(default_factory=list)
    """Evaluations made on this machine, by the results table's column names."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a run was not evaluated, by signature."""
    arrays: dict[str, list[str]] = field(default_factory=dict)
    """Signatures by the SLURM id of each submitted array."""
    waiting: int = 0
    """Runs whose evaluation an earlier call submitted and that has not ended."""
    ended: tuple[str, ...] = ()
    """Runs submitted again, because their earlier job ended without a result."""
    logs: Path | None = None
