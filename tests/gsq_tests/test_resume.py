"""A run that was interrupted ends with the bits of one that was not."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_run import curve, evaluations, status, tiny
from tiny_trainer import equal, parameters, trainer
from torch import nn

from gsq import RunConfig, RunFolder, train
from gsq.records.read import newest_file, read_metrics
from gsq.runs.stop import Stopped, StopRequest
from gsq.training import checkpoint

RESUMED = {"steps": 8, "execution__checkpoint_every": 3, "evaluation__every": 4}


def resumed_config() -> RunConfig:
    return tiny(**RESUMED)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(resumed_config(), tmp_path_factory.mktemp("undisturbed"))


def interrupt(runs: Path, at: int, call: int = 1) -> RunFolder:
    """Ask the run to stop at the ``call``-th call of on_step at step ``at``; the second comes from an evaluation."""
    stop, seen = StopRequest(), []

    def on_step(step: int) -> None:
        seen.append(step)
        if seen.count(at) == call:
            stop.reason = "preempted"

    with pytest.raises(Stopped, match="preempted"):
        train(resumed_config(), runs, stop=stop, on_step=on_step)
    (path,) = runs.glob("??/*")
    folder = RunFolder(path)
    found = status(folder)
    assert (found["state"], found["failure"], found["step"]) == ("failed", "preempted", at)
    return folder


def same(found: RunFolder, wanted: RunFolder) -> None:
    weights = [newest_file(folder, "model.safetensors") for folder in (found, wanted)]
    assert weights[0] is not None and weights[1] is not None
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert [e["step"] for e in evaluations(found)] == [4, 8]
    assert evaluations(found) == evaluations(wanted)
    assert curve(found) == curve(wanted) and len(curve(found)) == 8


def test_undisturbed_runs_repeat_to_the_bit(undisturbed: RunFolder, tmp_path: Path) -> None:
    same(train(resumed_config(), tmp_path), undisturbed)


@pytest.mark.parametrize("steps", [(1,), (3,), (4,), (2, 3, 7), (8,)])
def test_resumed_runs_equal_undisturbed_ones(undisturbed: RunFolder, tmp_path: Path, steps: tuple[int, ...]) -> None:
    for step in steps:
        folder = interrupt(tmp_path, step)
        newest = next(checkpoint.newest(folder.attempt_folders()))
        assert newest.name == f"checkpoint-{step:08d}.pt"
    same(train(resumed_config(), tmp_path), undisturbed)
    assert len(folder.attempt_folders()) == len(steps) + 1


@pytest.mark.parametrize("step", [4, 8])
def test_interrupted_in_an_evaluation(undisturbed: RunFolder, tmp_path: Path, step: int) -> None:
    """Stopped promises a checkpoint of the finished step there, too, though none is due at step 4."""
    folder = interrupt(tmp_path, step, call=2)
    assert next(checkpoint.newest(folder.attempt_folders())).name == f"checkpoint-{step:08d}.pt"
    same(train(resumed_config(), tmp_path), undisturbed)


@pytest.mark.parametrize("left", ["older", "damaged", "none"])
def test_resumed_from_what_a_kill_left(undisturbed: RunFolder, tmp_path: Path, left: str) -> None:
    folder = interrupt(tmp_path, 5)
    (attempt,) = folder.attempt_folders()
    newest = attempt / "checkpoint-00000005.pt"
    if left == "damaged":
        newest.write_bytes(newest.read_bytes()[:-100])
    else:
        newest.unlink()
    if left == "none":
        checkpoint.remove_all(attempt)
    same(train(resumed_config(), tmp_path), undisturbed)


EVERYTHING = {
    "quantizer__codebook_update": "ema",
    "loss__adaptive_weight": True,
    "loss__lecam_weight": 0.1,
    "loss__gradient_penalty_weight": 0.1,
    "discriminator__augment": ["color", "translation", "cutout"],
    "execution__micro_batch": 1,
}


@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"quantizer": "rvq", "groups": 1, "quantizer__depth": 2}])
def test_state_of_a_trainer_is_whole(changes: dict[str, Any]) -> None:
    """A trainer loaded from a state goes on as the one that it came from, in every module and optimiser."""
    a, b = trainer(**changes), trainer(**changes)
    for _ in range(2):
        a.step()
    # This is as through a file: what state() gives are the live tensors.
    b.load_state(copy.deepcopy(a.state()))
    assert a.step() == b.step() and a.step() == b.step()
    for name, part in a._parts().items():
        if isinstance(part, nn.Module):
            assert equal(parameters(part), parameters(b._parts()[name])), name  # type: ignore[arg-type]


def test_threads_and_logging_are_no_science(undisturbed: RunFolder, tmp_path: Path) -> None:
    config = resumed_config()
    execution = dataclasses.replace(config.execution, log_every=5, checkpoint_every=100)
    folder = train(dataclasses.replace(config, execution=execution), tmp_path)
    assert folder.signature == undisturbed.signature
    # The last step is always logged.
    assert [line["step"] for line in read_metrics(folder)] == [5, 8]
    assert evaluations(folder) == evaluations(undisturbed)
