"""Finished runs from which a run with more steps can start. Imports torch only on use.

With a constant learning rate, the first n steps of a run do not depend on how many follow. Runs that differ only in
train.steps share a digest: each that kept its checkpoint has an empty file ``<steps>-<signature>`` below
``<runs>/lineage/<digest>/``. Names of deleted runs are ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gsq.config.run import RunConfig
from gsq.data.manifest import Manifest
from gsq.records.attempt import DONE
from gsq.records.folder import RunFolder
from gsq.records.read import read_run
from gsq.runs.identity import identity


def _folder(run: RunFolder, config: RunConfig, files: Manifest) -> Path:
    one_step = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=1))
    return run.path.parent.parent / "lineage" / identity(one_step, files)


def add(run: RunFolder, config: RunConfig, files: Manifest) -> None:
    """Register a run that is done and keeps its last checkpoint."""
    folder = _folder(run, config, files)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{config.train.steps}-{run.signature}").touch()


def planned_start(run: RunFolder, config: RunConfig, fingerprint: str) -> tuple[int, str] | None:
    """Steps and signature of the run that ``shorter`` would find, from file names alone, for a plan.

    fingerprint: Manifest.fingerprint of the data set.
    """
    for steps, signature in _finished(run, config, Manifest("", fingerprint, (), ())):
        folders = RunFolder.of(run.path.parent.parent, signature).attempt_folders()
        if any((path / f"checkpoint-{steps:08d}.json").is_file() for path in folders):
            return steps, signature
    return None


def _finished(run: RunFolder, config: RunConfig, files: Manifest) -> Iterator[tuple[int, str]]:
    """Steps and signature of each finished run that equals this one but for fewer steps, the longest first."""
    found = []
    for path in _folder(run, config, files).glob("*-*"):
        number, _, signature = path.name.partition("-")
        if number.isdigit() and int(number) < config.train.steps:
            found.append((int(number), signature))
    for steps, signature in sorted(found, reverse=True):
        if read_run(RunFolder.of(run.path.parent.parent, signature)).state == DONE:
            yield steps, signature


def shorter(run: RunFolder, config: RunConfig, files: Manifest) -> tuple[Path, str] | None:
    """The last checkpoint of the longest finished run that equals this one but for fewer steps, and its name."""
    from gsq.training import checkpoint

    for steps, signature in _finished(run, config, files):
        for path in checkpoint.newest(RunFolder.of(run.path.parent.parent, signature).attempt_folders()):
            if path.stem == f"checkpoint-{steps:08d}":
                return path, f"{signature} at step {steps}"
    return None
