"""Checkpoints of other runs from which a run can start. Imports torch only on use.

Up to RunConfig.trunk_steps, a run does not depend on how many steps follow. Runs that differ only in train.steps and in
the decay of the schedule wsd share that trunk, and with it a digest: for each checkpoint that one of them keeps
(RunConfig.kept_steps) there is an empty file ``<step>-<signature>`` below ``<runs>/lineage/<digest>/``. Names whose
checkpoint does not exist (yet, or any more) are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gsq.config.run import RunConfig
from gsq.data.manifest import Manifest
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder
from gsq.records.read import read_evaluations, read_run
from gsq.runs.identity import identity


def trunk_digest(config: RunConfig, fingerprint: str) -> str:
    """What runs with the same trunk share. fingerprint: Manifest.fingerprint of the data set.

    Raises Missing like ``identity``.
    """
    one_step = replace(config, train=replace(config.train, steps=1), optimizer=config.optimizer.trunk)
    return identity(one_step, Manifest("", fingerprint, (), ()))


def _folder(run: RunFolder, config: RunConfig, fingerprint: str) -> Path:
    return run.path.parent.parent / "lineage" / trunk_digest(config, fingerprint)


def add(run: RunFolder, config: RunConfig, files: Manifest) -> None:
    """Register the checkpoints that a run keeps, by default that at the end of its trunk, before or after it writes
    them."""
    folder = _folder(run, config, files.fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    for step in config.kept_steps or (config.trunk_steps,):
        (folder / f"{step}-{run.signature}").touch()


def planned_start(run: RunFolder, config: RunConfig, fingerprint: str) -> tuple[int, str] | None:
    """Step and signature of the run that ``start`` would find, from file names alone, for a plan.

    fingerprint: Manifest.fingerprint of the data set.
    """
    for step, signature in _registered(run, config, fingerprint):
        folders = RunFolder.of(run.path.parent.parent, signature).attempt_folders()
        if any((path / f"checkpoint-{step:08d}.json").is_file() for path in folders):
            return step, signature
    return None


def _registered(run: RunFolder, config: RunConfig, fingerprint: str) -> Iterator[tuple[int, str]]:
    """Step and signature of each checkpoint that others keep of this run's trunk, the latest step first."""
    found = []
    for path in _folder(run, config, fingerprint).glob("*-*"):
        number, _, signature = path.name.partition("-")
        if number.isdigit() and 0 < int(number) <= config.trunk_steps and signature != run.signature:
            found.append((int(number), signature))
    # A run with as many steps as the checkpoint has nothing left to train.
    yield from ((step, signature) for step, signature in sorted(found, reverse=True) if step < config.train.steps)


class Start(NamedTuple):
    """A checkpoint of another run from which a run can start."""

    path: Path
    other: RunFolder
    step: int

    @property
    def name(self) -> str:
        return f"{self.other.signature} at step {self.step}"

    @property
    def description(self) -> str:
        record = read_run(self.other)
        if record.state == DONE and record.steps == self.step:
            return f"finished run {self.name}, which differs only by fewer steps"
        return f"run {self.name}, up to which both are the same"

    def evaluations(self, every: int) -> list[dict[str, Any]]:
        """The other's evaluations before the checkpoint that a run with this evaluation.every would make, too."""
        found = read_evaluations(self.other) if every else ()
        return [result for result in found if result["step"] < self.step and result["step"] % every == 0]


def start(run: RunFolder, config: RunConfig, files: Manifest) -> Start | None:
    """The latest checkpoint of another run from which this one can start."""
    from gsq.training import checkpoint

    for step, signature in _registered(run, config, files.fingerprint):
        other = RunFolder.of(run.path.parent.parent, signature)
        if (path := checkpoint.of_step(other.attempt_folders(), step)) is not None:
            return Start(path, other, step)
    return None
