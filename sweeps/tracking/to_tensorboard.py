"""Runs as TensorBoard's event files, a folder for each: ``<at>/<project>/<signature>``."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from gsq.sweeps.tracking.contents import Contents, Point, series_of
from gsq.sweeps.tracking.tracker import folder_of, gone


class TensorBoard:
    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, at: Path, project: str) -> None:
        self.at, self.project = str(at), project
        self._writers: dict[str, Any] = {}

    def begin(self, run: Contents) -> str:
        name = f"{self.project}/{run.signature}"
        if Path(self.at, name).is_dir():
            return name
        self._writer(name, make=True).add_event(_text("config", yaml.safe_dump(dict(run.config), sort_keys=False)))
        self._writer(name).flush()
        return name

    def sent(self, run: str) -> set[tuple[str, int]]:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        files = sorted(Path(self.at, run).glob("events.out.tfevents.*"))
        if not files:
            raise gone("tensorboard", run, self.at)
        found: set[tuple[str, int]] = set()
        for file in files:
            for event in LegacyEventFileLoader(str(file)).Load():
                tags = [value.tag for value in event.summary.value if value.tag != "config"]
                found.update((series_of(tag), event.step) for tag in tags)
        return found

    def send(self, run: str, contents: Contents, points: Iterable[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        writer = self._writer(run)
        for point in points:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
            if point.picture is not None:
                data = point.picture.read_bytes()
                width, height = struct.unpack(">II", data[16:24])  # in the first chunk of a PNG file
                image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
                values.append(Summary.Value(tag=point.series, image=image))
            # One event for a whole point, so that a killed process leaves all of it or nothing.
            writer.add_event(Event(wall_time=point.time, step=point.step, summary=Summary(value=values)))
        writer.flush()

    def end(self, run: str, contents: Contents) -> None:
        if run in self._writers:
            self._writers.pop(run).close()

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, run: str, make: bool = False) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(self.at, run)
        if not make and not folder.is_dir():
            raise gone("tensorboard", run, self.at)
        if run not in self._writers:
            self._writers[run] = EventFileWriter(str(folder))
        return self._writers[run]


def _text(tag: str, text: str) -> Any:
    """An event with a text, as TensorBoard's plugin for texts takes it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    block = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown for preformatted
    tensor = TensorProto(dtype=DT_STRING, string_val=[block.encode()])
    value = Summary.Value(tag=tag, metadata=create_summary_metadata(tag, None), tensor=tensor)
    return Event(step=0, summary=Summary(value=[value]))


def make(at: str | None, project: str) -> TensorBoard:
    return TensorBoard(folder_of(at, "results/tensorboard"), project)
