"""Read from a run's folder what a tracker shows: config, training curve, evaluations and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsq.files import read_json
from gsq.records.attempt import RUNNING
from gsq.records.folder import RunFolder
from gsq.records.read import read_metrics, read_results, read_run
from gsq.sweeps.planning.cells import Cell

# Series of a run. Evaluations have one for each protocol, because numbers of different protocols are not comparable.
TRAIN, SAMPLES, EVALUATION = "train", "samples", "evaluation"


@dataclass(frozen=True)
class Point:
    """The values that one step adds to a series."""

    series: str
    """train, samples, or evaluation/<protocol>-<features>."""
    step: int
    time: float
    """When it was measured, in seconds since the epoch."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Numbers by name: ``<series>/rfid``."""
    picture: Path | None = None
    """A PNG file, for the series samples."""

    @property
    def key(self) -> tuple[str, int]:
        """Series and step: what a tracker has of these, it is not sent again."""
        return self.series, self.step


@dataclass(frozen=True)
class Contents:
    """All that there is of a run at one moment."""

    signature: str
    title: str
    """The run's values of the axes, in words."""
    state: str
    """running, done, failed or pruned."""
    attempt: int
    config: Mapping[str, Any]
    """Config keys with dots (``model.latent_dim``) and their values."""
    points: tuple[Point, ...]

    @property
    def running(self) -> bool:
        return self.state == RUNNING


def series_of(name: str) -> str:
    """Return the series of a number by its name: ``evaluation/<protocol>/usage_per_group/0`` is of
    ``evaluation/<protocol>``."""
    return "/".join(name.split("/")[: 2 if name.startswith(f"{EVALUATION}/") else 1])


def read_contents(folder: RunFolder, cell: Cell) -> Contents | None:
    """Return what a run folder has of a cell; None before its first attempt has written anything, and for ever where a
    worker ended before that."""
    record = read_run(folder)
    if record.state is None or not (folder.path / "config.yaml").exists():
        return None
    config = folder.read_config()
    points = tuple(one for one in (*_curve(folder, config), *_evaluations(folder)) if one.values or one.picture)
    flat = {key: value for key, value in _flat(config) if value not in ("", None)}
    about = {"gsq.signature": cell.signature, "gsq.cell": cell.title, "gsq.data": cell.data_label}
    return Contents(cell.signature, cell.title, record.state, record.attempts, about | flat, points)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, list | tuple) else value


def _curve(folder: RunFolder, config: Mapping[str, Any]) -> Iterator[Point]:
    """The training curve. Its lines have no time, which follows from the start and the images per second."""
    attempts = folder.attempt_folders()
    started = [float(status["started"]) for path in attempts if (status := read_json(path / "status.json"))]
    now, last = min(started, default=0.0), 0
    batch = config.get("train", {}).get("batch_size", 0)
    for line in read_metrics(folder):
        step = int(line["step"])
        if rate := line.get("images_per_second"):
            now += (step - last) * batch / rate
        last = step
        yield Point(TRAIN, step, now, _numbers(TRAIN, {k: v for k, v in line.items() if k != "step"}))


def _evaluations(folder: RunFolder) -> Iterator[Point]:
    """The evaluations, each with the picture that it made, if it has not been replaced since, and their probes, which
    may come later and so are series of their own."""
    results = read_results(folder)
    for name, result in results.evaluations.items():
        file = folder.path / name
        protocol = re.sub(r"[^\w.-]", "_", "-".join([str(result["protocol"]), *_features(result)]))
        series, step, time = f"{EVALUATION}/{protocol}", int(result["step"]), _changed(file)
        yield Point(series, step, time, _numbers(series, {k: v for k, v in result.items() if k != "step"}))
        for probe in results.probes.get((result["protocol"], step), ()):
            found = f"{series}-{probe['probe']}-{probe['probe_protocol']}"
            yield Point(found, step, time, _numbers(found, probe))
        picture = file.parents[1] / "samples.png"
        if "attempts" in file.parts and _newest(file) and 0 < _changed(picture) <= time:
            yield Point(SAMPLES, step, time, picture=picture)


def _features(result: Mapping[str, Any]) -> list[str]:
    return [str(result["features"]).partition("@")[0]] if result.get("features") else []


def _newest(file: Path) -> bool:
    """Whether no other evaluation belongs to a later step."""
    return file.name.rpartition("-")[2] == max(one.name.rpartition("-")[2] for one in file.parent.glob("*-*.json"))


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _numbers(series: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among values; lists, such as usage_per_group, by the position of each entry."""
    found: dict[str, float] = {}
    for name, value in values.items():
        entries = {f"{name}/{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {name: value}
        for key, one in entries.items():
            if isinstance(one, int | float) and not isinstance(one, bool):
                found[f"{series}/{key}"] = float(one)
    return found
