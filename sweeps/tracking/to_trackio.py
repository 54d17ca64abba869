"""Runs in Trackio's local database, a project for each sweep."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

from gsq.errors import UserError
from gsq.sweeps.tracking.contents import Contents, Point, series_of
from gsq.sweeps.tracking.tracker import folder_of, gone


class Trackio:
    errors: tuple[type[Exception], ...] = (OSError, ValueError)

    def __init__(self, at: str | None, project: str) -> None:
        if at is not None:
            # Trackio reads this when it is imported.
            os.environ["TRACKIO_DIR"] = str(folder_of(at, at))
        from trackio.utils import TRACKIO_DIR

        if at is not None and str(TRACKIO_DIR) != os.environ["TRACKIO_DIR"]:
            raise UserError(f"--at: Trackio writes to {TRACKIO_DIR} in this process; start another one for {at}")
        self.at, self.project = str(TRACKIO_DIR), project

    def begin(self, run: Contents) -> str:
        if known := [one for one, name in self._names().items() if name == run.signature]:
            return known[0]
        with self._open(run.signature, "never", run) as opened:
            # A run exists once it has a line; this one belongs to no series.
            opened.log({"steps": float(run.config.get("train.steps", 0))}, step=0)
            return str(opened.id)

    def sent(self, run: str) -> set[tuple[str, int]]:
        from trackio.sqlite_storage import SQLiteStorage

        names = self._names()
        if run not in names:
            raise gone("trackio", run, f"the project '{self.project}' in {self.at}")
        lines = SQLiteStorage.get_logs(self.project, names[run], run_id=run)
        return {
            (series_of(name), int(line["step"])) for line in lines for name in line if "/" in name or name == "samples"
        }

    def send(self, run: str, contents: Contents, points: Iterable[Point]) -> None:
        import trackio

        # A run that was renamed there keeps its new name.
        with self._open(self._names()[run], "must", contents) as opened:
            for point in points:
                picture = {} if point.picture is None else {point.series: trackio.Image(str(point.picture))}
                opened.log({**point.values, **picture}, step=point.step)

    def end(self, run: str, contents: Contents) -> None:
        pass

    def close(self) -> None:
        pass

    def _names(self) -> dict[str, str]:
        """The present name of each run by its id."""
        from trackio.sqlite_storage import SQLiteStorage

        return {str(one["id"]): str(one["name"]) for one in SQLiteStorage.get_run_records(self.project)}

    @contextlib.contextmanager
    def _open(self, name: str, resume: str, contents: Contents) -> Iterator[Any]:
        import trackio

        # Each opening replaces the config.
        config = dict(contents.config)
        hardware = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        with contextlib.redirect_stdout(io.StringIO()):
            opened = trackio.init(project=self.project, name=name, resume=resume, config=config, **hardware)
            try:
                yield opened
            finally:
                trackio.finish()


def make(at: str | None, project: str) -> Trackio:
    return Trackio(at, project)
