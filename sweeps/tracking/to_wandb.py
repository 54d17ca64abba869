"""Runs at Weights & Biases, or as its offline folders, by the environment variable WANDB_MODE."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.records.attempt import DONE
from gsq.sweeps.tracking.contents import Contents, Point
from gsq.sweeps.tracking.tracker import folder_of, gone

# The log format of LevelDB, in which wandb keeps all that it was told: blocks of records, each with a head of checksum,
# length and type (1 whole, 2 first, 3 middle, 4 last part).
BLOCK, HEAD, FILE_HEAD = 32768, 7, 7
# Longest wait for the file of a closed run [s].
WRITE_SECONDS = 10.0


class WeightsAndBiases:
    def __init__(self, at: Path, project: str) -> None:
        import wandb

        self.at, self.project = str(at), project
        self.errors: tuple[type[Exception], ...] = (wandb.Error, OSError)
        self._open: dict[str, Any] = {}

    def begin(self, run: Contents) -> str:
        self._run(run.signature, run)
        return run.signature

    def sent(self, run: str) -> set[tuple[str, int]]:
        from wandb.proto.wandb_internal_pb2 import Record

        logs = _logs(self.at, run)
        if not logs and run not in self._open:
            raise gone("wandb", run, f"{self.at}/wandb")
        found = set()
        for data in (data for log in logs for data in records(log)):
            for item in Record.FromString(data).history.item:
                series, slash, last = (item.key or "/".join(item.nested_key)).rpartition("/")
                if slash and last == "step":
                    found.add((series, int(json.loads(item.value_json))))
        return found

    def send(self, run: str, contents: Contents, points: Iterable[Point]) -> None:
        import wandb

        opened = self._run(run, contents)
        for point in points:
            # Steps of series come in any order, so each has a step of its own.
            opened.define_metric(f"{point.series}/*", step_metric=f"{point.series}/step")
            picture = {} if point.picture is None else {f"{point.series}/picture": wandb.Image(str(point.picture))}
            opened.log({f"{point.series}/step": point.step, **point.values, **picture})

    def end(self, run: str, contents: Contents) -> None:
        if run in self._open:
            self._finish(run, 0 if contents.state == DONE else 1)

    def close(self) -> None:
        for run in list(self._open):
            self._finish(run, None)

    def _finish(self, run: str, code: int | None) -> None:
        """Close a run, and wait until its file says so: wandb returns while another process still writes it."""
        from wandb.proto.wandb_internal_pb2 import Record

        self._open.pop(run).finish(exit_code=code)
        deadline = time.monotonic() + WRITE_SECONDS
        while time.monotonic() < deadline:
            logs = _logs(self.at, run)
            if logs and any(Record.FromString(data).HasField("exit") for data in records(logs[-1])):
                return
            time.sleep(0.05)

    def _run(self, run: str, contents: Contents) -> Any:
        import wandb

        if run not in self._open:
            # wandb names its folders by the second, and would write over one of the same second.
            while any(time.strftime("%Y%m%d_%H%M%S") in str(log) for log in _logs(self.at, run)):
                time.sleep(0.1)
            quiet = wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                x_disable_meta=True,
                disable_git=True,
                save_code=False,
                reinit="create_new",
                init_timeout=60,
            )
            try:
                self._open[run] = wandb.init(
                    project=self.project,
                    id=run,
                    # An existing run keeps its name.
                    name=None if _logs(self.at, run) else run,
                    notes=contents.title,
                    dir=self.at,
                    config=dict(contents.config),
                    resume="allow",
                    settings=quiet,
                )
            except self.errors as error:
                raise UserError(
                    f"--to wandb: the run {run} cannot be opened: {error} Log in (wandb login), or keep the runs here "
                    "with WANDB_MODE=offline and send them later with wandb sync"
                ) from None
        return self._open[run]


def _logs(at: str, run: str) -> list[Path]:
    """The files in which wandb keeps what it was told of a run, one for each time that the run was opened."""
    return sorted(Path(at, "wandb").glob(f"*run-*-{run}/run-{run}.wandb"))


def records(log: Path) -> Iterator[bytes]:
    """Yield the records of a wandb file, up to one that is not complete."""
    data, place, parts = log.read_bytes(), FILE_HEAD, b""
    while place + HEAD <= len(data):
        room = BLOCK - place % BLOCK
        if room < HEAD:
            place += room
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if kind not in (1, 2, 3, 4) or place + HEAD + length > len(data):
            return
        parts += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):
            yield parts
            parts = b""


def make(at: str | None, project: str) -> WeightsAndBiases:
    return WeightsAndBiases(folder_of(at, os.environ.get("WANDB_DIR") or "results"), project)
