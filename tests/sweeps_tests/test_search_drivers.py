"""Drivers of a search that are killed, that work side by side, and the storages of its study."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend
from searches import Make, plan_of

from gsq import sweeps
from gsq.errors import UserError
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running import search as searching
from gsq.sweeps.running.search import Driver


class Killed(BaseException):
    """Nothing of the process goes on after this."""


def test_a_driver_killed_between_any_two_writes_loses_nothing(fake: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its n-th write to the study or the plan, for every n; the next driver finishes the search."""
    append, write_plan = JournalFileBackend.append_logs, SweepFolder.write_plan
    process = subprocess.Popen(["true"])
    process.wait()
    dead = {"host": os.uname().nodename, "pid": process.pid}
    for fatal in itertools.count():
        writes = itertools.count()

        def count(writes: Iterator[int] = writes, fatal: int = fatal) -> None:
            if next(writes) >= fatal:
                raise Killed

        def counted_append(self: Any, logs: Any, count: Callable[[], None] = count) -> None:
            count()
            append(self, logs)

        def counted_plan(self: Any, plan: Plan, count: Callable[[], None] = count) -> None:
            count()
            write_plan(self, plan)

        plan = plan_of({"trials": 2, "sampler": "random"}, f"killed-{fatal}")
        with monkeypatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", counted_append)
            patch.setattr(SweepFolder, "write_plan", counted_plan)
            patch.setattr(searching, "_this_process", lambda: dead)
            try:
                fake(plan, 1).run()
                break
            except Killed:
                pass
        search = fake(plan, 1)
        search.run()
        states = search.states()
        assert set(states) <= {"COMPLETE", "FAIL"} and states.count("COMPLETE") == 2, fatal
        planned = {cell.signature for cell in search.folder.read_plan().cells}
        tied = [t.user_attrs["cell"]["signature"] for t in search.study.trials if "cell" in t.user_attrs]
        assert planned == set(tied) and len(tied) == 2, fatal
        # The one that had no run is all that may be lost, and its number.
        assert states.count("FAIL") <= 1, fatal
    assert fatal > 10


def test_a_driver_that_is_alive_is_left_alone(fake: Make) -> None:
    """A trial that another driver is drawing just now is not failed."""
    search = fake()
    search.study.enqueue_trial({}, user_attrs={"driver": searching._this_process()})
    search.study.ask()
    other = fake()
    assert other.states() == ["RUNNING"]


def test_two_drivers_at_the_same_time_share_the_study(fake: Make) -> None:
    one, other = fake(), fake()
    for _ in range(5):
        for search in (one, other):
            for cell in search.step():
                search.end(cell)
    assert one.step() == other.step() == []
    assert one.states() == ["COMPLETE"] * 5
    assert len({trial.params["learning_rate"] for trial in one.study.trials}) == 5


def test_a_torn_line_in_the_journal_is_mended(fake: Make) -> None:
    search = fake()
    search.step()
    journal = search.folder.path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:17])
    later = fake()
    later.run()
    assert later.states() == ["COMPLETE"] * 5
    assert [json.loads(line) for line in journal.read_text().splitlines()]


def test_a_database_by_its_url(fake: Make, folder: Path) -> None:
    plan = plan_of({"trials": 3, "storage": "sqlite:///search.db"})
    search = fake(plan)
    search.run()
    assert (folder / "search.db").is_file() and not (search.folder.path / "study.journal").exists()
    # Workers start elsewhere.
    os.chdir(folder / "runs")
    assert sweeps.search("found").best_value == search.study.best_value
    # A sweep of the same name below another runs folder is another one.
    with pytest.raises(UserError, match="belongs to another sweep folder"):
        Driver(SweepFolder(folder / "elsewhere", "found"), plan_of({"storage": f"sqlite:///{folder}/search.db"}), 1)


def test_a_database_that_does_not_answer_is_one_sentence_without_the_password(
    fake: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("nosuch://me:secret@nowhere/db", "sqlite:////no/such/folder/search.db"):
        with pytest.raises(UserError) as caught:
            fake(plan_of({"storage": url}))
        assert "search.storage: " in str(caught.value) and "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    # From a variable it is in no file.
    monkeypatch.setenv("SEARCH_DB", f"sqlite:///{Path('hidden.db').absolute()}")
    search = fake(plan_of({"trials": 1, "storage": "$SEARCH_DB"}, "hidden"))
    search.run()
    assert Path("hidden.db").is_file() and "hidden.db" not in search.folder.search.read_text()


def test_an_unknown_search_is_an_error_that_names_what_there_is(fake: Make) -> None:
    fake(plan_of({"trials": 1})).run()
    with pytest.raises(UserError, match=r"'fund'.*'found'"):
        sweeps.search("fund")
