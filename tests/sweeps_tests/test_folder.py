"""The plan of a sweep on disk: added to, read back, by several processes at once, damaged."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from preamble import PlanOf

import gsq.sweeps.planning.folder
from gsq.errors import UserError
from gsq.records.folder import runs_root
from gsq.records.read import RunRecord
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder, sweep_names


@pytest.fixture
def sweep(folder: Path) -> SweepFolder:
    return SweepFolder(runs_root(), "small")


AXES = {"groups": [1, 2, 4], "optimizer.betas": [[0.9, 0.95], [0.5, 0.9]], "seed": [0, 1]}


def test_a_plan_is_read_as_it_was_written(sweep: SweepFolder, plan_of: PlanOf) -> None:
    plan = plan_of(axes=AXES, set={"learning_rate": 3e-4})
    sweep.write_plan(plan)
    found = sweep.read_plan()
    assert found == Plan("small", plan.cells)
    assert [repr(cell.config) for cell in found.cells] == [repr(cell.config) for cell in plan.cells]
    assert sweep.signatures() == [cell.signature for cell in plan.cells]
    assert sweep_names(sweep.runs) == ["small"]
    for cell in plan.cells:
        assert sweep.read_cell(cell.signature) == cell
    assert set(sweep.records(sweep.signatures()).values()) == {RunRecord(s) for s in sweep.signatures()}
    (file,) = sweep.plan_files()
    # A job finds its line by the bytes.
    head, *lines = file.read_text().splitlines()
    assert json.loads(head)["name"] == "small"
    assert [line.startswith(f'{{"signature": "{c.signature}"') for line, c in zip(lines, plan.cells, strict=True)]


def test_only_what_is_new_or_changed_is_added(sweep: SweepFolder, plan_of: PlanOf) -> None:
    first = plan_of(axes={"groups": [1, 2, 4]})
    sweep.write_plan(first)
    (file,) = sweep.plan_files()
    before = file.stat().st_mtime_ns
    # The same cells, some of them, or in another order: nothing to write.
    sweep.write_plan(first)
    sweep.write_plan(replace(first, cells=first.cells[::-1][:2]))
    sweep.write_plan(sweep.read_plan())
    assert sweep.plan_files() == [file] and file.stat().st_mtime_ns == before
    threads = plan_of(axes={"groups": [2, 8]}, set={"execution.threads": 2})
    sweep.write_plan(threads)
    sweep.write_plan(plan_of(axes={"groups": [16]}))
    one, two, four, eight, sixteen = sweep.read_plan().cells
    assert [c.axes["groups"] for c in (one, two, four, eight, sixteen)] == [1, 2, 4, 8, 16]
    # The last word on a cell counts, in its old place.
    assert [c.config.execution.threads for c in (one, two, four, eight, sixteen)] == [1, 2, 1, 2, 1]
    assert sweep.read_cell(two.signature).config.execution.threads == 2
    assert len(sweep.plan_files()) == 3


def test_the_last_word_counts_beyond_nine_files(sweep: SweepFolder, plan_of: PlanOf) -> None:
    for threads in range(1, 13):
        sweep.write_plan(plan_of(set={"execution.threads": threads}))
    assert len(sweep.plan_files()) == 12
    (cell,) = sweep.read_plan().cells
    assert cell.config.execution.threads == sweep.read_cell(cell.signature).config.execution.threads == 12


def test_a_folder_of_images_is_found_from_elsewhere(
    sweep: SweepFolder, plan_of: PlanOf, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    cells = [replace(c, config=replace(c.config, data=replace(c.config.data, path=f"images{i}")))
             for i, c in enumerate(plan.cells)]  # fmt: skip
    sweep.write_plan(replace(plan, cells=tuple(cells)))
    monkeypatch.chdir("/")
    assert [c.config.data.path for c in sweep.read_plan().cells] == [str(folder / "images0"), str(folder / "images1")]


def test_a_writer_in_between_loses_nothing(
    sweep: SweepFolder, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adds its cells after this one has looked at the plan and before it has written."""
    sweep.write_plan(plan_of(axes={"groups": [1]}))
    other, write_text = plan_of(axes={"groups": [2, 8]}), gsq.sweeps.planning.folder.write_text

    def late(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(gsq.sweeps.planning.folder, "write_text", write_text)
        sweep.write_plan(other)
        write_text(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gsq.sweeps.planning.folder, "write_text", late)
    sweep.write_plan(plan_of(axes={"groups": [2, 4]}))
    assert {cell.axes["groups"] for cell in sweep.read_plan().cells} == {1, 2, 4, 8}
    assert len(sweep.read_plan().cells) == 4
    # Two that bring the same cells write the same file.
    sweep.write_plan(replace(other, name="small"))
    assert len(sweep.plan_files()) == 3


def test_many_writers_at_once(sweep: SweepFolder, plan_of: PlanOf) -> None:
    plans = [plan_of(axes={"seed": [i, i + 1, 0]}) for i in range(8)]
    barrier, failed = threading.Barrier(len(plans)), []

    def write(plan: Plan) -> None:
        barrier.wait()
        try:
            sweep.write_plan(plan)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert {c.signature for c in sweep.read_plan().cells} == {c.signature for plan in plans for c in plan.cells}
    assert not list(sweep.path.glob(".*"))


def test_an_unknown_cell_or_sweep_is_said(sweep: SweepFolder, plan_of: PlanOf) -> None:
    for ask in (sweep.read_plan, sweep.signatures, lambda: sweep.read_cell("0" * 12)):
        with pytest.raises(UserError, match=r"no sweep 'small'.*none yet"):
            ask()
    sweep.write_plan(plan_of())
    with pytest.raises(UserError, match=r"000000000000 .*'small'"):
        sweep.read_cell("0" * 12)
    # What another program has left there is no sweep of ours.
    (sweep.runs / "sweeps" / "other").mkdir()
    (sweep.runs / "sweeps" / "other" / "plan-of-mine.jsonl").touch()
    with pytest.raises(UserError, match="no sweep 'othr'"):
        SweepFolder(sweep.runs, "othr").read_plan()
    assert sweep_names(sweep.runs) == ["small"]


def test_a_damaged_plan_is_named_with_its_line(sweep: SweepFolder, plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    sweep.write_plan(plan)
    (file,) = sweep.plan_files()
    whole = file.read_text()
    head, one, two, three = whole.splitlines(keepends=True)
    for text, said in (
        ("", "first line"),
        ("{\n" + one, "first line"),
        (head.replace('"version": 1', '"version": 7') + one, "version 7; this gsq reads version 1"),
        (head.replace('"latent_dim"', '"latent_dims"') + one, "base config does not fit"),
        (head + one + "half a li", "line 3: not a cell"),
        (head + one + two[:40] + "\n" + three, "cannot be read"),
        (head + one + two.replace('"quantizer.groups"', '"quantizer.grps"'), "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said) as caught:
            sweep.read_plan()
        assert str(file) in str(caught.value)
    # A job needs the head and its own line.
    file.write_text(head + one + two[:40] + "\n" + three)
    assert sweep.read_cell(plan.cells[2].signature) == plan.cells[2]
    file.write_text(whole)
    assert sweep.read_plan().cells == plan.cells
