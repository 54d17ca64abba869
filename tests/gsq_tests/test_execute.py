"""A run from its config to its evaluations, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import curve, evaluations, files_below, only_run, status, tiny

import gsq.runs.execute
from gsq import RunFolder, UserError, evaluate, load_config, train
from gsq.config.overrides import to_dict
from gsq.records.attempt import Attempt
from gsq.records.read import read_run
from gsq.runs.identity import identity
from gsq.runs.reevaluate import load_finished
from gsq.runs.stop import Busy, Stopped, StopRequest
from gsq.training import checkpoint
from gsq.training.trainer import Trainer


def test_a_run_with_a_handful_of_images_to_evaluate_on_is_not_begun(tmp_path: Path) -> None:
    from PIL import Image

    for part, count in (("train", 4), ("val", 3)):
        (tmp_path / "images" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (i, 60 * i, 0)).save(tmp_path / "images" / part / f"{i}.png")
    data = {"data__kind": "image_folder", "data__path": str(tmp_path / "images"), "steps": 1}
    with pytest.raises(UserError, match="holds out 3, too few"):
        train(tiny(**data, evaluation__num_images=384), tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("attempts"))
    # Allowed by name it is the same run, with the same protocol.
    allowed = train(tiny(**data, evaluation__num_images=384, evaluation__allow_small=True), tmp_path / "runs")
    (result,) = evaluations(allowed)
    assert (result["num_images"], read_run(allowed).state) == (3, "done")
    assert train(tiny(**data, evaluation__num_images=384), tmp_path / "runs").signature == allowed.signature


def test_files_of_a_done_run(done: RunFolder) -> None:
    (result,) = evaluations(done)
    assert files_below(done.path) == [
        ".lock",
        "attempts/1/env.json",
        f"attempts/1/evaluations/{result['protocol']}-00000006.json",
        "attempts/1/index_histogram.npz",
        "attempts/1/metrics.jsonl",
        "attempts/1/model.safetensors",
        "attempts/1/samples.png",
        "attempts/1/status.json",
        "config.yaml",
    ]


def test_a_run_can_be_moved_or_shared(done: RunFolder) -> None:
    """No file names the folder that the run lies in."""
    place = str(done.path.parent.parent).encode()
    assert [name for name in files_below(done.path) if place in (done.path / name).read_bytes()] == []


def test_folder_is_named_by_the_signature(done: RunFolder) -> None:
    assert done.signature == identity(tiny()) and done.path.parent.name == done.signature[:2]


def test_status_of_a_done_run(done: RunFolder) -> None:
    found = status(done)
    assert (found["state"], found["step"], found["steps"]) == ("done", 6, 6)
    assert found["images_per_second"] > 0 and found["peak_memory_bytes"] > 1e7
    assert found["heartbeat"] >= found["started"] and found["seconds"] > 0 and found["pid"] == os.getpid()
    assert "failure" not in found


def test_where_the_time_of_a_run_went(done: RunFolder) -> None:
    found, record = status(done), read_run(done)
    assert (found["device"], found["trained_steps"], found["evaluations"]) == ("cpu", 5, 1)
    parts = [found[name] for name in ("startup_seconds", "training_seconds", "evaluation_seconds")]
    assert all(seconds > 0 for seconds in parts) and sum(parts) <= found["seconds"]
    assert record.step_seconds == found["training_seconds"] / 5 and record.timed_steps == 5
    assert (record.startup_seconds, record.evaluation_seconds) == (parts[0], parts[2]) and record.device == "cpu"


def test_config_of_a_done_run(done: RunFolder) -> None:
    values = done.read_config()
    assert values.pop("data_label").startswith("photos:")
    assert values == to_dict(tiny()) and load_config(values) == tiny()


def test_environment_of_a_done_run(done: RunFolder) -> None:
    found = json.loads((done.path / "attempts/1/env.json").read_text())
    assert found["versions"]["torch"] == torch.__version__ and len(found["source"]) == 12
    assert found["threads"] == 1 and len(found["execution_signature"]) == 12


def test_evaluation_of_a_done_run(done: RunFolder) -> None:
    (result,) = evaluations(done)
    assert (result["step"], result["images_seen"], result["num_images"]) == (6, 12, 8)
    assert result["rfid"] > 0 and 0 < result["psnr_db"] < 40 and 0 < result["ssim"] < 1 and result["train_flops"] > 0
    assert result["tokens"] == 8 * 64 * 2 and 0 < result["usage"] <= 1 and result["rank_deficient"] is True
    assert len(result["usage_per_group"]) == len(result["perplexity_per_group"]) == 2
    assert result["protocol_fields"]["image_size"] == 32
    assert [line["step"] for line in curve(done)] == [1, 2, 3, 4, 5, 6]


def test_protocol_changes_with_what_moves_a_metric(tmp_path: Path, done: RunFolder) -> None:
    (plain,) = evaluations(done)
    (more,) = evaluations(train(tiny(evaluation__num_images=9), tmp_path / "more"))
    (split,) = evaluations(train(tiny(evaluation__batch_size=3), tmp_path / "split"))
    assert more["protocol"] != plain["protocol"] == split["protocol"]
    for name in ("rfid", "psnr_db", "ssim", "mse"):
        assert split[name] == pytest.approx(plain[name], rel=1e-5)


def test_a_done_run_is_left_alone(done: RunFolder) -> None:
    def times() -> dict[str, int]:
        return {name: (done.path / name).stat().st_mtime_ns for name in files_below(done.path)}

    before = times()
    again = train(tiny(), done.path.parent.parent, on_step=lambda step: pytest.fail("trained again"))
    assert again.path == done.path and times() == before and len(done.attempt_folders()) == 1


def test_callbacks(tmp_path: Path) -> None:
    steps: list[int] = []
    said: list[str] = []

    def announce(message: str) -> None:
        (found,) = tmp_path.glob("??/*/attempts/1/status.json")
        assert json.loads(found.read_text())["state"] == "running"
        said.append(message)

    folder = train(tiny(steps=3), tmp_path, started=1.0, announce=announce, on_step=steps.append)
    # One call a step, and one for the single batch of the evaluation.
    assert steps == [1, 2, 3, 3]
    assert said == [f"run folder: {folder.path}"]
    assert status(folder)["started"] == 1.0 and status(folder)["seconds"] > 1e9


def test_a_signal_stops_the_run_at_the_end_of_a_step(tmp_path: Path) -> None:
    stop = StopRequest()

    def on_step(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    with stop.on_signals({signal.SIGUSR1: "preempted"}), pytest.raises(Stopped):
        train(tiny(), tmp_path, stop=stop, on_step=on_step)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert (stop.reason, stop.signal) == ("preempted", signal.SIGUSR1)
    folder = only_run(tmp_path)
    assert (status(folder)["failure"], status(folder)["step"]) == ("preempted", 2)
    assert [p.stem for p in checkpoint.newest(folder.attempt_folders())] == ["checkpoint-00000002"]


def test_a_second_signal_acts_as_before() -> None:
    stop, caught = StopRequest(), []
    previous = signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    try:
        with stop.on_signals({signal.SIGUSR1: "preempted"}):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert caught == [] and stop.reason == "preempted"
            os.kill(os.getpid(), signal.SIGUSR1)
            assert caught == [1]
    finally:
        signal.signal(signal.SIGUSR1, previous)


# Reading a finished run.


def test_a_moved_run_gives_the_same_rfid(tmp_path: Path, done: RunFolder) -> None:
    shutil.copytree(done.path, tmp_path / "renamed")
    config, source, model = load_finished(tmp_path / "renamed")
    assert config == tiny() and not model.training and not any(p.requires_grad for p in model.parameters())
    found = evaluate(model, source, config.evaluation)
    (wanted,) = evaluations(done)
    assert {name: wanted[name] for name in found} == found


def test_samples_are_a_picture_of_originals_and_reconstructions(done: RunFolder) -> None:
    from PIL import Image

    with Image.open(done.path / "attempts/1/samples.png") as image:
        assert image.size == (8 * 100 - 4, 2 * 96 + 4)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="not a run folder"):
            load_finished(path)


def test_a_run_that_has_not_finished(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(tiny(), tmp_path, on_step=lambda step: (_ for _ in ()).throw(Stopped("timeout")))
    with pytest.raises(UserError, match="not finished training"):
        load_finished(only_run(tmp_path).path)


def test_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """About one status a second, not one a step."""
    now, seen = [0.0], list[int]()
    monkeypatch.setattr(gsq.runs.execute.time, "monotonic", lambda: now[0])
    original = Attempt.write_status

    def write_status(self: Attempt, state: str, step: int, steps: int, **more: Any) -> None:
        if state == "running":
            seen.append(step)
        original(self, state, step, steps, **more)

    monkeypatch.setattr(Attempt, "write_status", write_status)

    def on_step(step: int) -> None:
        now[0] += 0.45

    train(tiny(discriminator__kind="none", loss__perceptual="none", steps=20), tmp_path, on_step=on_step)
    # It has 20 steps that take 9 seconds, and takes as long as it takes to evaluate.
    assert seen[0] == 0 and 6 <= len([step for step in seen if step < 20]) <= 10 and seen == sorted(seen)


def test_two_processes_do_not_train_one_run_at_once(tmp_path: Path, done: RunFolder) -> None:
    """The second says who does; once the first is killed, its lock is gone, too."""
    config = tiny(steps=400)

    if (pid := os.fork()) == 0:
        train(config, tmp_path)
        os._exit(0)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("??/*/attempts/1/status.json")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(Busy, match=f"being trained by process {pid} on "):
            train(config, tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with pytest.raises(Stopped):
        train(config, tmp_path, on_step=lambda step: (_ for _ in ()).throw(Stopped("cancelled")))
    assert len(only_run(tmp_path).attempt_folders()) == 2


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"discriminator__norm": "batch"}])
def test_a_batch_that_cannot_be_split_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def greedy(*rest: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(Trainer, "_generator_losses", greedy)
    with pytest.raises(MemoryError):
        train(tiny(**changes), tmp_path)
    (path,) = tmp_path.glob("??/*")
    assert read_run(RunFolder(path)).next_micro_batch is None


def test_a_run_that_is_given_up_goes_on_from_there_to_the_same_result(tmp_path: Path) -> None:
    config = tiny(evaluation__every=3)
    seen: list[int] = []

    def prune(evaluation: dict[str, Any]) -> str | None:
        seen.append(evaluation["step"])
        return "a search" if evaluation["rfid"] > 0 else None

    folder = gsq.runs.execute.execute(config, tmp_path / "pruned", prune=prune)
    assert seen == [3]
    record = read_run(folder)
    assert (record.state, record.pruned_by, record.step, record.failure) == ("pruned", "a search", 3, None)
    assert (folder.path / "attempts/1/checkpoint-00000003.pt").exists()
    assert not (folder.path / "attempts/1/.reserve").exists()
    # Nobody gives it up at its last evaluation, nor where nobody asks.
    again = gsq.runs.execute.execute(config, tmp_path / "pruned")
    assert read_run(again).state == "done" and [line["step"] for line in curve(again)] == [1, 2, 3, 4, 5, 6]
    assert [s["step"] for s in map(json.loads, (again.path / "attempts/2/metrics.jsonl").open())] == [4, 5, 6]
    whole = gsq.runs.execute.execute(config, tmp_path / "whole", prune=lambda evaluation: None)
    assert curve(again) == curve(whole) and evaluations(again) == evaluations(whole)
