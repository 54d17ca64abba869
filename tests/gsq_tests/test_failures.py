"""Runs that fail: how the failure is recorded, and how the next attempt goes on."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_run import curve, evaluations, files_below, only_run, status, tiny

from gsq import RunFolder, UserError, train
from gsq.files import read_json
from gsq.records.attempt import FAILURES
from gsq.records.read import note_killed, read_run
from gsq.runs.failures import classify
from gsq.runs.stop import Stopped
from gsq.training import checkpoint
from gsq.training.trainer import Diverged, Trainer


def real_allocation_error() -> BaseException:
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("an exbibyte was allocated")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (real_allocation_error(), "out_of_memory"),
        (Diverged("loss"), "diverged"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (OSError(errno.EIO, "Input/output error"), "error"),
        (KeyboardInterrupt(), "cancelled"),
        (Stopped("preempted"), "preempted"),
        (Stopped("timeout"), "timeout"),
        (UserError("data.path: missing"), "error"),
        (ValueError("x"), "error"),
    ],
)
def test_failure_classes(error: BaseException, failure: str) -> None:
    assert classify(error) == failure and failure in FAILURES


def test_weights_that_find_no_room_are_a_full_disk(small_disk: Callable[[int], Path]) -> None:
    with pytest.raises(Exception, match="No space left") as caught:
        safetensors.torch.save_file({"a": torch.zeros(100_000)}, small_disk(64) / "model.safetensors")
    assert classify(caught.value) == "disk_full"


def test_an_exception_is_recorded_and_the_next_attempt_goes_on(tmp_path: Path, done: RunFolder) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise RuntimeError("first line\nthe wheel came off")

    with pytest.raises(RuntimeError, match="wheel"):
        train(tiny(), tmp_path, on_step=fail)
    folder = only_run(tmp_path)
    found = status(folder)
    assert (found["state"], found["failure"], found["step"]) == ("failed", "error", 3)
    assert found["message"] == "RuntimeError: the wheel came off"
    text = (folder.path / "attempts/1/traceback.txt").read_text()
    assert "in fail" in text and "first line" in text
    assert read_run(folder).failure == "error"

    steps: list[int] = []
    train(tiny(), tmp_path, on_step=steps.append)
    assert steps == [4, 5, 6, 6]
    assert read_run(folder).state == "done" and read_run(folder).failure is None and read_run(folder).attempts == 2
    assert evaluations(folder) == evaluations(done) and curve(folder) == curve(done)
    assert not [name for name in files_below(folder.path) if "checkpoint" in name or "partial" in name]


@pytest.mark.parametrize("error", [Stopped("timeout"), UserError("mend this"), KeyboardInterrupt()])
def test_what_needs_no_traceback_has_none(tmp_path: Path, error: BaseException) -> None:
    def fail(step: int) -> None:
        raise error

    with pytest.raises(type(error)):
        train(tiny(), tmp_path, on_step=fail)
    folder = only_run(tmp_path)
    assert "attempts/1/traceback.txt" not in files_below(folder.path)
    assert status(folder)["failure"] == classify(error)


def test_missing_weights_are_the_runs_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(UserError, match="vgg16"):
        train(tiny(loss__perceptual="lpips_vgg"), tmp_path / "runs")
    found = status(only_run(tmp_path / "runs"))
    assert found["failure"] == "error" and "vgg16" in found["message"] and found["step"] == 0


def fill(folder: Path, leave_kib: int) -> Path:
    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(bytes(max(0, free - leave_kib * 1024)))
    return filler


@pytest.mark.parametrize(("step", "leave_kib"), [(3, 200), (5, 0)])
def test_a_full_disk(
    small_disk: Callable[[int], Path], done: RunFolder, step: int, leave_kib: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fills up during the run: room for the status file but not for a checkpoint, or no room at all."""
    disk = small_disk(16 << 10)
    fillers: list[Path] = []

    def on_step(now: int) -> None:
        if now == step:
            fillers.append(fill(disk, leave_kib))

    with pytest.raises(OSError, match="No space left"):
        train(tiny(), disk / "runs", on_step=on_step)
    folder = only_run(disk / "runs")
    assert read_run(folder).failure == "disk_full" and "No space left" in str(read_run(folder).message)
    assert not [name for name in files_below(folder.path) if "partial" in name]
    left = [p.stem for p in checkpoint.newest(folder.attempt_folders())]
    assert left[0] == f"checkpoint-{2 * (step // 2):08d}"

    fillers[0].unlink()
    train(tiny(), disk / "runs")
    assert read_run(folder).state == "done"
    assert evaluations(folder) == evaluations(done) and curve(folder) == curve(done)


def test_a_disk_that_is_full_when_the_weights_are_written(
    small_disk: Callable[[int], Path], done: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(16 << 10)
    original, fillers = safetensors.torch.save_file, []

    def save(*arguments: Any) -> None:
        fillers.append(fill(disk, 16))
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", save)
        with pytest.raises(Exception, match="No space left"):
            train(tiny(), disk / "runs")
    folder = only_run(disk / "runs")
    assert read_run(folder).failure == "disk_full"
    fillers[0].unlink()
    train(tiny(), disk / "runs")
    assert evaluations(folder) == evaluations(done)
    # The second attempt had only to evaluate.
    finished = read_json(folder.path / "attempts/2/status.json")
    assert (finished["state"], finished["step"]) == ("done", 6)


# Out of memory.


def test_out_of_memory_halves_the_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt goes on from the checkpoint with half the images a pass, to the losses of the whole batch."""
    config = tiny(batch_size=4, steps=4, execution__checkpoint_every=1, loss__perceptual="none")
    whole = train(config, tmp_path / "whole")
    original = Trainer._generator_losses

    def greedy(self: Trainer, images: torch.Tensor, *rest: Any) -> Any:
        if len(images) > 1 and self.step_count >= 1:
            raise MemoryError("no room")
        return original(self, images, *rest)

    monkeypatch.setattr(Trainer, "_generator_losses", greedy)
    for smaller in (2, 1):
        with pytest.raises(MemoryError):
            train(config, tmp_path / "small")
        (path,) = (tmp_path / "small").glob("??/*")
        found = status(RunFolder(path))
        assert (found["failure"], found["next_micro_batch"]) == ("out_of_memory", smaller)
        assert read_run(RunFolder(path)).next_micro_batch == smaller
    done = train(config, tmp_path / "small")
    assert status(done)["state"] == "done" and done.signature == whole.signature
    environments = [json.loads((p / "env.json").read_text())["micro_batch"] for p in done.attempt_folders()]
    assert environments == [4, 2, 1]
    for a, b in zip(curve(done), curve(whole), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


def test_a_run_that_was_killed_for_its_memory_goes_on_with_half_the_micro_batch(tmp_path: Path) -> None:
    """It could not say so itself: what it left is a status that says it runs."""
    config = tiny(batch_size=4, steps=4, execution__checkpoint_every=1)

    def killed(step: int) -> None:
        if step == 2:
            os._exit(9)

    if (pid := os.fork()) == 0:
        train(config, tmp_path, on_step=killed)
    os.waitpid(pid, 0)
    folder = only_run(tmp_path)
    assert (read_run(folder).state, read_run(folder).next_micro_batch) == ("running", 2)
    note_killed(folder, "out_of_memory")
    record = read_run(folder)
    assert (record.state, record.failure) == ("failed", "out_of_memory") and "killed from outside" in str(
        record.message
    )
    train(config, tmp_path)
    assert read_run(folder).state == "done"
    environments = [json.loads((p / "env.json").read_text())["micro_batch"] for p in folder.attempt_folders()]
    assert environments == [4, 2]
