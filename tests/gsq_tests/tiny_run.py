"""The smallest run that has every part, and helpers to look at what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gsq import RunConfig, RunFolder, override, preset
from gsq.records.attempt import TIMINGS
from gsq.records.read import read_evaluations, read_metrics

TINY: dict[str, Any] = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "model.latent_dim": 4,
    "quantizer.groups": 2,
    "quantizer.codebook_size": 32,
    "loss.discriminator_start": 0,
    "discriminator.channels": 8,
    "discriminator.norm_groups": 4,
    "data.image_size": 32,
    "train.steps": 6,
    "train.batch_size": 2,
    "evaluation.num_images": 8,
    "evaluation.batch_size": 8,
    "execution.log_every": 1,
    "execution.checkpoint_every": 2,
}


def tiny(**changes: Any) -> RunConfig:
    """preset cpu-tiny, made smaller; ``changes`` by short name, or by dotted name with __ for the dot."""
    return override(preset("cpu-tiny"), {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}})


def curve(folder: RunFolder) -> list[dict[str, float]]:
    """The training curve, less the timings."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(folder)]


def evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    return list(read_evaluations(folder))


def status(folder: RunFolder, attempt: int = -1) -> dict[str, Any]:
    value = json.loads((folder.attempt_folders()[attempt] / "status.json").read_text())
    assert isinstance(value, dict)
    return value


def files_below(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def only_run(runs: Path) -> RunFolder:
    (path,) = runs.glob("??/*")
    return RunFolder(path)
