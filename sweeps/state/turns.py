"""Which cells of a shared SLURM job have begun and ended in it: ``<job>_turns.json`` in the folder of its submission.

The job writes it; by it a restarted job knows where it was, and the reconciler which cells the job has left.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gsq.files import read_json, write_json


@dataclass(frozen=True)
class Turns:
    """The cells of a job, by signature."""

    begun: frozenset[str] = frozenset()
    ended: frozenset[str] = frozenset()
    """Those that the job will not start again: finished, failed by themselves, or cancelled."""

    def left(self, signature: str, gone: bool) -> bool:
        """Return whether the job has nothing more to do with a cell. gone: the job is over."""
        return signature in self.ended or (gone and signature not in self.begun)


def _file(entry: Path, job: str) -> Path:
    return entry / f"{job}_turns.json"


def read_turns(entry: Path, job: str) -> Turns | None:
    """Return the turns of a job (``12_3``); None before it has begun a cell. entry: folder of its submission."""
    values = read_json(_file(entry, job))
    if not isinstance(values, dict):
        return None
    return Turns(frozenset(values.get("begun", ())), frozenset(values.get("ended", ())))


def write_turns(entry: Path, job: str, begun: Iterable[str], ended: Iterable[str]) -> None:
    """Replace the turns of a job. On a full disk the cells' own records still tell."""
    with suppress(OSError):
        write_json(_file(entry, job), {"begun": sorted(begun), "ended": sorted(ended)}, sync=False)
