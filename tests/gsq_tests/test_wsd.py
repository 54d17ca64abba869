"""The schedule wsd: its learning rate, what it refuses, and runs that share the steps before their decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_warm_start import same
from tiny_run import curve, evaluations, tiny

from gsq import RunConfig, RunFolder, override, train
from gsq.config.schedule import OptimizerConfig
from gsq.errors import UserError
from gsq.records.read import read_run
from gsq.training.checkpoint import load
from gsq.training.optim import learning_rate

WSD = {"optimizer.schedule": "wsd", "optimizer.decay_share": 0.25, "optimizer.warmup_steps": 2}


def wsd(steps: int, keep_at: tuple[int, ...] = (), **changes: Any) -> RunConfig:
    """A cool-down over the last quarter of the steps."""
    kept = {"execution.keep_at": keep_at, "loss.discriminator_start": 3, "optimizer.ema_decay": 0.9}
    return override(tiny(steps=steps), {**WSD, **kept, **{k.replace("__", "."): v for k, v in changes.items()}})


def checkpoints(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.path.glob("attempts/*/checkpoint-*.pt"))


@pytest.mark.parametrize(
    ("shape", "decay"),
    [("linear", [1, 0.75, 0.5, 0.25]), ("one_minus_sqrt", [1, 1 - 0.25**0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])],
)
def test_the_learning_rate_warms_up_stays_and_decays(shape: str, decay: list[float]) -> None:
    config = OptimizerConfig(
        learning_rate=1e-2,
        warmup_steps=4,
        schedule="wsd",
        decay_share=0.25,
        decay_shape=shape,
        final_learning_rate=1e-3,
    )
    found = [learning_rate(config, step, (12, 4)) for step in range(16)]
    assert found[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    assert set(found[3:13]) == {1e-2}
    assert found[12:] == pytest.approx([1e-3 + 9e-3 * left for left in decay])


@pytest.mark.parametrize(("steps", "share", "trunk"), [(16, 0.25, 12), (10, 0.01, 9), (1, 0.5, 0), (2000, 0.2, 1600)])
def test_the_decay_takes_its_share_and_at_least_a_step(steps: int, share: float, trunk: int) -> None:
    changes = {"optimizer.schedule": "wsd", "optimizer.decay_share": share}
    assert override(tiny(steps=steps), changes).trunk_steps == trunk


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer__decay_share": 0.0}, ("optimizer.decay_share: 0", "above 0 and below 1")),
        ({"optimizer__decay_share": 1.0}, ("optimizer.decay_share: 1", "above 0 and below 1")),
        ({"optimizer__decay_shape": "cosine"}, ("optimizer.decay_shape", "cosine", "one_minus_sqrt")),
        ({"optimizer__decay_steps": 3}, ("optimizer.decay_steps: 3", "wsd")),
        ({"optimizer__warmup_steps": 10}, ("train.steps: 12", "decay_share 0.25", "warmup_steps 10")),
        ({"optimizer__schedule": "constant"}, ("optimizer.decay_share: 0.25", "constant")),
        ({"loss__discriminator_start": 0.5}, ("loss.discriminator_start", "0.5")),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        wsd(12, **changes)
    assert all(word in str(refused.value) for word in named)


def test_a_shape_without_the_schedule_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.decay_shape: one_minus_sqrt"):
        override(tiny(), {"optimizer.decay_shape": "one_minus_sqrt"})


def equal_states(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal_states, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


def test_the_states_of_long_and_short_are_equal_up_to_the_branch(tmp_path: Path) -> None:
    """Weights, averages, discriminator, both optimisers and counts."""
    long, short = train(wsd(16, keep_at=(6,)), tmp_path / "long"), train(wsd(8, keep_at=(6,)), tmp_path / "short")
    states = [load(run.path / "attempts/1/checkpoint-00000006.pt", torch.device("cpu")) for run in (long, short)]
    assert states[0]["step"] == 6 and equal_states(*states)


@pytest.mark.parametrize("other", [{}, {"optimizer__decay_shape": "one_minus_sqrt", "optimizer__decay_share": 0.4}])
def test_a_shorter_one_trains_only_its_decay(tmp_path: Path, other: dict[str, Any]) -> None:
    short = wsd(8, **other)
    branch = short.trunk_steps
    longest = train(wsd(16, keep_at=(branch,)), tmp_path)
    assert checkpoints(longest) == [f"checkpoint-{branch:08d}.pt"]
    steps: list[int] = []
    said: list[str] = []
    shared = train(short, tmp_path, on_step=steps.append, announce=said.append)
    assert steps[0] == branch + 1 and read_run(shared).started_from == f"{longest.signature} at step {branch}"
    assert any(f"{longest.signature} at step {branch}" in line for line in said)
    alone = train(short, tmp_path / "alone")
    assert read_run(alone).started_from is None
    assert same(shared, alone) and evaluations(shared) == evaluations(alone)
    assert curve(shared) == curve(alone)[branch:]


def test_evaluations_on_the_way_are_those_of_a_run_alone(tmp_path: Path) -> None:
    every = {"evaluation__every": 2}
    longest = train(wsd(16, keep_at=(6,), **every), tmp_path)
    shared, alone = train(wsd(8, **every), tmp_path), train(wsd(8, **every), tmp_path / "alone")
    assert read_run(shared).started_from == f"{longest.signature} at step 6"
    assert [result["step"] for result in evaluations(shared)] == [2, 4, 6, 8]
    assert evaluations(shared) == evaluations(alone)


def test_a_run_that_has_not_finished_is_enough(tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 9:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError):
        train(wsd(16, keep_at=(6,)), tmp_path, on_step=stop)
    steps: list[int] = []
    train(wsd(8), tmp_path, on_step=steps.append)
    assert steps[0] == 7
    # Nor does the end of the longest remove what it keeps in an earlier attempt.
    longest = train(wsd(16, keep_at=(6,)), tmp_path)
    assert checkpoints(longest) == ["checkpoint-00000006.pt"]


def test_longer_ones_never_start_within_a_decay(tmp_path: Path) -> None:
    """The last checkpoint of a run with a decay is not that of a longer one; the one before the decay is."""
    short = train(wsd(8, execution__keep_checkpoint=True), tmp_path)
    assert checkpoints(short) == ["checkpoint-00000006.pt"]
    steps: list[int] = []
    long = train(wsd(12), tmp_path, on_step=steps.append)
    assert steps[0] == 7 and same(long, train(wsd(12), tmp_path / "alone"))


def test_the_trunk_is_the_constant_schedule(tmp_path: Path) -> None:
    constant = {"optimizer__schedule": "constant", "optimizer__decay_share": 0.0}
    train(wsd(5, execution__keep_checkpoint=True, **constant), tmp_path)
    steps: list[int] = []
    train(wsd(8, optimizer__final_learning_rate=1e-5), tmp_path, on_step=steps.append)
    assert steps[0] == 6


@pytest.mark.parametrize("change", [{"seed": 1}, {"optimizer__learning_rate": 2e-3}, {"optimizer__warmup_steps": 3}])
def test_another_trunk_is_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    train(wsd(16, keep_at=(6,)), tmp_path)
    steps: list[int] = []
    train(wsd(8, **change), tmp_path, on_step=steps.append)
    assert steps[0] == 1
