"""What images a data set has: manifests, their split, fingerprint and cache."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_sets import SMALL, contents, folder_config
from pictures import picture
from PIL import Image

import gsq.data.folders
import gsq.data.sources
from gsq import UserError
from gsq.config.run import DataConfig
from gsq.data.batches import ImageSource
from gsq.data.manifest import Manifest, manifests_folder
from gsq.data.sources import PHOTOS, manifest


def names(files: Manifest) -> tuple[set[str], set[str]]:
    return {f.name for f in files.train}, {f.name for f in files.validation}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is hashed from now on."""
    seen: list[str] = []
    original: Callable[[Path], str] = gsq.data.folders.sha256_of
    monkeypatch.setattr(gsq.data.folders, "sha256_of", lambda path: seen.append(path.name) or original(path))
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
        assert gsq.data.folders.sha256_of(file.path) == file.sha256


def test_fingerprint_does_not_depend_on_the_crops() -> None:
    assert manifest(SMALL).label == manifest(DataConfig(image_size=64, flip=False)).label
    assert manifest(SMALL).label.startswith("photos:")


def test_a_photo_of_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tuple((name, scene, part, "0" * 64) for name, scene, part, _ in PHOTOS)
    monkeypatch.setattr("gsq.data.sources.PHOTOS", changed)
    files = gsq.data.sources._photos.__wrapped__()
    with pytest.raises(UserError, match=r"sha256 [0-9a-f]{64}.*plan again"):
        ImageSource(SMALL, files).train_batch(0, 0, range(1))


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
    with pytest.raises(UserError, match=rf"{train} training and {validation} validation .*2 broken"):
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


def test_an_image_that_the_system_does_not_open_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = manifest(folder_config(folder)).fingerprint, Image.open
    shutil.rmtree(manifests_folder())

    def away(file: object, *arguments: Any) -> Any:
        if str(file).endswith(("01.png", "05.png", "09.png")):
            raise OSError(errno.EIO, "Input/output error")
        return opened(file, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", away)
        found = manifest(folder_config(folder, max_broken=0.5))
        assert found.summary().counts() == {"unreadable": 3} and found.fingerprint != before
        with pytest.raises(UserError, match=r"data\.path: 3 of the 24 .*cannot be opened .*data\.max_broken 0\.1"):
            manifest(folder_config(folder))
    assert manifest(folder_config(folder)).fingerprint == before
