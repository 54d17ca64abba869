"""Runs written by hand to be mirrored, and what each tracker's own library reads of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extras import extra
from PIL import Image

from gsq.config.overrides import to_dict
from gsq.records.attempt import Attempt
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Cell

# Trackio reads it once for a process.
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio-"))
PROTOCOL = "0123456789ab"
EVALUATION = f"evaluation/{PROTOCOL}-net"


def loss(step: int) -> float:
    return 2.0 / step + 0.1


def begin(runs: Path, cell: Cell) -> Attempt:
    """A new attempt at a cell."""
    run = RunFolder.of(runs, cell.signature)
    run.write_config(to_dict(cell.config))
    attempt = run.new_attempt()
    attempt.write_status("running", 0, 40)
    return attempt


def train(attempt: Attempt, first: int, last: int, state: str = "running") -> None:
    """Lines for every tenth step; a loss that begins late, and one that is not finite."""
    for step in range(first, last + 1, 10):
        late = {"adversarial": 0.5} if step > 20 else {}
        attempt.log_metrics(step, {"loss": loss(step), "images_per_second": 20.0, "bad": float("nan"), **late})
    attempt.write_status(state, last, 40)


def evaluate(attempt: Attempt, step: int, rfid: float) -> None:
    """A picture and an evaluation, in the order of a run."""
    Image.new("RGB", (12, 8), (step, 0, 0)).save(attempt.path / "samples.png")
    result = {"protocol": PROTOCOL, "features": "net@12", "step": step, "rfid": rfid, "usage_per_group": [1, 0.5]}
    attempt.write_evaluation(PROTOCOL, step, result)


Seen = dict[str, Any]


def seen(name: str, title: str, curve: dict[int, float], rfid: dict[int, float], pictures: int, config: Any) -> Seen:
    return {"name": name, "title": title, "curve": curve, "rfid": rfid, "pictures": pictures, "width": config}


def once(pairs: list[tuple[int, float]]) -> dict[int, float]:
    """Values by step. Fails where a step is there twice."""
    assert len({step for step, _ in pairs}) == len(pairs), pairs
    return dict(sorted(pairs))


def read_tensorboard(at: Path, project: str) -> dict[str, Seen]:
    extra("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for folder in sorted((at / project).iterdir()):
        events = EventAccumulator(str(folder), {"images": 0, "tensors": 0, "scalars": 0}).Reload()

        def scalars(tag: str, events: Any = events) -> list[tuple[int, float]]:
            return [(one.step, one.value) for one in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []

        (text,) = events.Tensors("config")
        (line,) = [line for line in text.tensor_proto.string_val[0].decode().splitlines() if "model.channels:" in line]
        pictures = events.Images("samples") if "samples" in events.Tags()["images"] else []
        found[folder.name] = seen(
            folder.name,
            folder.name,
            once(scalars("train/loss")),
            once(scalars(f"{EVALUATION}/rfid")),
            len(pictures),
            int(line.split()[-1]),
        )
    return found


def read_mlflow(at: Path, project: str) -> dict[str, Seen]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{at}/mlflow.db")
    experiment = client.get_experiment_by_name(project)
    found = {}
    for run in client.search_runs([experiment.experiment_id]):

        def history(name: str, run: str = run.info.run_id) -> list[tuple[int, float]]:
            return [(one.step, one.value) for one in client.get_metric_history(run, name)]

        found[run.data.tags["gsq.signature"]] = seen(
            run.info.run_name,
            run.data.tags["mlflow.note.content"],
            once(history("train/loss")),
            once(history(f"{EVALUATION}/rfid")),
            len(client.list_artifacts(run.info.run_id, "samples")),
            int(run.data.params["model.channels"]),
        )
    return found


def read_wandb(at: Path, project: str) -> dict[str, Seen]:
    extra("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    from gsq.sweeps.tracking.to_wandb import records

    found: dict[str, Seen] = {}
    for folder in sorted((at / "wandb").glob("offline-run-*")):
        for data in records(next(folder.glob("*.wandb"))):
            record = Record.FromString(data)
            if record.HasField("run"):
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                new = seen(record.run.display_name, record.run.notes, {}, {}, 0, config["model.channels"])
                run = found.setdefault(record.run.run_id, new)
                assert record.run.project == project
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for series, key in (("train", "loss"), (EVALUATION, "rfid")):
                if f"{series}/{key}" in row:
                    step, target = row[f"{series}/step"], run["curve" if key == "loss" else "rfid"]
                    assert step not in target
                    target[step] = row[f"{series}/{key}"]
            if any(name.startswith("samples/picture") for name in row):
                run["pictures"] += 1
    return found


def read_trackio(at: Path, project: str) -> dict[str, Seen]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for run in trackio.Api().runs(project):
        lines = SQLiteStorage.get_logs(project, run.name, run_id=run.id)
        found[run.config["gsq.signature"]] = seen(
            run.name,
            run.config["gsq.cell"],
            once([(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]),
            once([(line["step"], line[f"{EVALUATION}/rfid"]) for line in lines if f"{EVALUATION}/rfid" in line]),
            sum("samples" in line for line in lines),
            run.config["model.channels"],
        )
    return found


READERS: dict[str, Callable[[Path, str], dict[str, Seen]]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
    "trackio": read_trackio,
}
