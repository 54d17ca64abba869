"""Horizons: cells of the schedule wsd that differ only in their number of steps or in their decay.

Up to the step at which its learning rate begins to decay (RunConfig.trunk_steps, its branch point), a horizon equals
every longer one. So the longest trains this trunk and keeps a checkpoint at each branch point (execution.keep_at), and
the others train only their decay. This saves work and changes no result: where the checkpoint is missing, a cell trains
from its beginning (gsq.runs.warm_start).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gsq.config.run import RunConfig
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord


class Horizon(Protocol):
    """What a cell must have (gsq.sweeps.planning.cells.Cell)."""

    @property
    def signature(self) -> str: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def data_label(self) -> str: ...


Families = Sequence[Sequence[Horizon]]


def families(cells: Iterable[Horizon]) -> Families:
    """Return the groups of two or more cells that share a trunk, the longest of each first."""
    found: dict[Any, list[Horizon]] = defaultdict(list)
    for cell in cells:
        c = cell.config
        if c.optimizer.schedule == "wsd":
            train = replace(c.train, steps=1)
            parts = (c.model, c.quantizer, c.loss, c.discriminator, c.optimizer.trunk, train, c.data)
            found[parts, cell.data_label].append(cell)
    return [sorted(group, key=_longest_first) for group in found.values() if len(group) > 1]


def _longest_first(cell: Horizon) -> tuple[int, int, str]:
    return -cell.config.trunk_steps, -cell.config.train.steps, cell.signature


def with_branches(cells: Iterable[Horizon]) -> Iterator[tuple[str, RunConfig]]:
    """Yield signature and config of each cell that shares its trunk. The config keeps a checkpoint at each branch point
    of the others, so that any of them can train the trunk."""
    for group in families(cells):
        for cell in group:
            own, execution = cell.config.trunk_steps, cell.config.execution
            points = {other.config.trunk_steps for other in group if other is not cell}
            keep = tuple(sorted({*execution.keep_at, *(step for step in points if 0 < step <= own)}))
            yield cell.signature, replace(cell.config, execution=replace(execution, keep_at=keep))


class Branch(NamedTuple):
    """Where a horizon starts."""

    step: int
    host: str
    """Signature of the longer cell that passes there."""


def branches(groups: Families, steps: Mapping[str, int], begun: Collection[str]) -> dict[str, Branch]:
    """Return the branch, by signature, of each new cell for which a longer one that is running or to run passes there.

    steps: last or first step of each cell that is running or to run. begun: those that have steps of their own, which
    they continue.
    """
    found: dict[str, Branch] = {}
    for group in groups:
        first: dict[str, int] = {}
        for cell in group:
            signature, point = cell.signature, cell.config.trunk_steps
            if signature not in steps:
                continue
            host = next((other for other, step in first.items() if step <= point), None)
            if host is not None and signature not in begun and steps[signature] < point:
                found[signature] = Branch(point, host)
            first[signature] = point if signature in found else steps[signature]
    return found


def waiting(
    groups: Families, coming: Collection[str], records: Mapping[str, RunRecord], *, runs: Path
) -> dict[str, str]:
    """Return the cells that should not start yet, with the longer cell that has yet to reach their branch point.

    coming: signatures of cells that are running or to run.
    """
    steps = {signature: records[signature].step for signature in coming}
    found = branches(groups, steps, {signature for signature, step in steps.items() if step})
    for group in groups:
        for cell in group:
            point = cell.config.trunk_steps
            if cell.signature in found and any(_kept(runs, other.signature, point) for other in group):
                del found[cell.signature]
    return {signature: branch.host for signature, branch in found.items()}


def _kept(runs: Path, signature: str, step: int) -> bool:
    folders = RunFolder.of(runs, signature).attempt_folders()
    return any((path / f"checkpoint-{step:08d}.json").is_file() for path in folders)
