"""Progress of what takes long: nothing at first, then a line in a log or a bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from image_sets import folder_config

from gsq.data.progress import shown_after_a_second
from gsq.data.sources import manifest


def test_what_is_fast_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shown_after_a_second(range(1000), "work", 1000)) == list(range(1000))
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_after_a_second_and_then_each_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.5, 1.2, 30.0, 61.5, 62.0])
    monkeypatch.setattr("gsq.data.progress.time.monotonic", lambda: next(clock))
    assert list(shown_after_a_second(range(5), "first look at x", 5)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "first look at x: 1 of 5\nfirst look at x: 3 of 5\n")


def test_the_first_look_at_a_folder_shows_its_progress(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsq.data.progress.PATIENCE", -1.0)
    manifest(folder_config(folder))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("listing the files of ") and said[1].startswith("looking at the images of ")
    assert said[1].endswith(": 0 of 24")


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    code = (
        "import time; from gsq.data.progress import shown_after_a_second\n"
        "for _ in shown_after_a_second(range(8), 'first look at x', 8): time.sleep(0.2)"
    )
    ours, theirs = pty.openpty()
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass
    os.close(ours)
    assert ran.stdout == b"" and b"first look at x" in shown
