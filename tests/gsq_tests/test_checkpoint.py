"""Checkpoints survive kills, flipped bits and full disks."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gsq.training import checkpoint

CPU = torch.device("cpu")


def state(step: int) -> dict[str, Any]:
    values = torch.arange(2000, dtype=torch.float32) + step
    return {"step": step, "model": {"weight": values, "half": values.bfloat16()}, "groups": [{"lr": 1e-3, "on": True}]}


def steps(*folders: Path) -> list[int]:
    return [int(path.stem.split("-")[1]) for path in checkpoint.newest(list(folders))]


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 12, state(12))
    assert list(checkpoint.newest([tmp_path])) == [path]
    loaded = checkpoint.load(path, CPU)
    assert loaded["step"] == 12 and loaded["groups"] == state(12)["groups"]
    for name, value in state(12)["model"].items():
        assert torch.equal(loaded["model"][name], value) and loaded["model"][name].dtype == value.dtype
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["step"] == 12 and record["bytes"] == path.stat().st_size and len(record["sha256"]) == 64


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 10):
        checkpoint.save(tmp_path, step, state(step))
    assert steps(tmp_path) == [10, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"checkpoint-{step:08d}.{suffix}" for step in (6, 10) for suffix in ("json", "pt")
    ]


def test_newest_over_attempts(tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    for folder in folders[:2]:
        folder.mkdir()
    checkpoint.save(folders[0], 8, state(8))
    checkpoint.save(folders[1], 4, state(4))
    checkpoint.save(folders[1], 8, state(8))
    assert steps(*folders) == [8, 8, 4]
    # The later of two attempts at one step speaks first.
    assert next(checkpoint.newest(folders)).parent == folders[1]
    assert steps(tmp_path / "none") == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object], suffix: str
) -> None:
    checkpoint.save(tmp_path, 4, state(4))
    path = checkpoint.save(tmp_path, 8, state(8))
    record = path.with_suffix(".json")
    if suffix == ".json" and damage is flip:
        record.write_text(record.read_text().replace('"sha256": "', '"sha256": "0', 1))
    elif suffix == ".json" and damage is truncate:
        record.write_text(record.read_text()[:20])
    else:
        damage(path.with_suffix(suffix))
    assert steps(tmp_path) == [4]
    checkpoint.save(tmp_path, 12, state(12))
    assert steps(tmp_path)[0] == 12


def test_a_checkpoint_that_is_held_outlives_its_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts of a run can be alive: one resumes from what the other removes a moment later."""
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir(), second.mkdir()
    for step in (2, 4):
        checkpoint.save(first, step, state(step))
    newest, removed = checkpoint.newest, []

    def found_and_gone(folders: list[Path]) -> Iterator[Path]:
        """Like newest, but what it finds the first time is removed before it is used."""
        for path in newest(folders):
            if not removed:
                removed.append(path)
                checkpoint.save(first, 6, state(6))
                checkpoint.save(first, 8, state(8))
            yield path

    monkeypatch.setattr(checkpoint, "newest", found_and_gone)
    held = checkpoint.hold([first], second)
    assert [path.stem for path in removed] == ["checkpoint-00000004"]
    checkpoint.remove_all(first)
    assert held is not None and held.parent == second and checkpoint.load(held, CPU)["step"] == 8
    # It is nobody's checkpoint, and goes with the first step that is saved.
    assert steps(first, second) == []
    checkpoint.save(second, 10, state(10))
    assert not held.exists() and steps(second) == [10]
    assert checkpoint.hold([tmp_path / "none"], second) is None


def test_what_a_killed_writer_left_does_not_count_and_is_cleaned(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 4, state(4))
    stale = tmp_path / "checkpoint-00000008.partial"
    stale.write_bytes(b"half")
    (tmp_path / "checkpoint-00000006.pt").write_bytes(b"renamed, but without its JSON")
    assert steps(tmp_path) == [4]
    checkpoint.save(tmp_path, 8, state(8))
    assert not stale.exists() and steps(tmp_path) == [8, 4]
    stale.write_bytes(b"half")
    (tmp_path / "other.txt").write_text("stays")
    checkpoint.remove_all(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["other.txt"]


def test_nothing_is_visible_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it writes, between the renames, or before the JSON: the older checkpoint is the newest."""
    checkpoint.save(tmp_path, 4, state(4))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for target in ("os.fsync", "gsq.training.checkpoint.write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(target, killed)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(tmp_path, 8, state(8))
        assert steps(tmp_path) == [4]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000004.json", "checkpoint-00000004.pt"]


def test_what_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"pickle|lambda"):
        checkpoint.save(tmp_path, 1, {"step": 1, "bad": lambda: None})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("elements", [20_000, 400_000])
def test_full_disk(small_disk: Callable[[int], Path], elements: int) -> None:
    """Full in the first block, or long after: ENOSPC, the older checkpoint untouched, no file left half-written."""
    folder = small_disk(64)
    checkpoint.save(folder, 4, state(4))
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(folder, 8, {"step": 8, "weight": torch.zeros(elements)})
    assert caught.value.errno == errno.ENOSPC
    assert sorted(p.name for p in folder.iterdir()) == before and steps(folder) == [4]
    checkpoint.save(folder, 8, state(8))
    assert steps(folder) == [8, 4]


def test_disk_full_before_the_json(small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_disk(64)
    original = checkpoint.write_json

    def fill_first(*arguments: Any, **more: Any) -> None:
        with pytest.raises(OSError, match="No space left"):
            (folder / "filler").write_bytes(bytes(1 << 20))
        original(*arguments, **more)

    monkeypatch.setattr(checkpoint, "write_json", fill_first)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(folder, 8, state(8))
    assert [p.name for p in folder.iterdir()] == ["filler"]
