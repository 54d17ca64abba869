"""Runs at a tracker, read back by its own library: complete, nothing twice, and never another's."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extras import extra
from trackers import EVALUATION, PROTOCOL, READERS, begin, evaluate, loss, train

from gsq.config.signature import digest
from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.tracking import tracker as tracker_module
from gsq.sweeps.tracking.contents import read_contents, series_of
from gsq.sweeps.tracking.mirror import Tracked, track

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")


@pytest.fixture(params=TRACKERS)
def to(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "trackio":
        # It does not go with the pinned Pillow: make trackio.
        pytest.importorskip("trackio.run", reason="in an environment of its own, see make trackio")
    else:
        extra(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return name


class Sweep:
    """Two cells, of which the first has begun."""

    def __init__(self, plan: Plan, folder: Path, to: str) -> None:
        self.folder, self.plan, self.to = SweepFolder(folder / "runs", plan.name), plan, to
        self.folder.write_plan(plan)
        self.project = folder.name
        self.place = folder / "there"

    @property
    def at(self) -> str | None:
        places = {"mlflow": f"sqlite:///{self.place}/mlflow.db", "trackio": None}
        self.place.mkdir(exist_ok=True)
        return places.get(self.to, str(self.place))

    def track(self, **more: Any) -> Tracked:
        return track(self.folder, self.to, at=self.at, project=self.project, **more)

    def read(self) -> dict[str, Any]:
        return READERS[self.to](self.place, self.project)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow, which takes long to make."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def sweep(to: str, plan_of: Callable[..., Plan], folder: Path, request: pytest.FixtureRequest) -> Sweep:
    made = Sweep(plan_of(axes={"width": [8, 16]}), folder, to)
    if to == "mlflow":
        made.place.mkdir()
        shutil.copy(request.getfixturevalue("database"), made.place)
    return made


def test_what_a_tracker_has_is_what_the_runs_have_and_a_second_call_adds_nothing(sweep: Sweep) -> None:
    cells = sweep.plan.cells
    for cell, rfid in zip(cells, (200.0, 100.0), strict=True):
        attempt = begin(sweep.folder.runs, cell)
        train(attempt, 10, 40, "done")
        evaluate(attempt, 40, rfid)
    first = sweep.track()
    assert first.points == {"train": 8, "evaluations": 2, "samples": 2} and first.runs == 2
    found = sweep.read()
    for cell, rfid, width in zip(cells, (200.0, 100.0), (8, 16), strict=True):
        assert found[cell.signature]["curve"] == pytest.approx({step: loss(step) for step in (10, 20, 30, 40)})
        assert found[cell.signature]["rfid"] == {40: rfid}
        assert (found[cell.signature]["pictures"], found[cell.signature]["width"]) == (1, width)
        assert found[cell.signature]["name"] == cell.signature
    assert sum(sweep.track().points.values()) == 0
    assert sweep.read() == found


def test_a_run_that_trains_is_followed_through_a_second_attempt(sweep: Sweep) -> None:
    cell = sweep.plan.cells[0]
    attempt = begin(sweep.folder.runs, cell)
    train(attempt, 10, 20)
    with (attempt.path / "metrics.jsonl").open("a") as half:
        half.write('{"step": 30, "lo')
    assert sweep.track().points["train"] == 2
    # It is killed, resumes from step 20, and says step 30 once more.
    train(again := begin(sweep.folder.runs, cell), 30, 40)
    evaluate(again, 40, 150.0)
    assert sweep.track().points == {"train": 2, "evaluations": 1, "samples": 1}
    again.write_status("done", 40, 40)
    (attempt.path.parents[1] / "evaluations").mkdir()
    RunFolder.of(sweep.folder.runs, cell.signature).write_evaluation(
        PROTOCOL, 20, {"protocol": PROTOCOL, "features": "net@12", "step": 20, "rfid": 180.0}
    )
    assert sweep.track().points == {"train": 0, "evaluations": 1, "samples": 0}
    (found,) = sweep.read().values()
    assert found["curve"].keys() == {10, 20, 30, 40} and found["rfid"] == {20: 180.0, 40: 150.0}


def test_a_probe_that_comes_later_is_sent_beside_its_evaluation(plan_of: Callable[..., Plan], folder: Path) -> None:
    extra("tensorboard")
    sweep = Sweep(plan_of(axes={"width": [8]}), folder, "tensorboard")
    cell = sweep.plan.cells[0]
    train(attempt := begin(sweep.folder.runs, cell), 10, 40, "done")
    evaluate(attempt, 40, 150.0)
    sweep.track()
    run = RunFolder.of(sweep.folder.runs, cell.signature)
    for size in ("tiny", "small"):
        run.write_probe(PROTOCOL, 40, {"probe": size, "probe_protocol": digest(size), "gfid": 70.0})
        assert sweep.track().points["evaluations"] == 1
    assert sum(sweep.track().points.values()) == 0
    contents = read_contents(run, cell)
    assert contents is not None
    assert sum(point.values.get(f"{point.series}/gfid") == 70.0 for point in contents.points) == 2


def test_a_run_that_ended_before_it_wrote_its_config_keeps_no_other_from_being_sent(
    plan_of: Callable[..., Plan], folder: Path
) -> None:
    extra("tensorboard")
    sweep = Sweep(plan_of(axes={"width": [8, 16]}), folder, "tensorboard")
    first, second = sweep.plan.cells
    RunFolder.of(sweep.folder.runs, first.signature).new_attempt().write_status("failed", 0, 40)
    train(begin(sweep.folder.runs, second), 10, 40, "done")
    assert sweep.track().runs == 1


def test_without_its_memory_the_runs_that_are_there_are_found(sweep: Sweep) -> None:
    train(begin(sweep.folder.runs, sweep.plan.cells[0]), 10, 20)
    sweep.track()
    shutil.rmtree(sweep.folder.path / "tracking")
    train(begin(sweep.folder.runs, sweep.plan.cells[0]), 30, 30)
    assert sweep.track().points["train"] == 1
    (found,) = sweep.read().values()
    assert found["curve"].keys() == {10, 20, 30}


def remove(sweep: Sweep, signature: str) -> None:
    if sweep.to == "tensorboard":
        shutil.rmtree(sweep.place / sweep.project / signature)
    elif sweep.to == "wandb":
        shutil.rmtree(sweep.place / "wandb")
    elif sweep.to == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(sweep.at)
        experiment = client.get_experiment_by_name(sweep.project)
        client.delete_run(client.search_runs([experiment.experiment_id])[0].info.run_id)
    else:
        import trackio

        trackio.Api().runs(sweep.project)[0].delete()


def test_a_run_that_was_removed_there_is_named_and_sent_again_on_request(sweep: Sweep) -> None:
    cell = sweep.plan.cells[0]
    train(begin(sweep.folder.runs, cell), 10, 40, "done")
    sweep.track()
    remove(sweep, cell.signature)
    with pytest.raises(UserError, match="--again"):
        sweep.track()
    assert sweep.track(again=True).points["train"] == 4
    assert sweep.read()[cell.signature]["curve"].keys() == {10, 20, 30, 40}


@pytest.mark.parametrize("to", ["mlflow", "trackio"], indirect=True)
def test_a_run_that_was_renamed_there_keeps_its_name(sweep: Sweep) -> None:
    cell = sweep.plan.cells[0]
    train(begin(sweep.folder.runs, cell), 10, 20)
    sweep.track()
    if sweep.to == "mlflow":
        from mlflow import MlflowClient

        (run,) = (client := MlflowClient(sweep.at)).search_runs(["1"])
        client.update_run(run.info.run_id, name="mine")
    else:
        import trackio

        trackio.Api().runs(sweep.project)[0].rename("mine")
    train(begin(sweep.folder.runs, cell), 30, 40, "done")
    assert sweep.track().points["train"] == 2
    (found,) = sweep.read().values()
    assert found["name"] == "mine" and found["curve"].keys() == {10, 20, 30, 40}


@pytest.mark.parametrize("to", ["tensorboard"], indirect=True)
def test_two_at_once_are_refused_and_a_renamed_folder_is_missed(sweep: Sweep) -> None:
    train(begin(sweep.folder.runs, sweep.plan.cells[0]), 10, 20)
    sweep.track()
    (lock,) = (sweep.folder.path / "tracking").glob("*.lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another gsq track"):
            sweep.track()
    (sweep.place / sweep.project).rename(sweep.place / "other")
    with pytest.raises(UserError, match="renamed"):
        sweep.track()
    assert not (sweep.place / sweep.project).exists()


@pytest.mark.parametrize("to", ["tensorboard"], indirect=True)
def test_a_sweep_goes_where_it_went_before(sweep: Sweep) -> None:
    train(begin(sweep.folder.runs, sweep.plan.cells[0]), 10, 20)
    sweep.track()
    found = track(sweep.folder, "tensorboard")
    assert (found.at, found.project, sum(found.points.values())) == (sweep.at, sweep.project, 0)
    track(sweep.folder, "tensorboard", at="elsewhere")
    with pytest.raises(UserError, match=r"several places.*elsewhere"):
        track(sweep.folder, "tensorboard")


@pytest.mark.parametrize("to", ["mlflow"], indirect=True)
def test_a_server_that_does_not_answer_is_named(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"http://localhost:9;.*--at"):
        track(sweep.folder, "mlflow", at="http://localhost:9")


@pytest.mark.parametrize("to", ["wandb"], indirect=True)
def test_wandb_without_a_key_says_how_to_do_without(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    train(begin(sweep.folder.runs, sweep.plan.cells[0]), 10, 20)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        sweep.track()


def test_what_is_missing_is_named_before_anything_is_read(
    plan_of: Callable[..., Plan], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(axes={"width": [8]})
    sweep = SweepFolder(folder / "runs", plan.name)
    with pytest.raises(UserError, match="no sweep 'small'"):
        track("small", "wandb")
    sweep.write_plan(plan)
    with pytest.raises(UserError, match=r"'mflow'.*mlflow"):
        track(sweep, "mflow")
    monkeypatch.setattr(tracker_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gsq\[wandb\]'"):
        track(sweep, "wandb")
    assert not (sweep.path / "tracking").exists()


def test_numbers_belong_to_series() -> None:
    assert series_of("train/loss") == "train" and series_of("samples") == "samples"
    assert series_of(f"{EVALUATION}/usage_per_group/0") == EVALUATION
