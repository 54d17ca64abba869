"""A run that differs from a finished one only by more steps goes on from its checkpoint, to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_run import curve, evaluations, files_below, status, tiny

from gsq import RunFolder, train
from gsq.records.read import newest_file, read_run


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    path = newest_file(folder, "model.safetensors")
    assert path is not None
    return safetensors.torch.load_file(path)


def same(a: RunFolder, b: RunFolder) -> bool:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_more_steps_go_on_where_fewer_ended(tmp_path: Path) -> None:
    shorter = train(tiny(steps=4, execution__keep_checkpoint=True), tmp_path)
    steps: list[int] = []
    said: list[str] = []
    longer = train(tiny(steps=7), tmp_path, on_step=steps.append, announce=said.append)
    assert steps[0] == 5
    assert any(f"{shorter.signature} at step 4" in line for line in said)
    assert read_run(longer).started_from == status(longer)["started_from"] == f"{shorter.signature} at step 4"
    straight = train(tiny(steps=7), tmp_path / "another")
    assert same(longer, straight)
    assert curve(longer) == curve(straight)[4:]
    assert evaluations(longer) == evaluations(straight)
    assert read_run(straight).started_from is None


def test_the_longest_that_is_shorter_is_taken(tmp_path: Path) -> None:
    for steps in (2, 3, 6):
        train(tiny(steps=steps, execution__keep_checkpoint=True), tmp_path)
    first: list[int] = []
    train(tiny(steps=5), tmp_path, on_step=first.append)
    assert first[0] == 4


@pytest.mark.parametrize("change", [{"seed": 1}, {"optimizer__learning_rate": 2e-3}, {"loss__mse_weight": 2.0}])
def test_another_run_is_not_taken(tmp_path: Path, change: dict[str, float]) -> None:
    train(tiny(steps=2, execution__keep_checkpoint=True), tmp_path)
    first: list[int] = []
    train(tiny(steps=3, **change), tmp_path, on_step=first.append)
    assert first[0] == 1


def test_without_keep_checkpoint_nothing_is_kept(tmp_path: Path) -> None:
    done = train(tiny(steps=2), tmp_path)
    assert not [name for name in files_below(done.path) if "checkpoint" in name] and not (tmp_path / "lineage").exists()


def test_one_checkpoint_is_kept(tmp_path: Path) -> None:
    done = train(tiny(steps=5, execution__keep_checkpoint=True), tmp_path)
    kept = [Path(name).name for name in files_below(done.path) if "checkpoint" in name]
    assert kept == ["checkpoint-00000005.json", "checkpoint-00000005.pt"]


def test_a_name_whose_run_is_gone_is_passed_over(tmp_path: Path) -> None:
    done = train(tiny(steps=2, execution__keep_checkpoint=True), tmp_path)
    done.path.rename(tmp_path / "moved")
    first: list[int] = []
    train(tiny(steps=3), tmp_path, on_step=first.append)
    assert first[0] == 1


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path) -> None:
    done = train(tiny(steps=2, execution__keep_checkpoint=True), tmp_path)
    (path,) = done.path.glob("attempts/1/checkpoint-*.pt")
    path.write_bytes(b"torn")
    first: list[int] = []
    train(tiny(steps=3), tmp_path, on_step=first.append)
    assert first[0] == 1


def test_its_own_checkpoint_comes_first(tmp_path: Path) -> None:
    train(tiny(steps=2, execution__keep_checkpoint=True), tmp_path)
    config = tiny(steps=6)

    def stop_at_four(step: int) -> None:
        if step == 4:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError):
        train(config, tmp_path, on_step=stop_at_four)
    first: list[int] = []
    folder = train(config, tmp_path, on_step=first.append)
    assert first[0] == 5
    assert same(folder, train(config, tmp_path / "another"))
