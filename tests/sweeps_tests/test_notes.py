"""What a plan says of its images, of runs that it goes on from and of its own features, before anything is trained."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from preamble import PlanOf

from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.sweeps import admit, forecast, plan, submit
from gsq.sweeps.costing.notes import check_images, image_notes
from gsq.sweeps.spec.sweep import load_spec


def images(folder: Path, train: int, held_out: int) -> dict[str, Any]:
    """Data keys of a folder of one's own."""
    for part, count in (("train", train), ("val", held_out)):
        (folder / "photos" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (i % 256, i // 256, 0)).save(folder / "photos" / part / f"{i}.png")
    return {"data.kind": "image_folder", "data.path": str(folder / "photos")}


def test_photos_are_cut_into_as_many_crops_as_are_asked_for(plan_of: PlanOf) -> None:
    (note,) = image_notes(plan_of(set={"evaluation.num_images": 400}, axes={"seed": [0, 1]}))
    assert "6 to train on, 3 held out" in note and "400 crops" in note and "warning" not in note
    (note,) = image_notes(plan_of(set={"evaluation.num_images": 320}, axes={"seed": [0, 1]}))
    assert "warning" in note and "320 features" in note and "321 images" in note


@pytest.mark.parametrize(
    ("held_out", "changes", "says", "refused"),
    [
        (3, {}, ("4 to train on, 3 held out", "asks for 384", "allow_small"), True),
        (49, {}, ("49 held out", "allow_small"), True),
        (50, {}, ("50 held out", "asks for 384", "warning", "321 images"), False),
        (60, {"evaluation.num_images": 55}, ("compares 55 of them", "warning"), False),
        (3, {"evaluation.allow_small": True}, ("3 held out", "warning"), False),
        (3, {"evaluation.num_images": 8}, ("3 held out", "asks for 8", "warning"), False),
    ],
)
def test_a_folder_says_what_its_held_out_images_allow(
    plan_of: PlanOf, folder: Path, held_out: int, changes: dict[str, Any], says: tuple[str, ...], refused: bool
) -> None:
    found = plan_of(set={**images(folder, 4, held_out), **changes}, axes={"seed": [0, 1]})
    (note,) = image_notes(found)
    assert all(words in note for words in says), note
    assert note in forecast(found).notes
    if not refused:
        check_images(found)
        return
    for act in (check_images, submit):
        with pytest.raises(UserError, match=rf"num_images: 384 .* holds out {held_out}, .*at least 50.*allow_small"):
            act(found)
    # Nothing was begun.
    assert not (folder / "runs").exists()


def test_held_out_images_that_are_trained_on_are_refused_for_a_probe_before_anything_runs(
    plan_of: PlanOf, folder: Path
) -> None:
    keys = images(folder, 120, 60)
    photos = folder / "photos"
    shutil.copy(photos / "train" / "100.png", photos / "val" / "copy.png")
    found = plan_of(set={**keys, "evaluation.probe": "tiny"}, axes={"seed": [0]})
    assert any("will refuse: evaluation.probe" in note for note in image_notes(found))
    # The first 60 images of the two parts are the same.
    for act in (check_images, submit):
        with pytest.raises(UserError, match=r"evaluation.probe: 61 of the 61 held-out images are training images"):
            act(found)
    assert not (folder / "runs").exists()


def test_finished_cells_are_left_alone_whatever_is_refused_now(
    plan_of: PlanOf, folder: Path, write_run: Callable[..., RunFolder]
) -> None:
    found = plan_of(set=images(folder, 4, 3), axes={"seed": [0, 1]})
    for cell in found.cells:
        write_run(cell, "done", cell.config.train.steps)
    check_images(found)
    assert forecast(admit(found)).left == {}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("no_such_module:build", None, "No module named 'no_such_module'"),
        ("own_features:build", "def build(:\n", "SyntaxError"),
        ("own_features:build", "1 / 0\n", "ZeroDivisionError: division by zero"),
        ("own_features:built", "def build(): ...\n", "no class or function 'built'"),
    ],
)
def test_own_features_are_imported_when_a_plan_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, says: str
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "own_features", raising=False)
    if content is not None:
        (folder / "own_features.py").write_text(content)
    values = {"name": "own", "base": "cpu-tiny", "set": {"evaluation.features": name}, "axes": {"seed": [0]}}
    with pytest.raises(UserError, match=f"sweep: set: evaluation.features: .*{says}"):
        load_spec(values)
    monkeypatch.delitem(sys.modules, "own_features", raising=False)
    (folder / "own_features.py").write_text("def build(): ...\ndef built(): ...\n")
    if content is not None:
        assert len(plan(load_spec(values)).cells) == 1


def test_only_the_steps_that_remain_are_counted_where_a_shorter_run_is_gone_on_from(
    plan_of: PlanOf, folder: Path, write_run: Callable[..., RunFolder]
) -> None:
    from gsq.data.sources import manifest
    from gsq.runs import warm_start as lineage

    short, longer = (plan_of(set={"steps": steps}, axes={"seed": [0]}) for steps in (600, 800))
    (done,), (cell,) = short.cells, longer.cells
    before = forecast(longer)
    assert not any("from the checkpoint" in note for note in before.notes)
    run = write_run(done, "done", 600)
    lineage.add(run, done.config, manifest(done.config.data))
    # A name without its checkpoint is passed over.
    assert forecast(longer).left == before.left
    (run.attempt_folders()[0] / "checkpoint-00000600.json").write_text("{}")
    found = forecast(longer)
    (note,) = [note for note in found.notes if "from the checkpoint" in note]
    assert "600 of 800" in note and "seed=0" in note
    whole = found.estimates[cell.signature].seconds
    assert 0.15 < found.left[cell.signature] / whole < 0.5 and whole == before.left[cell.signature]
    # Its own steps count for more, and another seed has another lineage.
    write_run(cell, "failed", 700, failure="timeout")
    assert not any("from the checkpoint" in note for note in forecast(longer).notes)
    assert not any(
        "from the checkpoint" in note for note in forecast(plan_of(set={"steps": 800}, axes={"seed": [1]})).notes
    )


def test_a_plan_says_how_much_decoded_images_take(
    plan_of: PlanOf, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gsq.data.decoded_sizes.SMALL_BYTES", 1)
    keys = {**images(folder, 4, 60), "evaluation.num_images": 55}
    # 4 bytes a pixel; the training images are copies of others.
    (note,) = image_notes(found := plan_of(set=keys, axes={"seed": [0]}))
    assert "decoded they take 0.00038 GB below" in note and "execution.image_cache_gb allows 8" in note
    assert found.data[0].to_dict()["decoded_bytes"] == 60 * 4 * 40 * 40 == found.cells[0].image_bytes
    (note,) = image_notes(plan_of(set={**keys, "execution.image_cache_gb": 1e-4}, axes={"seed": [0]}))
    assert "allows 0.0001, so processes decode them anew" in note
