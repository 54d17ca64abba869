"""Runs in MLflow: a sweep is an experiment, an evaluation's numbers are metrics, its picture is an artifact."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gsq.errors import UserError
from gsq.records.attempt import DONE
from gsq.sweeps.tracking.contents import SAMPLES, Contents, Point, series_of
from gsq.sweeps.tracking.tracker import folder_of, gone

# Most metrics of one request, as the server allows.
BATCH = 1000


class MLflow:
    def __init__(self, at: str, project: str) -> None:
        import requests
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.at, self.project = at, project
        self.errors: tuple[type[Exception], ...] = (MlflowException, requests.RequestException, OSError)
        try:
            self._client = MlflowClient(tracking_uri=at)
            experiment = self._client.get_experiment_by_name(project)
            if experiment is None:
                self._experiment = self._client.create_experiment(project, artifact_location=_artifacts(at, project))
                return
        except self.errors as error:
            raise UserError(
                f"--to mlflow: no answer from {at}; start the server (mlflow server), or correct --at: {error}"
            ) from None
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"--to mlflow: the experiment '{project}' is deleted at {at}; restore it (mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}), or choose another name with --project"
            )
        self._experiment = experiment.experiment_id

    def begin(self, run: Contents) -> str:
        from mlflow.entities import Param

        same = f"tags.`gsq.signature` = '{run.signature}'"
        if known := self._client.search_runs([self._experiment], same, max_results=1):
            return str(known[0].info.run_id)
        note = {"mlflow.note.content": run.title, "gsq.signature": run.signature}
        started = int(1000 * min((point.time for point in run.points), default=0)) or None
        made = self._client.create_run(self._experiment, start_time=started, tags=note, run_name=run.signature)
        params = [Param(key, str(value)) for key, value in run.config.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(made.info.run_id, params=params[start : start + 100])
        return str(made.info.run_id)

    def sent(self, run: str) -> set[tuple[str, int]]:
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            found = None
        if found is None or found.info.lifecycle_stage == "deleted":
            raise gone("mlflow", run, f"the experiment '{self.project}' at {self.at}")
        # Every name counts: losses of the discriminator begin later than others.
        steps = {
            (series_of(name), one.step)
            for name in found.data.metrics
            for one in self._client.get_metric_history(run, name)
        }
        pictures = (Path(one.path).stem for one in self._client.list_artifacts(run, SAMPLES))
        return steps | {(SAMPLES, int(stem)) for stem in pictures if stem.isdigit()}

    def send(self, run: str, contents: Contents, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        batch: list[Any] = []
        for point in points:
            if len(batch) + len(point.values) > BATCH:
                self._client.log_batch(run, metrics=batch)
                batch = []
            when = int(1000 * point.time)
            batch += [Metric(name, value, when, point.step) for name, value in point.values.items()]
            if point.picture is not None:
                image = _Named(point.picture, f"{point.step:08d}.png")
                with image as path:
                    self._client.log_artifact(run, str(path), SAMPLES)
        if batch:
            self._client.log_batch(run, metrics=batch)
        if contents.running:
            self._client.update_run(run, status="RUNNING")

    def end(self, run: str, contents: Contents) -> None:
        self._client.set_terminated(run, "FINISHED" if contents.state == DONE else "FAILED")

    def close(self) -> None:
        pass


class _Named:
    """A copy of a file under another name, since an artifact keeps the name of its file."""

    def __init__(self, source: Path, name: str) -> None:
        from tempfile import TemporaryDirectory

        self._folder: Any = TemporaryDirectory()
        self._source, self._name = source, name

    def __enter__(self) -> Path:
        path = Path(self._folder.name, self._name)
        path.write_bytes(self._source.read_bytes())
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _artifacts(at: str, project: str) -> str | None:
    """Return the artifact folder of a database file, which lies beside it. Servers and folders have their own place."""
    if not at.startswith("sqlite:///"):
        return None
    return (Path(at.removeprefix("sqlite:///")).absolute().parent / "mlartifacts" / project).as_uri()


def make(at: str | None, project: str) -> MLflow:
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # An absent server is to be named in seconds; by default MLflow asks for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    at = at or os.environ.get("MLFLOW_TRACKING_URI")
    if at is None:
        return MLflow(f"sqlite:///{folder_of(None, 'results') / 'mlflow.db'}", project)
    if "://" not in at and at != "databricks":
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        at = folder_of(at, at).as_uri()
    return MLflow(at, project)
