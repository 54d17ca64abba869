"""Files are whole, and whom the umask lets read them may."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_run import tiny

from gsq import train
from gsq.files import save_tensors


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_tensors_have_the_users_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "model.safetensors"
    for value in (1.0, 2.0):  # the second replaces the first
        save_tensors({"a": torch.full((3,), value)}, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        assert load_file(path)["a"].tolist() == [value] * 3
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_an_earlier_file_stays_where_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors({"a": torch.ones(3)}, path)

    def full(*args: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(SafetensorError):
        save_tensors({"a": torch.zeros(3)}, path)
    assert load_file(path)["a"].tolist() == [1.0] * 3 and len(list(tmp_path.iterdir())) == 1


def test_every_file_of_a_run_has_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        train(tiny(), tmp_path)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "model.safetensors" for path in modes)
    assert set(modes.values()) == {0o640}, modes
