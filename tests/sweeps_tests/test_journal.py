"""Damaged entries of the submission journal are named, with what to do about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gsq.errors import UserError
from gsq.records.folder import runs_root
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state import journal


@pytest.fixture
def entry(plan_of: Callable[..., Plan], handed_over: Callable[..., journal.Entry]) -> journal.Entry:
    return handed_over("small", plan_of(axes={"seed": [0, 1]}).cells)


def test_an_entry_is_read_as_it_was_written(entry: journal.Entry) -> None:
    assert journal.read_entry(entry.path) == entry and entry.job == "7" and entry.clusters == ""
    # An entry of a gsq that knew no clusters.
    values = json.loads((entry.path / journal.ENTRY).read_text())
    del values["clusters"]
    (entry.path / journal.ENTRY).write_text(json.dumps(values))
    assert journal.read_entry(entry.path) == entry


@pytest.mark.parametrize("content", ["", "\0\0\0", '{"name": "gsq-', "[]", "{}", "7", '{"signatures": null}'])
def test_a_damaged_entry_is_one_error_with_a_remedy(entry: journal.Entry, content: str) -> None:
    (entry.path / journal.ENTRY).write_text(content)
    with pytest.raises(UserError) as caught:
        list(journal.entries(SweepFolder(runs_root(), "small")))
    message = str(caught.value)
    for word in (str(entry.path / journal.ENTRY), "gsq-small-1-", "squeue", f"remove the folder {entry.path}"):
        assert word in message


@pytest.mark.parametrize("content", ["", '{"job": ', "[]", "{}", '{"job": 7}', '{"job": ""}'])
def test_a_damaged_verdict_is_one_error_and_can_be_found_out_again(entry: journal.Entry, content: str) -> None:
    (entry.path / journal.VERDICT).write_text(content)
    with pytest.raises(UserError) as caught:
        journal.read_entry(entry.path)
    assert str(entry.path / journal.VERDICT) in str(caught.value) and entry.name in str(caught.value)
    (entry.path / journal.VERDICT).unlink()
    assert journal.read_entry(entry.path).open
    assert journal.read_entry(entry.path).decide("9", "big").clusters == "big"


def test_status_of_a_sweep_with_a_damaged_entry_is_that_error(entry: journal.Entry, plan_of: Any) -> None:
    from gsq.sweeps.state.status import status

    folder = SweepFolder(runs_root(), "small")
    folder.write_plan(plan_of(axes={"seed": [0, 1]}))
    Path(entry.path / journal.ENTRY).write_text("")
    with pytest.raises(UserError, match=r"entry\.json"):
        status(folder)
