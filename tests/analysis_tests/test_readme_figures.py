"""The figures of the README are those that ``make figures`` makes of the committed tables."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gsq.cli.main import app

REPOSITORY = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"-?\d+(?:\.\d+(?:e-?\d+)?)?")
HASHED = re.compile(r"\b[a-zA-Z][0-9a-f]{10}\b")  # matplotlib's ids hash places, last digits and all


def commands() -> list[list[str]]:
    """Those of ``make figures``, after ``gsq``."""
    words = ["make", "--dry-run", "--always-make", "figures", "VENV=/nowhere"]
    made = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [shlex.split(line)[1:] for line in made.splitlines() if line.startswith("/nowhere/bin/gsq ")]


def content(svg: Path) -> str:
    """The text of ``svg``, its ids numbered as they come."""
    ids: dict[str, str] = {}
    return HASHED.sub(lambda match: ids.setdefault(match.group(), f"id{len(ids)}"), svg.read_text())


def test_each_figure_of_the_readme_is_made() -> None:
    shown = set(re.findall(r"\]\((results/[^)]+\.(?:png|svg))\)", (REPOSITORY / "README.md").read_text()))
    assert shown <= {words[words.index("--output") + 1] for words in commands()}


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[1])
def test_a_figure_is_up_to_date(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are equal, and places to a tenth of a pixel (the last digits are another machine's)."""
    monkeypatch.chdir(REPOSITORY)
    at = words.index("--output") + 1
    done = CliRunner().invoke(app, [*words[:at], str(tmp_path / "figure.png"), *words[at + 1 :]])
    assert done.exit_code == 0, done.output
    made, committed = (content(path) for path in (tmp_path / "figure.svg", Path(words[at]).with_suffix(".svg")))
    stale = "make figures, and commit what it changes"
    assert NUMBER.sub("#", made) == NUMBER.sub("#", committed), stale
    places = [[float(number) for number in NUMBER.findall(text)] for text in (made, committed)]
    assert places[0] == pytest.approx(places[1], abs=0.1), stale
