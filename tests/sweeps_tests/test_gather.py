"""Run folders to results table, with run folders made by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from gathering import evaluation, submitted, table
from preamble import PlanOf, WriteRun

from gsq.analysis import load_results
from gsq.errors import UserError
from gsq.files import write_json
from gsq.sweeps.planning.cells import derived
from gsq.sweeps.state.status import status
from gsq.sweeps.tables.gather import gather


def test_every_planned_cell_has_a_row_whatever_became_of_it(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4, 8, 16]})
    submitted(plan)
    done, failed, running, pruned, missing = plan.cells
    environment = {
        "execution_signature": "e1",
        "source": "5eed",
        "commit": "c0ffee",
        "versions": {"torch": "2", "numpy": "1"},
        "device": "a cpu",
    }
    more = {"peak_memory_bytes": 5 << 20}
    write_run(done, "done", 350, (evaluation(350, 9.5),), environment=environment, **more)
    write_run(failed, "failed", 12, failure="diverged", message="Diverged: not finite")
    write_run(running, "running", 100, (evaluation(50, 90.0),))
    write_run(pruned, "pruned", 100, (evaluation(100, 80.0),))
    frame = table(plan.name).set_index("signature")
    assert list(frame.index) == [cell.signature for cell in plan.cells]
    assert list(frame["state"]) == ["done", "failed", "running", "pruned", "planned"]
    assert list(frame["groups"]) == [1, 2, 4, 8, 16]
    for cell in plan.cells:
        row = frame.loc[cell.signature]
        assert row["sweep"] == plan.name and row["parameters"] == cell.cost.parameters
        for name, value in derived(cell.config).items():
            assert row[name] == value
    row = frame.loc[done.signature]
    assert (row["step"], row["protocol"], row["rfid"], row["images_seen"]) == (350, "p1", 9.5, 2800)
    assert list(row["usage_per_group"]) == [0.5, 0.25]
    assert (row["execution_signature"], row["commit"], row["device"]) == ("e1", "c0ffee", "a cpu")
    assert row["source"] == "5eed"
    assert row["versions"] == '{"numpy": "1", "torch": "2"}'
    assert row["attempts"] == 1 and row["peak_memory_bytes"] == 5 << 20 and row["device_seconds"] >= 0
    row = frame.loc[failed.signature]
    assert (row["failure"], row["message"]) == ("diverged", "Diverged: not finite")
    assert pd.isna(row["rfid"]) and pd.isna(row["step"]) and pd.isna(row["protocol"])
    row = frame.loc[missing.signature]
    assert row["attempts"] == 0 and pd.isna(row["device_seconds"]) and pd.isna(row["rfid"])


def test_each_evaluation_is_a_row(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    submitted(plan)
    found = (evaluation(100, 3.0), evaluation(200, 2.0), evaluation(200, 5.0, "p2", num_images=99))
    write_run(plan.cells[0], "done", 200, found)
    frame = table(plan.name)
    rows = frame[frame["signature"] == plan.cells[0].signature]
    assert {(r.step, r.protocol, r.rfid, r.num_images) for r in rows.itertuples()} == {
        (100, "p1", 3.0, 16),
        (200, "p1", 2.0, 16),
        (200, "p2", 5.0, 99),
    }
    assert set(rows["state"]) == {"done"} and len(frame) == 4


def test_rows_say_whether_the_sweep_file_asks_for_their_protocol(
    plan_of: PlanOf, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsq.sweeps.tables.gather.SETTLED_SECONDS", -1.0)
    plan = plan_of(axes={"groups": [1, 2, 4]})
    sweep = submitted(plan)
    for cell, protocols in zip(plan.cells, (("now", "other"), ("before", "other"), ("before", "now")), strict=True):
        write_run(cell, "done", 200, tuple(evaluation(step, 3.0, p) for p in protocols for step in (100, 200)))
    assert table(plan.name)["asked"].isna().all()

    def asks(*protocols: tuple[str, str]) -> list[list[str]]:
        write_json(sweep.path / "protocols.json", {"cells": {c.signature: protocols for c in plan.cells[:3]}})
        # The table is made again, although no run has changed.
        frame = table(plan.name)
        assert frame["asked"].notna().all()
        asked = frame[frame["asked"]]
        return [sorted(set(asked.loc[asked["signature"] == c.signature, "protocol"])) for c in plan.cells]

    # The row of an earlier gsq stands for today's, where it is the only one.
    assert asks(("now", "before")) == [["now"], ["before"], ["now"]]
    assert asks(("other", "before")) == [["other"], ["other"], ["before"]]
    assert asks(("now", "x"), ("other", "y")) == [["now", "other"], ["other"], ["now"]]


def test_the_highest_attempt_wins(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1]})
    submitted(plan)
    (cell,) = plan.cells
    old, new = {"device": "old"}, {"device": "new"}
    write_run(cell, "failed", 150, (evaluation(50, 7.0), evaluation(100, 6.0)), environment=old, failure="lost")
    write_run(cell, "running", 170, (evaluation(100, 5.0), evaluation(150, 4.0)), environment=new)
    write_run(cell, None)
    frame = table(plan.name)
    assert list(zip(frame["step"], frame["rfid"], strict=True)) == [(50, 7.0), (100, 5.0), (150, 4.0)]
    assert set(frame["state"]) == {"running"} and set(frame["device"]) == {"new"} and set(frame["attempts"]) == {3}
    # Done is done, even where a late attempt of the same run says something else.
    write_run(cell, "done", 350, (evaluation(350, 1.0),))
    write_run(cell, "failed", 10, failure="error")
    assert set(table(plan.name)["state"]) == {"done"}
    assert status(plan.name).counts["done"] == 1


def test_device_seconds_are_those_of_all_attempts(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1]})
    submitted(plan)
    for state in ("failed", "failed", "done"):
        write_run(plan.cells[0], state, 10, heartbeat=1000.0, failure="lost" if state == "failed" else None)
    # The fixture's attempts have taken a second each.
    assert list(table(plan.name)["device_seconds"]) == [3.0]


def test_a_torn_status_or_evaluation_does_not_stop_the_table(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    submitted(plan)
    run = write_run(plan.cells[0], "done", 350, (evaluation(350, 2.0),))
    attempt = run.new_attempt()
    (attempt.path / "status.json").write_text('{"state": "runn')
    (attempt.path / "evaluations").mkdir()
    (attempt.path / "evaluations" / ".p1-00000360.json.1.partial").write_text("{")
    (attempt.path / "evaluations" / "p1-00000360.json").write_text('{"protocol"')
    frame = table(plan.name)
    assert list(frame["state"]) == ["done", "planned"] and frame["rfid"].iloc[0] == 2.0


def test_editing_the_sweep_never_removes_rows(plan_of: PlanOf, write_run: WriteRun) -> None:
    first = plan_of("edited", axes={"groups": [1, 2, 4]})
    submitted(first)
    write_run(first.cells[2], "done", 350, (evaluation(350, 2.0),))
    submitted(plan_of("edited", axes={"groups": [1]}))
    submitted(plan_of("edited", axes={"groups": [8]}, where="groups > 1"))
    frame = table("edited")
    assert list(frame["groups"]) == [1, 2, 4, 8]
    assert dict(zip(frame["groups"], frame["state"], strict=True))[4] == "done"


def test_fixed_keys_that_an_edit_changed_become_columns(plan_of: PlanOf, capsys: pytest.CaptureFixture[str]) -> None:
    for norm_groups in (8, 4):
        submitted(plan_of("edited", axes={"groups": [1, 2]}, set={"model.norm_groups": norm_groups}))
    frame = load_results(gather("edited"))
    assert frame.groupby("groups")["model.norm_groups"].apply(sorted).to_dict() == {1: [4, 8], 2: [4, 8]}
    message = capsys.readouterr().err
    assert all(word in message for word in ("edited", "model.norm_groups", "4, 8", "--where"))
    # An edit that adds values of an axis, or changes a fixed key together with an axis, hides nothing.
    submitted(plan_of("added", axes={"groups": [1, 2]}))
    submitted(plan_of("added", axes={"groups": [4]}, set={"model.norm_groups": 4}))
    assert set(table("added")["other_axes"]) == {"{}"} and "model.norm_groups" not in capsys.readouterr().err


def test_a_run_that_two_sweeps_share_is_in_both_tables(plan_of: PlanOf, write_run: WriteRun) -> None:
    one, two = plan_of("one", axes={"groups": [1, 2]}), plan_of("two", axes={"groups": [2, 4]})
    submitted(one)
    submitted(two)
    write_run(one.cells[1], "done", 350, (evaluation(350, 2.0),))
    for name in ("one", "two"):
        frame = table(name).set_index("groups")
        assert frame.loc[2, "state"] == "done" and frame.loc[2, "sweep"] == name


def test_counts_add_up(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4, 8, 16], "seed": [0, 1]})
    submitted(plan)
    failures = ("error", "error", "diverged", "out_of_memory")
    for cell, failure in zip(plan.cells, failures, strict=False):
        write_run(cell, "failed", 1, failure=failure, message="m")
    for cell in plan.cells[4:7]:
        write_run(cell, "done", 350, (evaluation(350, 2.0),))
    found = status(plan.name)
    assert found.counts == {"planned": 3, "queued": 0, "running": 0, "done": 3, "pruned": 0, "failed": 4}
    assert sum(found.counts.values()) == len(plan.cells) == 10
    assert found.failures == {"error": 2, "diverged": 1, "out_of_memory": 1}
    frame = table(plan.name)
    assert Counter(frame["state"]) == Counter({k: v for k, v in found.counts.items() if v})
    assert Counter(frame["failure"].dropna()) == found.failures


def test_gathering_twice_gives_the_same_table(plan_of: PlanOf, write_run: WriteRun) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    submitted(plan)
    write_run(plan.cells[0], "done", 350, (evaluation(350, 2.0),))
    first = table(plan.name)
    pd.testing.assert_frame_equal(table(plan.name), first)


def test_the_runs_folder_can_be_moved(
    plan_of: PlanOf, write_run: WriteRun, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    submitted(plan)
    write_run(plan.cells[0], "done", 350, (evaluation(350, 2.0),))
    before = table(plan.name)
    (folder / "runs").rename(folder / "archive")
    monkeypatch.setenv("GSQ_RUNS", str(folder / "archive"))
    pd.testing.assert_frame_equal(table(plan.name), before)


def test_the_table_goes_where_it_is_told(plan_of: PlanOf, folder: Path) -> None:
    submitted(plan_of(axes={"groups": [1]}))
    assert gather("small") == Path("results/small.parquet") and Path("results/small.parquet").is_file()
    assert gather("small", folder / "new" / "other.parquet").is_file()


def test_a_sweep_of_mixed_code_or_devices_is_warned_of_once(
    plan_of: PlanOf, write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4, 8]})
    submitted(plan)
    same = {"source": "aa", "versions": {"torch": "2"}, "device": "a cpu", "threads": 1}
    for cell in plan.cells[:2]:
        # Two evaluations are one run.
        write_run(cell, "done", 350, (evaluation(100, 3.0), evaluation(350, 2.0)), environment=same)
    gather(plan.name)
    assert capsys.readouterr().err == ""
    write_run(plan.cells[2], "done", 350, (evaluation(350, 2.0),), environment={**same, "source": "bb"})
    gather(plan.name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: sweep 'small' mixes runs of 2 versions of gsq's source (aa: 2, bb: 1 runs)")
    assert "source, versions, device" in line and "2 devices" not in line
    other = {**same, "versions": {"torch": "3"}, "device": "a gpu"}
    write_run(plan.cells[3], "done", 350, (evaluation(350, 2.0),), environment=other)
    frame = table(plan.name)
    (line,) = capsys.readouterr().err.splitlines()
    for words in (
        "(aa: 3, bb: 1 runs)",
        "2 sets of package versions (3, 1 runs)",
        "2 devices (a cpu: 3, a gpu: 1 runs)",
    ):
        assert words in line
    runs = frame.drop_duplicates("signature").set_index("groups")
    assert list(runs["source"]) == ["aa", "aa", "bb", "aa"] and list(runs["device"])[3] == "a gpu"


def test_an_unknown_sweep_is_answered_with_those_that_are_there(plan_of: PlanOf) -> None:
    with pytest.raises(UserError, match=r"no sweep 'smal'.*none yet"):
        gather("smal")
    submitted(plan_of())
    for ask in (gather, status):
        with pytest.raises(UserError, match=r"'smal'.*'small'.*: small"):
            ask("smal")
    assert not Path("results").exists()
