"""Images: manifests and their fingerprints, batches as a function of (seed, step), fixed validation images."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageCms
from tiny_run import curve, status, tiny

import gsq.data.batches
import gsq.data.folders
import gsq.data.shards
import gsq.data.sources
import gsq.data.staging
from gsq import UserError
from gsq.config.run import DataConfig
from gsq.data.batches import Batches, ImageSource, to_tensor
from gsq.data.images import BrokenImageError, broken, decode
from gsq.data.manifest import Manifest
from gsq.data.shard_files import split_of
from gsq.data.sources import PHOTOS, manifest
from gsq.data.staging import stage
from gsq.records.read import read_metrics
from gsq.runs.execute import execute

SMALL = DataConfig(image_size=16)


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth random colour image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images in nested folders, of all formats, and a file that is no image."""
    root = tmp_path / "images"
    for i in range(24):
        place = root / ("deep/deeper" if i % 3 == 0 else "flat" if i % 3 == 1 else ".")
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i:02d}{('.jpg', '.png', '.webp', '.JPEG')[i % 4]}")
    (root / "notes.txt").write_text("not an image")
    return root


def folder_config(root: Path, **more: Any) -> DataConfig:
    return DataConfig(kind="image_folder", path=str(root), image_size=16, validation_share=0.3, **more)


def names(files: Manifest) -> tuple[set[str], set[str]]:
    return {f.name for f in files.train}, {f.name for f in files.validation}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is hashed from now on."""
    seen: list[str] = []
    original: Callable[[Path], str] = gsq.data.folders._hash_file
    monkeypatch.setattr(gsq.data.folders, "_hash_file", lambda path: seen.append(path.name) or original(path))
    return seen


# Photos.


def test_photos_keep_scenes_apart() -> None:
    files = manifest(SMALL)
    train, validation = names(files)
    scene = {name: scene for name, scene, _, _ in PHOTOS}
    assert not {scene[n] for n in train} & {scene[n] for n in validation}
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= train
    assert train | validation == set(scene) and len(train) + len(validation) == len(PHOTOS)
    assert len(validation) >= 2


def test_photos_are_the_pinned_files() -> None:
    for file in manifest(SMALL).train + manifest(SMALL).validation:
        assert gsq.data.folders._hash_file(file.path) == file.sha256


def test_fingerprint_does_not_depend_on_the_crops() -> None:
    assert manifest(SMALL).label == manifest(DataConfig(image_size=64, flip=False)).label
    assert manifest(SMALL).label.startswith("photos:")


def test_a_photo_of_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tuple((name, scene, part, "0" * 64) for name, scene, part, _ in PHOTOS)
    monkeypatch.setattr(gsq.data.sources, "PHOTOS", changed)
    files = gsq.data.sources._photos.__wrapped__()
    with pytest.raises(UserError, match=r"its content is not what the fingerprint was taken of"):
        ImageSource(SMALL, files).train_batch(0, 0, range(1))


# Batches.


def test_batches_depend_on_seed_and_step_alone() -> None:
    batch = ImageSource(SMALL).train_batch(3, 7, range(4))
    other = ImageSource(SMALL)
    other.train_batch(3, 0, range(4))
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(other.train_batch(3, 7, range(4)), batch)
    assert not torch.equal(other.train_batch(3, 8, range(4)), batch)
    assert not torch.equal(other.train_batch(4, 7, range(4)), batch)
    # A larger batch starts with the smaller one.
    assert torch.equal(other.train_batch(3, 7, range(6))[:4], batch)


def test_batches_have_the_promised_form() -> None:
    batch = torch.cat([ImageSource(SMALL).train_batch(0, step, range(8)) for step in range(4)])
    assert batch.shape == (32, 3, 16, 16) and batch.dtype == torch.float32 and batch.is_contiguous()
    assert batch.min() >= -1 and batch.max() <= 1
    assert batch.min() < -0.9 and batch.max() > 0.9
    assert len({tuple(image.flatten()[:20].tolist()) for image in batch}) == 32


def test_to_tensor_maps_black_and_white_to_the_ends() -> None:
    image = Image.new("RGB", (2, 1), (255, 0, 51))
    assert to_tensor([image]).tolist()[0] == [[[1.0, 1.0]], [[-1.0, -1.0]], [[pytest.approx(-0.6)] * 2]]


def test_flips_only_where_asked() -> None:
    plain = ImageSource(DataConfig(image_size=16, flip=False))
    flipping = ImageSource(SMALL)
    flipped = 0
    for step in range(12):
        a, b = plain.train_batch(0, step, range(1)), flipping.train_batch(0, step, range(1))
        assert torch.equal(a, b) or torch.equal(a.flip(3), b)
        flipped += not torch.equal(a, b)
    assert 0 < flipped < 12


def test_crops_follow_min_and_max_crop(folder: Path) -> None:
    # min = max = 2: every crop is the 32 x 32 square of a 40 x 32 image, shrunk.
    source = ImageSource(folder_config(folder, min_crop=2.0, max_crop=2.0, flip=False))
    full = ImageSource(folder_config(folder, min_crop=100.0, max_crop=100.0, flip=False))
    assert torch.allclose(source.train_batch(0, 0, range(4)), full.train_batch(0, 0, range(4)), atol=1e-6)
    small = ImageSource(folder_config(folder, min_crop=0.1, max_crop=0.1, flip=False))
    assert small.train_batch(0, 0, range(8)).std((2, 3)).mean() < full.train_batch(0, 0, range(8)).std((2, 3)).mean()


@pytest.mark.parametrize("kind", ["photos", "image_folder"])
def test_validation_images_are_fixed(kind: str, folder: Path) -> None:
    config = SMALL if kind == "photos" else folder_config(folder)
    source = ImageSource(config)
    count = source.num_validation(6)
    assert count == 6
    whole = source.validation_batch(0, 6)
    source.train_batch(5, 5, range(2))
    parts = torch.cat([source.validation_batch(0, 1), source.validation_batch(1, 4), source.validation_batch(5, 1)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, ImageSource(config).validation_batch(0, 6))
    assert whole.min() >= -1 and whole.max() <= 1
    assert len({image.sum().item() for image in whole}) == 6


def test_validation_images_of_a_folder_are_centre_squares(folder: Path) -> None:
    source = ImageSource(folder_config(folder))
    file = source.manifest.validation[0]
    image = Image.open(file.path).convert("RGB").crop((4, 0, 36, 32)).resize((16, 16), Image.Resampling.BICUBIC)
    # At the edge the kernel sees the pixels beside the square, which cropping first would hide.
    found, wanted = source.validation_batch(0, 1), to_tensor([image])
    assert torch.equal(found[..., 2:-2], wanted[..., 2:-2])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)
    assert source.num_validation(1000) == len(source.manifest.validation)


# Image folders.


def test_folder_is_read_recursively_in_all_formats(folder: Path) -> None:
    files = manifest(folder_config(folder))
    train, validation = names(files)
    assert len(train) + len(validation) == 24 and not train & validation and not files.broken
    assert {n.rsplit(".")[-1] for n in train | validation} == {"jpg", "png", "webp", "JPEG"}
    assert {n.rpartition("/")[0] for n in train | validation} == {"", "flat", "deep/deeper"}
    assert files.label == f"image_folder:{files.fingerprint}"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("damage", ["truncated", "end cut off", "no image", "empty"])
def test_broken_images_are_named_and_left_out(folder: Path, suffix: str, damage: str) -> None:
    whole = manifest(folder_config(folder))
    path = folder / "flat" / f"broken.{suffix}"
    picture(100).save(path)
    content = path.read_bytes()
    cut = {"truncated": len(content) // 2, "end cut off": len(content) - 40, "empty": 0}
    path.write_bytes(b"no image" if damage == "no image" else content[: cut[damage]])
    files = manifest(folder_config(folder))
    assert files.broken == (f"flat/broken.{suffix}",)
    assert names(files) == names(whole) and files.fingerprint == whole.fingerprint
    # Known from the cache, too.
    assert manifest(folder_config(folder)).broken == files.broken


def test_train_and_val_subfolders_are_the_split(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("other", 1)):
        (tmp_path / part / "class").mkdir(parents=True)
        for i in range(count):
            picture(i + 10 * count).save(tmp_path / part / "class" / f"{i}.png")
    train, validation = names(manifest(folder_config(tmp_path)))
    assert train == {"train/class/0.png", "train/class/1.png", "train/class/2.png"}
    assert validation == {"val/class/0.png", "val/class/1.png"}


def contents(files: Manifest) -> tuple[set[str], set[str]]:
    return {f.sha256 for f in files.train}, {f.sha256 for f in files.validation}


def test_a_new_name_leaves_the_split_and_a_copy_falls_on_the_same_side(folder: Path) -> None:
    before = manifest(folder_config(folder))
    for file in (before.validation[0], before.train[0]):
        file.path.rename(folder / f"renamed{file.path.suffix}{file.path.suffix}")
    for file in (before.validation[1], before.train[1]):
        (folder / f"copy-{file.path.name}").write_bytes(file.path.read_bytes())
    after = manifest(folder_config(folder))
    assert contents(after) == contents(before)
    assert len(after.train) == len(before.train) + 1 and len(after.validation) == len(before.validation) + 1
    # The fingerprint is over names too.
    assert after.fingerprint != before.fingerprint


def test_moving_the_folder_leaves_split_and_fingerprint(folder: Path, tmp_path: Path) -> None:
    before = manifest(folder_config(folder))
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "images")
    after = manifest(folder_config(tmp_path / "elsewhere" / "images"))
    assert names(after) == names(before) and after.label == before.label
    assert all(file.path.is_file() for file in after.train)


def test_content_and_share_decide_the_fingerprint(folder: Path) -> None:
    before = manifest(folder_config(folder))
    picture(77).save(before.train[0].path)
    assert manifest(folder_config(folder)).fingerprint != before.fingerprint
    half = manifest(DataConfig(kind="image_folder", path=str(folder), image_size=16, validation_share=0.7))
    assert len(half.validation) > len(before.validation) and half.fingerprint != before.fingerprint


def test_hashes_are_cached_until_a_file_changes(folder: Path, hashed: list[str]) -> None:
    first = manifest(folder_config(folder))
    assert len(hashed) == 24
    hashed.clear()
    assert manifest(folder_config(folder)) == first and hashed == []
    changed = first.train[0].path
    picture(55).save(changed)
    second = manifest(folder_config(folder))
    assert hashed == [changed.name] and second.fingerprint != first.fingerprint
    hashed.clear()
    # The same size, another time.
    stat = changed.stat()
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert manifest(folder_config(folder)) == second and hashed == [changed.name]
    hashed.clear()
    first.train[1].path.unlink()
    assert len(manifest(folder_config(folder)).train) == len(first.train) - 1 and hashed == []


@pytest.mark.parametrize("content", ["", "{torn", "[]"])
def test_a_damaged_cache_is_made_anew(folder: Path, hashed: list[str], content: str) -> None:
    first = manifest(folder_config(folder))
    (cache,) = (Path(os.environ["GSQ_CACHE"]) / "manifests").iterdir()
    cache.write_text(content)
    hashed.clear()
    assert manifest(folder_config(folder)) == first and len(hashed) == 24


def test_a_cache_that_cannot_be_written_costs_only_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = manifest(folder_config(folder))
    blocked = folder / "notes.txt"
    monkeypatch.setenv("GSQ_CACHE", str(blocked))
    assert manifest(folder_config(folder)) == first


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path: .*nowhere is not a folder"):
        manifest(folder_config(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no images \(\.jpg, \.jpeg, \.png, \.webp, "):
        manifest(folder_config(tmp_path))
    with pytest.raises(UserError, match="is not a folder"):
        manifest(folder_config(tmp_path / "notes.txt"))


@pytest.mark.parametrize(("train", "validation"), [(0, 3), (3, 0), (3, 1)])
def test_too_few_images_are_refused_before_training(tmp_path: Path, train: int, validation: int) -> None:
    """One validation image has no covariance: found here rather than after the training."""
    for part, count in (("train", train), ("val", validation)):
        (tmp_path / part).mkdir()
        for i in range(count):
            picture(i).save(tmp_path / part / f"{i}.png")
        (tmp_path / part / "broken.png").write_bytes(b"")
    if not train or not validation:
        # Without readable images on both sides the subfolders are no split.
        share = 1e-9 if not validation else 1 - 1e-9
        config = DataConfig(kind="image_folder", path=str(tmp_path), image_size=16, validation_share=share)
    else:
        config = folder_config(tmp_path)
    with pytest.raises(UserError, match=rf"{train} training and {validation} validation images .*2 broken"):
        manifest(config)


def test_braces_and_dollars_name_the_shells_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_TEST_PLACE", str(folder.parent))
    for path in ("$GSQ_TEST_PLACE/images", "${GSQ_TEST_PLACE}/images"):
        assert manifest(dataclasses.replace(folder_config(folder), path=path)) == manifest(folder_config(folder))
    with pytest.raises(UserError, match=r"\$NO_SUCH_PLACE is not set; export NO_SUCH_PLACE="):
        manifest(dataclasses.replace(folder_config(folder), path="${NO_SUCH_PLACE}/images"))
    with pytest.raises(UserError, match=r"\$\{NO_SUCH_PLACE:-/data\}.*only \$NAME and \$\{NAME\}"):
        manifest(dataclasses.replace(folder_config(folder), path="${NO_SUCH_PLACE:-/data}/images"))


def test_an_image_that_breaks_later_is_named(folder: Path) -> None:
    source = ImageSource(folder_config(folder))
    victim = source.manifest.validation[0].path
    victim.write_bytes(b"gone")
    with pytest.raises(UserError, match=victim.name):
        source.validation_batch(0, 1)


def test_grey_and_transparent_images_become_colour(tmp_path: Path) -> None:
    for i in range(3):
        for part in ("train", "val"):
            (tmp_path / part).mkdir(exist_ok=True)
            picture(i).convert(("L", "RGBA", "P")[i]).save(tmp_path / part / f"{i}.png")
    source = ImageSource(folder_config(tmp_path))
    assert source.validation_batch(0, 3).shape == (3, 3, 16, 16)
    assert source.train_batch(0, 0, range(8)).shape == (8, 3, 16, 16)


def test_more_broken_images_than_allowed_are_refused(folder: Path) -> None:
    for i in range(3):
        (folder / f"broken{i}.png").write_bytes(b"")
    assert len(manifest(folder_config(folder, max_broken=0.2)).broken) == 3
    with pytest.raises(UserError, match=r"3 of the 27 images of .* \(broken0\.png, broken1.*data\.max_broken 0\.1"):
        manifest(folder_config(folder, max_broken=0.1))
    with pytest.raises(UserError, match=r"data\.max_broken: 1\.5 must be between 0 and 1"):
        folder_config(folder, max_broken=1.5)


# Shards: the same images as a folder, in all the forms in which they are handed around.

IMAGES = 12


def encoded(i: int, form: str = "JPEG") -> bytes:
    out = io.BytesIO()
    picture(i).save(out, form)
    return out.getvalue()


def write_tar(path: Path, images: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def table_of(images: list[bytes | None], **more: list[Any]) -> pa.Table:
    """As Hugging Face datasets store images, with a label before them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)], kind)
    return pa.table({"label": list(range(len(images))), "image": column, **more})


def write_parquet(path: Path, images: list[bytes | None], rows: int = 3, **more: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(images, **more), path, row_group_size=rows, compression="snappy")


def write_arrow(path: Path, images: list[bytes | None], stream: bool = True, compression: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table_of(images)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=4)


SHARDS = ["tar", "parquet", "arrow stream", "arrow file"]


def write_shard(form: str, path: Path, images: range) -> None:
    data: list[bytes | None] = [encoded(i) for i in images]
    if form == "tar":
        # Each with its label, as WebDataset has it.
        members = {f"{i:03d}.{end}": encoded(i) if end == "jpg" else b"7" for i in images for end in ("cls", "jpg")}
        write_tar(path.with_suffix(".tar"), members)
    elif form == "parquet":
        write_parquet(path.with_suffix(".parquet"), data)
    else:
        write_arrow(path.with_suffix(".arrow"), data, form == "arrow stream")


def shard_config(root: Path, form: str, **more: Any) -> DataConfig:
    kind = "webdataset" if form == "tar" else "huggingface"
    return DataConfig(kind=kind, path=str(root), image_size=16, **{"validation_share": 0.4, **more})


@pytest.fixture(params=SHARDS)
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    """Three shards of four images, without a split in their names."""
    for i in range(3):
        write_shard(request.param, tmp_path / "shards" / f"part-{i:05d}-of-00003", range(4 * i, 4 * i + 4))
    return shard_config(tmp_path / "shards", request.param)


def test_shards_give_the_images_that_a_folder_gives(shards: DataConfig, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for i in range(IMAGES):
        (plain / f"{i:03d}.jpg").write_bytes(encoded(i))
    one = ImageSource(dataclasses.replace(shards, kind="image_folder", path=str(plain)))
    other = ImageSource(shards)
    assert contents(other.manifest) == contents(one.manifest)
    assert [f.sha256 for f in other.manifest.train] == [f.sha256 for f in one.manifest.train]
    assert torch.equal(other.train_batch(1, 5, range(8)), one.train_batch(1, 5, range(8)))
    count = one.num_validation(100)
    assert torch.equal(other.validation_batch(0, count), one.validation_batch(0, count))
    assert other.manifest.label.startswith(f"{shards.kind}:")


def test_shards_are_read_at_any_place_by_several_workers_in_the_same_order(shards: DataConfig) -> None:
    source = ImageSource(shards)
    source.load = gsq.data.batches.load_image
    plain = Batches(source, 0, range(6), 0)
    for workers in (1, 2, 5):
        ahead = Batches(source, 0, range(6), workers)
        # From any step on, as after a restart.
        for step in (7, 8, 9, 2):
            assert torch.equal(ahead(step), plain(step))


def test_moving_shards_leaves_the_fingerprint_and_reading_them_is_remembered(
    shards: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = manifest(shards)
    seen: list[str] = []
    scanner = gsq.data.shards._scanner
    monkeypatch.setattr(gsq.data.shards, "_scanner", lambda shard: seen.append(shard.name) or scanner(shard))
    assert manifest(shards) == first and seen == []
    victim = sorted(Path(shards.path).iterdir())[1]
    os.utime(victim, ns=(1, 1))
    assert manifest(shards) == first and seen == [victim.name]
    moved = tmp_path / "moved"
    Path(shards.path).rename(moved)
    again = manifest(dataclasses.replace(shards, path=str(moved)))
    assert again.fingerprint == first.fingerprint and len(seen) == 4
    assert all(moved in file.path.parents for file in again.train)


@pytest.mark.parametrize("form", ["tar", "parquet", "arrow stream"])
@pytest.mark.parametrize(
    ("train", "validation", "other"),
    [
        ("train/{}", "val/{}", "test/{}"),
        ("data/train-0000{}-of-00002", "data/validation-0000{}-of-00002", "data/test-0000{}-of-00002"),
        ("photos-train-00000{}", "photos-val-00000{}", "README-00000{}"),
    ],
)
def test_shards_marked_train_and_validation_are_the_split(
    tmp_path: Path, form: str, train: str, validation: str, other: str
) -> None:
    for first, pattern in ((0, train), (10, validation), (20, other)):
        for i in range(2):
            write_shard(form, tmp_path / pattern.format(i), range(first + 2 * i, first + 2 * i + 2))
    files = manifest(shard_config(tmp_path, form))
    wanted = [{hashlib.sha256(encoded(i)).hexdigest() for i in range(n, n + 4)} for n in (0, 10)]
    assert list(contents(files)) == wanted


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00010-a1b2.parquet", "train"),
        ("imagenet/1.0/imagenet-validation-00000-of-00002.arrow", "validation"),
        ("val/shard.train.tar", "train"),
        ("test/0.tar", "test"),
        ("train_val_merged/0.tar", ""),
        ("trainer/0.tar", ""),
    ],
)
def test_the_split_that_a_name_tells(name: str, split: str) -> None:
    assert split_of(name) == split


def test_test_shards_beside_training_ones_are_not_trained_on(tmp_path: Path) -> None:
    write_shard("parquet", tmp_path / "train-00000-of-00001", range(8))
    write_shard("parquet", tmp_path / "test-00000-of-00001", range(20, 24))
    files = manifest(shard_config(tmp_path, "parquet"))
    assert len(files.train) + len(files.validation) == 8


def test_broken_images_in_shards_are_named_and_left_out(tmp_path: Path) -> None:
    data: list[bytes | None] = [encoded(i) for i in range(30)]
    half = encoded(50)[:200]
    write_parquet(tmp_path / "p" / "a.parquet", [*data, half, None], rows=7)
    write_arrow(tmp_path / "a" / "a.arrow", [*data, half, None])
    write_tar(tmp_path / "t" / "a.tar", {f"{i}.jpg": d or b"" for i, d in enumerate([*data, half, None])})
    for form, inner in (("parquet", ""), ("arrow", ""), ("tar", ".jpg")):
        config = shard_config(tmp_path / form[0], form, max_broken=0.1)
        files = manifest(config)
        assert files.broken == (f"a.{form}/30{inner}", f"a.{form}/31{inner}")
        assert manifest(config) == files and len(files.train) + len(files.validation) == 30
        with pytest.raises(UserError, match=rf"2 of the 32 images .*\(a\.{form}/30.*max_broken 0\.05"):
            manifest(dataclasses.replace(config, max_broken=0.05))


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    data: list[bytes | None] = [encoded(i) for i in range(8)]
    other = [encoded(i + 50) for i in range(8)]
    config = shard_config(tmp_path, "parquet")
    # The usual name, with another binary column beside it; the column that is asked for; datasets' own metadata.
    write_parquet(tmp_path / "a.parquet", data, mask=other)
    usual = contents(manifest(config))
    asked = contents(manifest(dataclasses.replace(config, image_column="mask")))
    assert usual[0] | usual[1] == {hashlib.sha256(d).hexdigest() for d in data if d}
    assert asked[0] | asked[1] == {hashlib.sha256(d).hexdigest() for d in other}
    table = pq.read_table(tmp_path / "a.parquet").rename_columns(["label", "one", "two"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"data\.image_column: name one of one, two"):
        manifest(config)
    features = {"info": {"features": {"two": {"_type": "Image"}, "one": {"_type": "Value"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    assert contents(manifest(config)) == asked
    with pytest.raises(UserError, match=r"data\.image_column: 'label' is no column of images .* label \(int64\), one"):
        manifest(dataclasses.replace(config, image_column="label"))


def test_shards_that_cannot_be_used_are_one_clear_error(tmp_path: Path) -> None:
    def refused(kind: str, path: Path, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            manifest(DataConfig(kind=kind, path=str(path), image_size=16))
        assert "\n" not in str(caught.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    refused("webdataset", empty, r"empty holds no shards \(\.tar\), in no subfolder either$")
    (empty / "a.tar.gz").touch()
    refused("webdataset", empty, r"a\.tar\.gz is compressed, and only a plain tar")
    refused("huggingface", empty, r"holds no shards \(\.parquet, \.arrow\)")
    refused("huggingface", tmp_path / "nowhere", "is neither a folder of .* shards nor one of them")
    refused("webdataset", empty / "a.tar.gz", r"is no \.tar file, which data\.kind webdataset needs")
    both = tmp_path / "both"
    write_shard("parquet", both / "a", range(4))
    write_shard("arrow file", both / "b", range(4))
    refused("huggingface", both, r"holds 1 \.parquet and 1 \.arrow files; name the folder")
    # Missing shards, by a total or by a gap.
    gaps = tmp_path / "gaps"
    for i in (0, 3):
        write_shard("parquet", gaps / f"train-{i:05d}-of-00005", range(4))
        write_shard("tar", gaps / f"x-{i:06d}", range(4))
    refused("huggingface", gaps, r"shards train-\* 3 of 5 are missing \(number 1, 2, 4\)")
    refused("webdataset", gaps, r"shards x-\* 2 of 4 are missing \(number 1, 2\)")
    # Contents.
    odd = tmp_path / "odd"
    odd.mkdir()
    pq.write_table(pa.table({"label": [1], "text": ["x"]}), odd / "a.parquet")
    refused("huggingface", odd, r"a\.parquet: no column of images .* label \(int64\), text \(string\)")
    write_parquet(odd / "a.parquet", [None, None])
    refused("huggingface", odd, r"column image\.bytes holds no image, perhaps only paths of images")
    # As datasets caches a folder of images.
    write_arrow(tmp_path / "paths" / "a.arrow", [None, None])
    refused("huggingface", tmp_path / "paths", r"column image holds no image, perhaps only paths of images")
    pq.write_table(table_of([b"x"]).slice(0, 0), odd / "a.parquet")
    refused("huggingface", odd, "holds no rows")
    # Among others it is passed over.
    pq.write_table(table_of([b"x"]).slice(0, 0), odd / "train-00001-of-00002.parquet")
    write_parquet(odd / "train-00000-of-00002.parquet", [encoded(i) for i in range(8)])
    write_parquet(odd / "validation-00000-of-00001.parquet", [encoded(i) for i in range(8, 12)])
    files = manifest(DataConfig(kind="huggingface", path=str(odd), image_size=16))
    assert (len(files.train), len(files.validation)) == (8, 4)
    assert files.summary().counts() == {"split": 1, "empty": 1}
    for path in odd.glob("*-of-*"):
        path.unlink()
    write_parquet(odd / "a.parquet", [encoded(i) for i in range(8)])
    (odd / "a.parquet").write_bytes((odd / "a.parquet").read_bytes()[:-100])
    refused("huggingface", odd, r"a\.parquet: is no parquet file, or was cut short \(.*get it again")
    (odd / "a.parquet").unlink()
    write_arrow(odd / "a.arrow", [encoded(i) for i in range(8)])
    (odd / "a.arrow").write_bytes((odd / "a.arrow").read_bytes()[:-3000])
    refused("huggingface", odd, r"a\.arrow: is no arrow file, or was cut short")
    write_arrow(odd / "a.arrow", [bytes(5000)] * 8, compression="zstd")
    refused("huggingface", odd, r"a\.arrow: is compressed inside")
    write_tar(odd / "a.tar", {"0.txt": b"x"})
    refused("webdataset", odd, r"a\.tar: holds no images \(\.jpg")
    (odd / "a.tar").write_bytes(b"")
    refused("webdataset", odd, r"a\.tar: is empty")
    (odd / "a.tar").write_bytes(b"nothing like a tar" * 100)
    refused("webdataset", odd, r"a\.tar: is no tar file, or was cut short")
    write_tar(odd / "a.tar", {f"{i}.jpg": encoded(i) for i in range(4)})
    whole = (odd / "a.tar").read_bytes()
    with tarfile.open(odd / "a.tar") as tar:
        last = tar.getmembers()[-1]
    # In an image, at the start of a member, and between two members.
    for length in (last.offset_data + 10, last.offset + 100, last.offset):
        (odd / "a.tar").write_bytes(whole[:length])
        refused("webdataset", odd, r"a\.tar: is no tar file, or was cut short")


def test_a_shard_that_changes_later_is_found_out(shards: DataConfig) -> None:
    source = ImageSource(shards)
    for file in Path(shards.path).iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 3] ^= 255
        file.write_bytes(content)
    gsq.data.shards._opened.cache_clear()
    gsq.data.shards._row_groups.clear()
    with pytest.raises(UserError, match=r"part-0000\d-of-00003"):
        source.train_batch(0, 0, range(80))


def test_row_groups_are_kept_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", [encoded(i) for i in range(IMAGES)], rows=2)
    path = manifest(shard_config(tmp_path, "parquet")).train[0].path
    groups = gsq.data.shards._row_groups
    groups.clear()
    size = gsq.data.shards._row_group(path, 0, "image.bytes").nbytes
    monkeypatch.setattr(groups, "limit", 3 * size)
    for group in (0, 1, 2, 3, 4, 5, 1):
        gsq.data.shards._row_group(path, group, "image.bytes")
    assert 1 <= len(groups.kept) <= 4 and list(groups.kept)[-1] == (path, 1, "image.bytes")
    assert groups.bytes == sum(kept.nbytes for kept in groups.kept.values())


# Image modes.

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode(data)
    assert image.mode == "RGB" and not broken(data)
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return tuple(int(value) for value in found)


def test_modes_become_rgb_as_they_are_displayed() -> None:
    assert pixel(saved(Image.new("L", (2, 2), 100))) == (100, 100, 100)
    assert pixel(saved(Image.new("1", (2, 2), 1))) == WHITE
    assert pixel(saved(Image.new("RGB", (2, 2), RED).convert("P"))) == RED
    # What is transparent lies on white, whatever colour it hides.
    assert pixel(saved(Image.new("RGBA", (2, 2), (*RED, 0)))) == WHITE
    assert pixel(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 51)))) == (204, 204, 204)
    assert pixel(saved(Image.new("LA", (2, 2), (10, 255)))) == (10, 10, 10)
    assert pixel(saved(Image.new("RGBA", (2, 2), (*RED, 0)), "WEBP", lossless=True)) == WHITE
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert pixel(saved(palette, transparency=1)) == RED and pixel(saved(palette, transparency=1), (1, 0)) == WHITE
    assert pixel(saved(Image.new("RGB", (2, 2), RED), transparency=RED)) == WHITE
    # CMYK: cyan ink takes red away.
    cyan = pixel(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))
    assert cyan == pytest.approx((0, 255, 255), abs=3)
    assert pixel(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF")) == WHITE


@pytest.mark.parametrize(("deep", "wanted"), [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_not_clipped(deep: int, wanted: int) -> None:
    image = Image.fromarray(np.full((2, 3), deep, np.uint16))
    assert image.mode == "I;16"
    assert pixel(saved(image)) == (wanted,) * 3 and pixel(saved(image, "TIFF")) == (wanted,) * 3


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 7)), (6, (7, 0)), (8, (0, 3))])
def test_images_stand_as_their_exif_says(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (4, 8), "black")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, "PNG", exif=exif)
    assert decode(data).size == ((8, 4) if orientation in (6, 8) else (4, 8))
    assert pixel(data, corner) == RED


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_known_range_are_broken_images(mode: str) -> None:
    data = saved(Image.new(mode, (2, 2), 1), "TIFF")
    assert f"mode {mode}" in broken(data)
    with pytest.raises(BrokenImageError, match=f"pixels of mode {mode}, whose range is not known"):
        decode(data)


def test_colour_profiles_are_not_applied_and_animations_stand_still() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert pixel(saved(Image.new("RGB", (2, 2), RED), icc_profile=profile)) == RED
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, WHITE)]
    assert pixel(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)) == RED


def test_photos_are_decoded_as_they_ever_were() -> None:
    for file in manifest(SMALL).train + manifest(SMALL).validation:
        with Image.open(file.path) as image:
            assert np.array_equal(decode(file.path.read_bytes()), image.convert("RGB"))


# Staging.


@pytest.fixture
def staged(shards: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DataConfig, Path]:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    return shards, tmp_path / "node" / "gsq"


def test_staged_images_are_the_same_and_come_from_the_node(staged: tuple[DataConfig, Path]) -> None:
    config, folder = staged
    files = manifest(config)
    before = ImageSource(config, files)
    batch, first = before.train_batch(0, 3, range(8)), before.validation_batch(0, 2)
    said: list[str] = []
    local = stage(files, "$NODE_DISK/gsq", said.append)
    assert len(said) == 1 and said[0].startswith(f"staging {IMAGES} images")
    assert local.fingerprint == files.fingerprint and local.label == files.label
    assert [f.name for f in local.train] == [f.name for f in files.train]
    shutil.rmtree(config.path)
    gsq.data.batches._decoded.clear()
    source = ImageSource(config, local)
    assert torch.equal(source.train_batch(0, 3, range(8)), batch)
    assert torch.equal(source.validation_batch(0, 2), first)
    assert sorted(p.suffix for p in folder.iterdir()) == [".images", ".lock"]
    # The next job on this node copies nothing, but what does not fit is copied again.
    said.clear()
    assert stage(files, "$NODE_DISK/gsq", said.append) == local and not said


def test_an_image_folder_is_staged_as_one_file(folder: Path, tmp_path: Path) -> None:
    config = folder_config(folder)
    files = manifest(config)
    batch = ImageSource(config, files).train_batch(0, 0, range(8))
    local = stage(files, str(tmp_path / "node"))
    assert {f.path for f in local.train + local.validation} == {tmp_path / "node" / f"gsq-{files.fingerprint}.images"}
    gsq.data.batches._decoded.clear()
    assert torch.equal(ImageSource(config, local).train_batch(0, 0, range(8)), batch)


def test_damaged_copies_are_made_again_or_found_out(staged: tuple[DataConfig, Path]) -> None:
    config, folder = staged
    files = manifest(config)
    local = stage(files, str(folder))
    copy = local.train[0].path
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1])
    stage(files, str(folder))
    assert copy.read_bytes() == whole
    copy.write_bytes(bytes(len(whole)))
    with pytest.raises(UserError, match=r"gsq-.*\.images: .* its content is not what the fingerprint was taken of"):
        ImageSource(config, local).load(local.train[0])
    copy.unlink()
    for shard in Path(config.path).iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    gsq.data.shards._opened.cache_clear()
    gsq.data.shards._row_groups.clear()
    gsq.data.shards._footer.cache_clear()
    with pytest.raises(UserError, match=r"part-00000-of-00003\..*(its content is not what|cannot be read)"):
        stage(files, str(folder))
    assert [p.suffix for p in folder.iterdir()] == [".lock"]


def test_processes_of_a_node_copy_once(staged: tuple[DataConfig, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = staged
    files = manifest(config)
    write = gsq.data.staging._write
    written: list[Path] = []
    started = threading.Barrier(4)

    def counted(layout: Any, target: Path, tick: Any) -> None:
        written.append(target)
        write(layout, target, tick)

    monkeypatch.setattr(gsq.data.staging, "_write", counted)
    found: list[Manifest] = []

    def job() -> None:
        started.wait()
        found.append(stage(files, str(folder), lambda message: None))

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert len(written) == 1 and len(found) == 4 and all(one == found[0] for one in found)


def test_a_stop_while_staging_leaves_nothing_half_written(staged: tuple[DataConfig, Path]) -> None:
    config, folder = staged

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(manifest(config), str(folder), lambda message: None, stop)
    assert [p.suffix for p in folder.iterdir()] == [".lock"]


def test_where_staging_is_impossible_the_images_are_read_from_where_they_are(
    staged: tuple[DataConfig, Path], monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[int], Path]
) -> None:
    config, folder = staged
    files = manifest(config)
    said: list[str] = []

    def refused(place: str, reason: str) -> None:
        assert stage(files, place, said.append) is files
        assert reason in said[-1] and said[-1].startswith("data is not staged: ")

    refused("$NO_SUCH_VARIABLE/x", "$NO_SUCH_VARIABLE is not set here")
    refused("${NO_SUCH_VARIABLE}", "is not set here")
    disk = small_disk(16)
    refused(str(disk), "GB free")
    # Another job fills the disk meanwhile.
    monkeypatch.setattr(gsq.data.staging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40))
    monkeypatch.setattr(gsq.data.staging, "SPARE_BYTES", 0)
    (disk / "other").write_bytes(bytes(8 << 10))
    refused(str(disk), "No space left on device")
    assert sorted(p.suffix for p in disk.iterdir()) == ["", ".lock"]
    folder.parent.mkdir()
    folder.write_text("a file")
    refused(str(folder), "data is not staged")
    assert stage(files, "") is files
    photos = manifest(SMALL)
    assert stage(photos, str(disk)) is photos


# The whole way.


def test_a_run_on_shards_is_the_run_on_staged_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, first in (("train", 0), ("val", 50)):
        write_shard("parquet", tmp_path / "data" / f"{split}-00000-of-00001", range(first, first + 6))
    config = tiny(data__kind="huggingface", data__path=str(tmp_path / "data"), steps=2, evaluation__num_images=4)
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    there = dataclasses.replace(config, execution=dataclasses.replace(config.execution, stage_data="$NODE_DISK"))
    one, other = (execute(c, tmp_path / runs) for c, runs in ((config, "a"), (there, "b")))
    assert one.signature == other.signature and curve(one) == curve(other)
    assert [p.suffix for p in (tmp_path / "node").iterdir()].count(".images") == 1
    assert all(line["loader_wait_seconds"] > 0 for line in read_metrics(one))
    assert status(other)["state"] == "done"
