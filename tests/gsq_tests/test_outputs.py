from __future__ import annotations

import os
from pathlib import Path

import pytest

from gsq.outputs import output_problem


def test_what_can_be_written_leaves_no_trace(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("old")
    before = tmp_path.stat().st_mtime_ns
    for path in (there, tmp_path / "new.json", tmp_path / "a" / "b" / "new.json"):
        assert output_problem(path) == ""
        assert tmp_path.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [there] and there.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "is a folder"),
        ("file/below.json", "not a directory"),
        ("new/" + "x" * 300, "file name too long"),
        ("link/new.json", "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    assert words in output_problem(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_devices_are_not_replaced() -> None:
    assert "regular file" in output_problem(Path("/dev/null")) and "regular file" in output_problem(Path("/dev/stdout"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "permission denied" in output_problem(tmp_path / "closed" / "new" / "a.json")
