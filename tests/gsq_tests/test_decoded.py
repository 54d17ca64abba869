"""Decoded images on disk, which all processes of a machine share."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_sets import folder_config
from pictures import picture
from PIL import Image

from gsq.config.run import DataConfig, ExecutionConfig
from gsq.data import decoded, decoded_sizes
from gsq.data.batches import ImageSource
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest
from gsq.errors import UserError

ON = ExecutionConfig()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_sizes, "SMALL_BYTES", 1)


@pytest.fixture
def images(tmp_path: Path) -> DataConfig:
    """Sixteen pictures of several formats and modes, one of them turned by its EXIF data."""
    root = tmp_path / "images"
    root.mkdir()
    for i in range(16):
        one = picture(i).resize((90 + i, 70))
        one = one.convert(("RGB", "L", "RGBA", "P")[i % 4])
        one.save(root / f"{i:02d}{'.png' if i % 4 else '.jpg'}")
    turned = picture(99).resize((90, 60))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "turned.jpg", exif=exif)
    return folder_config(root, min_crop=0.7)


def pixels_files() -> list[str]:
    return sorted(path.name for path in decoded_sizes.images_folder().glob("*.pixels"))


def kept(config: DataConfig, execution: ExecutionConfig = ON) -> tuple[Manifest, list[str]]:
    said: list[str] = []
    return decoded.kept_on_disk(manifest(config), execution, said.append), said


@pytest.mark.parametrize("size", [16, 24, 64])
def test_every_crop_is_the_same_bit_for_bit(images: DataConfig, size: int) -> None:
    config = dataclasses.replace(images, image_size=size)
    plain = ImageSource(config)
    files, said = kept(config)
    source = ImageSource(config, files)
    count = plain.num_validation(100)
    assert not said and files.store is not None and count > 2
    assert torch.equal(source.train_batch(0, 0, range(40)), plain.train_batch(0, 0, range(40)))
    assert torch.equal(source.validation_batch(0, count), plain.validation_batch(0, count))
    # An evaluation of a part of the images takes its own from the same block.
    part = dataclasses.replace(files, validation=files.validation[1:3])
    plain = ImageSource(config, dataclasses.replace(plain.manifest, validation=plain.manifest.validation[1:3]))
    assert torch.equal(ImageSource(config, part).validation_batch(0, 2), plain.validation_batch(0, 2))
    # Only what has been made much smaller is kept resized, too.
    assert [("centre" in name) for name in pixels_files()] == ([True, False] if size < 40 else [False])


def test_images_are_decoded_once_for_all_processes(images: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = decoded.load_image

    def counting(file: decoded.ImageFile) -> Image.Image:
        loads.append(file.name)
        time.sleep(0.01)
        return load(file)

    monkeypatch.setattr(decoded, "load_image", counting)
    # Each has its own file descriptors and locks, as processes do.
    found: list[Manifest] = []
    threads = [threading.Thread(target=lambda: found.append(kept(images)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loads) == sorted(file.name for file in (*found[0].train, *found[0].validation)) and len(found) == 3
    source = ImageSource(images, found[0])
    first = source.validation_batch(0, 3)
    monkeypatch.setattr(decoded, "load_image", None)
    again = ImageSource(images, kept(images)[0])
    # The resized ones are not resized again either.
    monkeypatch.setattr(decoded.Originals, "__call__", None)
    assert torch.equal(again.validation_batch(0, 3), first)


def test_a_run_with_the_cache_has_the_same_numbers(images: DataConfig, tmp_path: Path) -> None:
    from tiny_run import curve, evaluations, tiny

    from gsq import train

    found = []
    for gb in (0.0, 8.0):
        config = tiny(
            execution__image_cache_gb=gb,
            data__kind="image_folder",
            data__path=images.path,
            data__validation_share=0.3,
            evaluation__num_images=4,
            train__steps=2,
        )
        run = train(config, tmp_path / f"runs-{gb:g}")
        rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in evaluations(run)]
        found.append((run.signature, curve(run), rows))
        assert bool(pixels_files()) == bool(gb)
    assert found[0] == found[1]


def test_a_process_that_is_killed_leaves_nothing_or_everything(images: DataConfig) -> None:
    code = (
        "import sys, time; from gsq.data import decoded, decoded_sizes\n"
        "from gsq.config.run import DataConfig, ExecutionConfig; from gsq.data.sources import manifest\n"
        "decoded_sizes.SMALL_BYTES = 1\n"
        "def tick(): print('one', flush=True); time.sleep(0.2)\n"
        "decoded.kept_on_disk(manifest(DataConfig('image_folder', sys.argv[1], 16, validation_share=0.3)),"
        " ExecutionConfig(), tick=tick)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, images.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "one\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = decoded_sizes.images_folder()
    assert not pixels_files() and len(list(folder.glob(".*.partial"))) == 1
    files, said = kept(images)
    assert not said and files.store is not None and not list(folder.glob(".*.partial"))
    # A request to stop leaves nothing either.
    next(folder.glob("*.pixels")).unlink()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoded.kept_on_disk(manifest(images), ON, print, stop)
    assert not pixels_files() and not list(folder.glob(".*.partial"))


def test_where_they_cannot_be_kept_each_process_decodes_and_says_why(
    images: DataConfig, tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(ON, image_cache_gb=1e-4)
    files, said = kept(images, small)
    assert files.store is None and files.load is None
    assert len(said) == 1 and "execution.image_cache_gb allows 0.0001" in said[0]
    assert kept(images, dataclasses.replace(ON, image_cache_gb=0.0)) == (manifest(images), [])
    disk = small_disk(100)
    for spare, why in ((decoded.SPARE_BYTES, "GB free"), (-(1 << 30), "No space left on device")):
        monkeypatch.setattr(decoded, "SPARE_BYTES", spare)
        files, said = kept(images, dataclasses.replace(ON, stage_data=str(disk)))
        assert files.load is None and len(said) == 1 and why in said[0] and not list(disk.glob(".*.partial"))
    (tmp_path / "file").write_text("")
    files, said = kept(images, dataclasses.replace(ON, stage_data=str(tmp_path / "file" / "below")))
    assert files.load is None and len(said) == 1 and str(tmp_path / "file") in said[0]
    assert ImageSource(images, files).train_batch(0, 0, range(2)).shape == (2, 3, 16, 16)


def test_without_locks_they_are_kept_all_the_same(images: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(decoded.fcntl, "flock", flock)
    files, said = kept(images)
    assert not said and files.store is not None and len(pixels_files()) == 1


def test_a_file_that_is_damaged_is_made_again(images: DataConfig) -> None:
    first, _ = kept(images)
    wanted = ImageSource(images, first).train_batch(0, 0, range(4))
    (path,) = decoded_sizes.images_folder().glob("*.pixels")
    for content in (b"", b"short", path.read_bytes()[:-20]):
        path.unlink()
        path.write_bytes(content)
        files, said = kept(images)
        assert not said and torch.equal(ImageSource(images, files).train_batch(0, 0, range(4)), wanted)


def test_room_is_made_by_removing_what_no_process_uses(images: DataConfig, tmp_path: Path) -> None:
    folder = decoded_sizes.images_folder()
    first, _ = kept(images)
    total = first.total_bytes
    other = tmp_path / "other"
    other.mkdir()
    for i in range(12):
        picture(100 + i).resize((120, 60)).save(other / f"{i}.png")
    config = folder_config(other)
    limit = dataclasses.replace(ON, image_cache_gb=1.5 * total / 1e9)
    files, said = kept(config, limit)
    assert files.load is None and "are in use" in said[0] and len(pixels_files()) == 1
    old = folder / "gsq-old-originals.pixels"
    old.write_bytes(bytes(total // 2))
    os.utime(old, (0, 0))
    del first, files
    # The first set is used by no process any more, once its maps are gone.
    files, said = kept(config, limit)
    assert not said and files.load is not None and not old.exists()


def test_a_changed_image_is_an_error_while_they_are_decoded(images: DataConfig) -> None:
    files = manifest(images)
    files.train[0].path.write_bytes(files.train[1].path.read_bytes())
    with pytest.raises(UserError, match="sha256"):
        decoded.kept_on_disk(files, ON, print)
    assert not pixels_files()


def test_bytes_bound_what_a_process_keeps(images: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = kept(images)
    assert isinstance(files.load, decoded.Originals)
    mapped = files.load.mapped
    for module in (decoded, decoded_sizes):
        monkeypatch.setattr(module, "MAPPED_BYTES", 3 * files.largest_bytes)
    for _ in range(5):
        for file in files.train:
            files.load(file)
            assert mapped.seen <= decoded.MAPPED_BYTES
    plain = manifest(images)
    assert decoded_sizes.memory_bytes(plain, ON) == min(plain.total_bytes, 3 * plain.largest_bytes)
    off = dataclasses.replace(ON, image_cache_gb=0.0, data_workers=2)
    assert decoded_sizes.memory_bytes(plain, off) == plain.total_bytes + 4 * plain.largest_bytes
