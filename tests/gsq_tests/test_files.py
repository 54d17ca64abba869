"""Files are whole, and whom the umask lets read them may."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_run import tiny

from gsq import train
from gsq.files import leftovers, read_json, temporary, whole, write_json, write_text
from gsq.training.checkpoint import save_tensors


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


WRITER = """
import sys
from pathlib import Path
from gsq.files import write_json
path, mark = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for turn in range(300):
    write_json(path, [mark] * (1 + turn * 37 % 2000), sync=False)
"""


def test_two_processes_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Neither fails, and every reader finds one whole content or another."""
    path = tmp_path / "report.json"
    write_json(path, ["a"])
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    writers = [subprocess.Popen([*command, mark], text=True, **pipes) for mark in "ab"]  # type: ignore[call-overload]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = 0
    while any(writer.poll() is None for writer in writers):
        value = read_json(path)
        assert value and len(set(value)) == 1
        seen += 1
    for writer in writers:
        writer.communicate()
    assert seen > 10 and [writer.returncode for writer in writers] == [0, 0]
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_names_of_one_process_differ_too(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    with whole(path) as outer, whole(path) as inner:
        outer.write_text("outer")
        inner.write_text("inner")
        assert set(leftovers(path)) == {outer, inner} and leftovers(tmp_path / "other") == []
    assert path.read_text() == "outer" and leftovers(path) == [] and temporary(path).parent == tmp_path


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2}, sync=True)
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_write_text_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "long text")
    write_text(tmp_path / "a", "x", sync=True)
    assert (tmp_path / "a").read_text() == "x"
    assert read_json(tmp_path / "a") is None and read_json(tmp_path / "none") is None
