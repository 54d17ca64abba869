"""A look at a data set before training: what it counts, which images it calls alike, and what the sheet shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from image_sets import folder_config
from pictures import fill, picture, write_tar
from PIL import Image
from typer.testing import CliRunner

from gsq.cli.data import data_command
from gsq.data.batches import ImageSource
from gsq.data.preview import COLUMNS, GAP, LEAST_PIXELS, ROWS, contact_sheet, preview
from gsq.data.sources import folder_kind
from gsq.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve training and six validation images, of which three are alike: a copy, a larger one, and a worse JPEG."""
    root = tmp_path / "images"
    fill(root / "train", range(12))
    fill(root / "val", range(20, 23))
    shutil.copy(root / "train/000.png", root / "val/same.png")
    picture(1).resize((80, 64), Image.Resampling.BICUBIC).save(root / "val/larger.png")
    picture(2).save(root / "val/worse.jpg", quality=60)
    return root


def test_copies_across_the_split_are_found_and_others_are_not(images: Path) -> None:
    found = {Path(one.validation).name: one for one in preview(folder_config(images)).duplicates}
    assert {name: Path(one.train).name for name, one in found.items()} == {
        "same.png": "000.png",
        "larger.png": "001.png",
        "worse.jpg": "002.png",
    }
    assert [name for name, one in found.items() if one.identical] == ["same.png"]


def test_images_without_structure_are_alike_only_in_colour(tmp_path: Path) -> None:
    for split, levels in (("train", (0, 60, 120)), ("val", (30, 121))):
        (tmp_path / split).mkdir()
        for level in levels:
            Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / split / f"{level}.png")
    assert [one.validation for one in preview(folder_config(tmp_path)).duplicates] == ["val/121.png"]


def test_counts_sizes_formats_and_what_is_left_out(images: Path) -> None:
    (images / "train/camera.heic").write_bytes(b"x")
    (images / "train/bad.jpg").write_bytes(b"x")
    seen = preview(folder_config(images))
    document = seen.to_dict()
    assert (document["train"], document["validation"], document["compared"]) == (12, 6, {"train": 12, "validation": 6})
    assert document["formats"] == {"png": 17, "jpg": 1} and document["left_out"] == {"broken": 1, "format": 1}
    assert document["shorter_side"] == {"least": 32, "median": 32.0, "most": 64} and document["enlarged"] == 0
    text = "\n".join(seen.lines())
    assert all(word in text for word in ("12 training", "bad.jpg", "heic", "40 x 32", "80 x 64", "train/000.png"))


def test_a_turned_jpeg_has_the_size_that_is_seen(images: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for side in ("train", "val"):
        picture(50).save(images / side / "turned.jpg", exif=exif)
    assert (32, 40) in preview(folder_config(images)).sizes


def test_of_a_large_set_a_part_is_compared_and_said_to_be(images: Path) -> None:
    seen = preview(folder_config(images), most=9)
    assert seen.compared == (6, 3) and len(seen.sizes) == 9 and "--most" in "\n".join(seen.lines())


def test_the_sheet_shows_the_batches_that_a_run_sees(images: Path, tmp_path: Path) -> None:
    config = folder_config(images)
    sheet = np.asarray(Image.open(contact_sheet(config, tmp_path / "a/sheet.png", seed=3)))
    scale = LEAST_PIXELS // config.image_size
    source = ImageSource(config)
    for row, batch in ((0, source.train_batch(3, 0, range(2))), (ROWS[0], source.validation_batch(0, 2))):
        top = row * (LEAST_PIXELS + GAP) + (2 * GAP if row else 0)
        for column, one in enumerate(batch):
            left = column * (LEAST_PIXELS + GAP)
            tile = sheet[top : top + LEAST_PIXELS : scale, left : left + LEAST_PIXELS : scale]
            np.testing.assert_array_equal(tile, ((one + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    assert sheet.shape[1] == COLUMNS * (LEAST_PIXELS + GAP) - GAP


def test_the_command_takes_a_folder_or_a_sweep(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(data_command)
    run = CliRunner().invoke
    done = run(app, ["images", "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["train"] == 12 and Path(document["sheet"]).is_file()
    Path("s.yaml").write_text(
        "base: cpu-tiny\nset: {data.kind: image_folder, data.path: images}\n"
        "axes: {image_size: [16, 32], groups: [1, 2]}\n"
    )
    both = json.loads(run(app, ["s.yaml", "--json", "--sheet", "b/s.png"]).stdout)
    assert [Path(one["sheet"]).name for one in both] == ["s.png", "s-2.png"] and len(list(Path("b").iterdir())) == 2
    Path("empty").mkdir()
    Path("broken").mkdir()
    for i in range(4):
        Path(f"broken/{i}.png").write_bytes(b"x")
    for wrong in (["empty"], ["broken"], ["nowhere"], ["images", "--sheet", "c.gif"], ["images", "--preset", "tiny"]):
        refused = run(app, wrong)
        assert isinstance(refused.exception, UserError) and wrong[-1].split("/")[0] in str(refused.exception), wrong


def test_the_kind_of_a_folder(images: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/train-0.tar", {"a.png": b"x"})
    assert (folder_kind(images), folder_kind(tmp_path / "shards")) == ("image_folder", "webdataset")
