"""A damaged line of a study's journal is named, with a remedy that works."""

from __future__ import annotations

import subprocess
from pathlib import Path

import optuna
import pytest

from gsq.errors import UserError
from gsq.sweeps.state.study_journal import check_journal, open_journal


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "it's a study.journal"
    study = optuna.create_study(study_name="s", storage=open_journal(path))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    return path


def spoilt(journal: Path, number: int, change: bytes, instead: bool = False) -> str:
    lines = journal.read_bytes().split(b"\n")
    lines[number - 1] = change if instead else change + lines[number - 1]
    journal.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError) as caught:
        open_journal(journal)
    message = str(caught.value)
    assert str(journal) in message and f"line {number} " in message
    return message


def mended(message: str, journal: Path) -> optuna.Study:
    """After the commands that the message gives."""
    command = message.split("runs: ")[1].rpartition("; ")[0]
    subprocess.run(["sh", "-c", command], check=True)
    return optuna.load_study(study_name="s", storage=open_journal(journal))


@pytest.mark.parametrize("number", [1, 4, -1])
def test_zeros_of_a_power_loss_are_taken_out_and_nothing_is_lost(journal: Path, number: int) -> None:
    whole = journal.read_bytes()
    count = len(whole.splitlines())
    message = spoilt(journal, number if number > 0 else count, bytes(200))
    assert len(mended(message, journal).trials) == 3 and journal.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"##", b'{"op_code": 5, "worker_id"', b"\xff\xfe", b"7", b"{}", b"", b'{"op_code": 5}', bytes(50)]
)
def test_a_spoilt_line_is_cut_with_what_follows(journal: Path, line: bytes) -> None:
    count = len(journal.read_bytes().splitlines())
    message = spoilt(journal, count - 1, line, instead=True)
    assert len(mended(message, journal).trials) == 3
    assert len(journal.read_bytes().splitlines()) == count - 2


def test_a_last_line_that_is_being_written_is_no_damage(journal: Path) -> None:
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    check_journal(journal)
    check_journal(journal.with_name("none"))
