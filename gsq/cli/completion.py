"""Complete a half-written word of a command line in the shell: sweeps, their cells, presets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.records.folder import runs_root
from gsq.sweeps.spec.shipped import configs_folder, shipped_files


def complete_names(incomplete: str) -> Iterator[str]:
    """Names of submitted sweeps."""
    from gsq.sweeps.planning.folder import sweep_names

    yield from (name for name in sweep_names(runs_root()) if name.startswith(incomplete))


def complete_sweeps(incomplete: str) -> Iterator[str]:
    """Sweep files here and those that ship, then names of submitted sweeps."""
    files = [str(path) for path in sorted(Path().glob("*.y*ml"))]
    yield from (name for name in (*files, *shipped_files(configs_folder())) if name.startswith(incomplete))


def complete_cells(ctx: Any, incomplete: str) -> Iterator[tuple[str, str]]:
    """Signatures of the cells of the sweep on the line with their axes, then states and failure classes."""
    from gsq.sweeps.planning.folder import sweep_folder
    from gsq.sweeps.spec.states import RESUME, STATES

    try:
        cells = sweep_folder(str(ctx.params.get("sweep") or "")).read_plan().cells
    except UserError:
        return
    yield from ((cell.signature, cell.title) for cell in cells if cell.signature.startswith(incomplete))
    yield from ((word, "") for word in (*STATES, *RESUME) if word.startswith(incomplete))
