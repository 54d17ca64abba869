"""A table that is gathered again, by several processes, and of damaged runs."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from gathering import evaluation, submitted, table
from preamble import PlanOf, WriteRun

from gsq.errors import UserError
from gsq.files import write_json
from gsq.records.attempt import Attempt
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.state.cancellation import mark
from gsq.sweeps.tables import gather as gathering
from gsq.sweeps.tables.gather import gather


def test_a_table_of_unchanged_runs_is_left_as_it_is(
    plan_of: PlanOf, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SETTLED_SECONDS", -1.0)
    plan = plan_of(axes={"groups": [1, 2, 4]})
    sweep = submitted(plan)
    run = write_run(plan.cells[0], "done", 350, (evaluation(350, 2.0),), environment={"device": "a"})
    attempt = Attempt(run.attempt_folders()[0], 1)
    path = gather(plan.name)

    def wrote() -> bool:
        time.sleep(0.02)  # Not in one tick of the file system's clock.
        before = path.stat().st_mtime_ns
        found = read_table(gather(plan.name))
        changed = path.stat().st_mtime_ns != before
        # It is made as without what an earlier one left.
        (sweep.path / "gathered.json").unlink()
        pd.testing.assert_frame_equal(read_table(gather(plan.name)), found)
        return changed

    assert not wrote()
    attempt.write_evaluation("p1", 350, evaluation(350, 3.0))
    assert wrote()
    attempt.write_evaluation("p2", 350, evaluation(350, 3.0, "p2"))
    assert wrote()
    write_json(attempt.path / "env.json", {"device": "b"})
    assert wrote()
    write_run(plan.cells[1], "failed", 3, failure="error", message="m")
    assert wrote()
    mark(sweep, [plan.cells[2].signature])
    assert wrote()
    submitted(plan_of(axes={"groups": [8]}))
    assert wrote()
    assert not wrote()


def test_a_table_that_is_gone_or_another_is_written_again(
    plan_of: PlanOf, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SETTLED_SECONDS", -1.0)
    plan = plan_of(axes={"groups": [1, 2]})
    sweep = submitted(plan)
    write_run(plan.cells[0], "done", 350, (evaluation(350, 2.0),))
    path = gather(plan.name)
    rows = read_table(path)
    for damage in (
        path.unlink,
        lambda: path.write_bytes(b"PAR1"),
        lambda: (sweep.path / "gathered.json").write_text("[]"),
        lambda: (sweep.path / "gathered.json").unlink(),
    ):
        damage()
        pd.testing.assert_frame_equal(read_table(gather(plan.name)), rows)


def test_what_has_just_changed_is_read_again(plan_of: PlanOf, write_run: WriteRun) -> None:
    """A second change within a tick of the file system's clock leaves no trace in the times."""
    plan = plan_of(axes={"groups": [1]})
    sweep = submitted(plan)
    run = write_run(plan.cells[0], "done", 350, (evaluation(350, 2.0),))
    (folder,) = [path / "evaluations" for path in run.attempt_folders()]
    gather(plan.name)
    stat = folder.stat()
    Attempt(folder.parent, 1).write_evaluation("p1", 350, evaluation(350, 7.0))
    os.utime(folder, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert list(table(plan.name)["rfid"]) == [7.0]
    assert not (sweep.path / "gathered.json").exists()


def test_a_damaged_run_is_named_and_keeps_its_row(
    plan_of: PlanOf, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SETTLED_SECONDS", -1.0)
    plan = plan_of(axes={"groups": [1, 2, 4, 8, 16]})
    submitted(plan)
    runs = [write_run(c, "done", 350, (evaluation(350, 2.0), evaluation(300, 4.0))) for c in plan.cells[:4]]
    status_of, values_of, device_of, _ = (run.attempt_folders()[0] for run in runs)
    (status_of / "status.json").write_text('{"state": "done"}')
    (values_of / "evaluations" / "p1-00000350.json").write_text(json.dumps(evaluation(350, "low")))  # type: ignore[arg-type]
    (values_of / "evaluations" / "p1-00000300.json").write_text(json.dumps(evaluation(350, 1.0)))
    (device_of / "env.json").write_text('{"device": 3}')
    named: list[str] = []
    for _ in range(2):
        named.clear()
        frame = read_table(gather(plan.name, warn=named.append)).set_index("signature")
        for text, run, words in zip(
            named,
            runs,
            (["attempts/1/status.json"], ["p1-00000350.json (rfid)", "p1-00000300.json (protocol or step)"], ["env"]),
            strict=False,
        ):
            assert str(run.path) in text and all(word in text for word in words)
        assert len(named) == 3
    first, second, third, whole, _ = (frame.loc[[cell.signature]] for cell in plan.cells)
    assert set(first["state"]) == {"planned"} and sorted(first["rfid"]) == [2.0, 4.0]
    assert "attempts/1/status.json" in first["message"].iloc[0]
    assert len(second) == 1 and set(second["state"]) == {"done"} and second["rfid"].isna().all()
    assert len(third) == 2 and third["device"].isna().all()
    assert len(whole) == 2 and whole["message"].isna().all()


def test_several_gathers_at_once(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    submitted(plan)
    write_run(plan.cells[0], "done", 350, (evaluation(350, 2.0),))
    expected = table(plan.name)
    Path("results/small.parquet").unlink()
    with ThreadPoolExecutor(4) as threads:
        for path in threads.map(lambda _: gather(plan.name), range(8)):
            pd.testing.assert_frame_equal(read_table(path), expected)
    assert [p.name for p in Path("results").iterdir()] == ["small.parquet"]


def test_a_table_that_cannot_be_written_is_refused_before_the_runs_are_read(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(plan_of())
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file").write_text("mine")
    pd.DataFrame({"image": [1]}).to_parquet(tmp_path / "mine.parquet")
    monkeypatch.setattr(gathering, "survey", lambda folder: pytest.fail("the runs were read"))
    for path in (
        *(tmp_path / name for name in ("folder.parquet", "mine.parquet", "file")),
        tmp_path / "file/t.parquet",
    ):
        with pytest.raises(UserError, match=str(path)):
            gather("s", path)
