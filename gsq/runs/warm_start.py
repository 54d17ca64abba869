"""Finished runs that a run with more steps can go on from. Imports no torch at the start.

With a constant learning rate the first n steps of a run do not depend on how many follow. Runs that differ only in
train.steps share a digest; below ``<runs>/lineage/<digest>/`` each that kept its checkpoint has an empty file named
``<steps>-<signature>``. A name whose run is gone is passed over.
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
    """Remember a run that is done and keeps its last checkpoint."""
    folder = _folder(run, config, files)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{config.train.steps}-{run.signature}").touch()


def planned_start(run: RunFolder, config: RunConfig, fingerprint: str) -> tuple[int, str] | None:
    """Steps of the run that ``shorter`` would find, and its signature, for a plan: from the names of files alone.

    fingerprint: of the data set (Manifest.fingerprint).
    """
    for steps, signature in _finished(run, config, Manifest("", fingerprint, (), ())):
        folders = RunFolder.of(run.path.parent.parent, signature).attempt_folders()
        if any((path / f"checkpoint-{steps:08d}.json").is_file() for path in folders):
            return steps, signature
    return None


def _finished(run: RunFolder, config: RunConfig, files: Manifest) -> Iterator[tuple[int, str]]:
    """Steps and signature of each finished run that is this one with fewer steps, the longest first."""
    found = []
    for path in _folder(run, config, files).glob("*-*"):
        number, _, signature = path.name.partition("-")
        if number.isdigit() and int(number) < config.train.steps:
            found.append((int(number), signature))
    for steps, signature in sorted(found, reverse=True):
        if read_run(RunFolder.of(run.path.parent.parent, signature)).state == DONE:
            yield steps, signature


def shorter(run: RunFolder, config: RunConfig, files: Manifest) -> tuple[Path, str] | None:
    """The last checkpoint of the longest finished run that is this one with fewer steps, and that run's name."""
    from gsq.training import checkpoint

    for steps, signature in _finished(run, config, files):
        for path in checkpoint.newest(RunFolder.of(run.path.parent.parent, signature).attempt_folders()):
            if path.stem == f"checkpoint-{steps:08d}":
                return path, f"{signature} at step {steps}"
    return None
