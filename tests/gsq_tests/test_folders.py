"""Folders of images: which files are used, which are left out and why, and what becomes of the fingerprint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pictures import data, encoded, fill, picture
from PIL import Image

import gsq.data.folders
from gsq import UserError
from gsq.data.batches import ImageSource
from gsq.data.images import MIN_SIDE
from gsq.data.listing import shown
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest


def found(root: Path, **more: object) -> Manifest:
    return manifest(data("image_folder", root, **more))


def used(files: Manifest) -> set[str]:
    return {file.name for file in (*files.train, *files.validation)}


def left_out(files: Manifest) -> dict[str, str]:
    return {one.name: one.kind for one in files.left_out}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Nothing that gsq ever left out."""
    fill(tmp_path / "plain" / "train" / "a", range(6))
    fill(tmp_path / "plain" / "train" / "b", range(6, 10), ".jpg")
    fill(tmp_path / "plain" / "val", range(20, 24), ".webp")
    return tmp_path / "plain"


@pytest.mark.parametrize(
    ("folders", "fingerprint"), [(("train/a", "train/b", "val"), "f8e575f2163e"), (("", "deep/deeper"), "59baa309f762")]
)
def test_a_folder_of_which_nothing_was_lost_keeps_its_fingerprint(
    tmp_path: Path, folders: tuple[str, ...], fingerprint: str
) -> None:
    """The fingerprint as earlier versions computed it."""
    for i, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for k in range(8):
            # Content tells the format, not the name; these bytes are the same whatever wrote them.
            content = b"P6 16 16 255\n" + bytes([i, 10 * k, 200]) * 256
            (tmp_path / folder / f"{k}{('.png', '.jpg', '.JPEG', '.webp')[k % 4]}").write_bytes(content)
    files = found(tmp_path)
    assert files.fingerprint == fingerprint and not files.notes and not files.left_out


def test_linked_folders_and_files_are_images_like_others(tmp_path: Path) -> None:
    for seed, name in ((0, "a"), (10, "b"), (20, "c")):
        fill(tmp_path / "store" / name, range(seed, seed + 5))
    root = tmp_path / "links"
    (root / "train").mkdir(parents=True)
    (root / "train" / "a").symlink_to(tmp_path / "store" / "a")
    (root / "train" / "b").symlink_to("../../store/b")
    (root / "train" / "one.png").symlink_to(tmp_path / "store" / "c" / "020.png")
    (root / "val").symlink_to(tmp_path / "store" / "c")
    files = found(root)
    assert len(files.train) == 11 and len(files.validation) == 5 and not files.left_out
    assert {"train/a/000.png", "train/b/010.png", "train/one.png"} <= used(files)
    # The same images in real folders are the same data set.
    copied = tmp_path / "copied"
    for name in used(files):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((root / name).read_bytes())
    assert found(copied).fingerprint == files.fingerprint
    assert ImageSource(data("image_folder", root), files).train_batch(0, 0, range(4)).shape == (4, 3, 16, 16)


def test_links_in_circles_end_and_dead_links_are_named(plain: Path) -> None:
    (plain / "train" / "up").symlink_to("..")
    (plain / "train" / "above").symlink_to(plain.parent)
    (plain / "train" / "itself").symlink_to("itself")
    (plain / "train" / "gone").symlink_to("/no/such/folder")
    (plain / "val" / "gone.jpg").symlink_to("other.jpg")
    (plain / "labels.txt").symlink_to("nothing.txt")
    for one, other in (("x", "y"), ("y", "x")):
        fill(plain / "train" / one, range(30, 31))
        (plain / "train" / one / "there").symlink_to(f"../{other}")
    files = found(plain)
    names = ("train/up", "train/above", "train/itself", "train/gone", "val/gone.jpg")
    circles = ("train/x/there/there", "train/y/there/there")
    assert left_out(files) == dict.fromkeys((*names, *circles), "link")
    assert {"train/x/there/030.png", "train/y/there/030.png"} <= used(files)
    assert "/no/such/folder" in next(one.reason for one in files.left_out if one.name == "train/gone")


def test_many_folders_that_link_to_each_other_take_no_time(tmp_path: Path) -> None:
    for i in range(12):
        fill(tmp_path / f"f{i}", range(i, i + 1))
    for i in range(12):
        for k in range(12):
            (tmp_path / f"f{i}" / f"to{k}").symlink_to(f"../f{k}")
    files = found(tmp_path / "f0")
    assert "f0" not in used(files) and "link" in left_out(files).values()


@pytest.mark.parametrize("suffix", [".avif", ".bmp", ".gif", ".jp2", ".jfif", ".ppm", ".tif", ".TIFF"])
def test_formats_that_pillow_reads_are_read(plain: Path, suffix: str) -> None:
    before = found(plain)
    path = plain / "train" / f"more{suffix}"
    picture(40).save(path, "JPEG" if suffix == ".jfif" else None)
    files = found(plain)
    assert used(files) == used(before) | {f"train/more{suffix}"} and not files.left_out
    assert ImageSource(data("image_folder", plain), files).load(files.train[-1]).size == (40, 32)
    (note,) = files.notes
    assert "10 training and 4 validation" in note and "11 and 4" in note and before.fingerprint in note
    assert f"1 {suffix[1:].lower()}" in note


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("drawing.svg", b"<svg/>", "svg"),
        ("phone.HEIC", b"....ftypheic", "heic"),
        ("camera.nef", b"II*\0....", "nef"),
        ("noname", encoded(1, "JPEG"), "without a suffix of images"),
        ("a.jpg?w=100", encoded(1), "without a suffix of images"),
    ],
)
def test_pictures_that_are_not_read_are_counted(plain: Path, name: str, content: bytes, reason: str) -> None:
    before = found(plain)
    (plain / "train" / name).write_bytes(content)
    for other in ("labels.json", "README", "notes.txt", "classes"):
        (plain / "train" / other).write_text("no picture")
    files = found(plain)
    assert left_out(files) == {f"train/{name}": "format"} and files.left_out[0].reason == reason
    assert files.fingerprint == before.fingerprint and not files.notes
    assert f"1 {reason}" in files.summary().lines()[1]


@pytest.mark.parametrize(
    "name",
    [
        "._000.png",
        ".hidden.jpg",
        ".thumbnails/a.png",
        ".ipynb_checkpoints/a.jpg",
        "@eaDir/000.png/S.jpg",
        "__MACOSX/a.png",
    ],
)
def test_what_no_person_put_there_is_skipped(plain: Path, name: str) -> None:
    before = found(plain)
    for other in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (plain / other).write_bytes(b"x")
    path = plain / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\5\x16\7" + bytes(80))
    files = found(plain)
    # Not broken: there may be one for each image.
    assert left_out(files) == {f"train/{name}": "hidden"} and not files.broken
    assert files.fingerprint == before.fingerprint and not files.notes
    # One that can be read was an image once.
    path.write_bytes(encoded(50))
    files = found(plain)
    assert used(files) == used(before) and files.fingerprint == before.fingerprint
    assert "11 training and 4 validation" in files.notes[0] and "10 and 4" in files.notes[0]


def test_a_folder_that_is_hidden_itself_can_be_named(tmp_path: Path) -> None:
    fill(tmp_path / ".cache" / "images", range(12))
    assert len(used(found(tmp_path / ".cache" / "images"))) == 12


def test_images_too_small_to_learn_from_are_left_out_and_small_ones_are_counted(plain: Path) -> None:
    before = found(plain)
    picture(50, (1, 1)).save(plain / "train" / "pixel.png")
    picture(51, (200, MIN_SIDE - 1)).save(plain / "val" / "line.png")
    files = found(plain)
    assert left_out(files) == {"train/pixel.png": "small", "val/line.png": "small"}
    assert "1 x 1 pixels" in files.left_out[0].reason and files.fingerprint == before.fingerprint
    assert "11 training and 5 validation" in files.notes[-1] and "2 too small" in files.notes[-1]
    picture(52, (MIN_SIDE, 200)).save(plain / "train" / "least.png")
    files = found(plain)
    assert "train/least.png" in used(files) and "enlarged: 1 of 15 images" in files.notes[0]
    assert "enlarged: 15 of 15" in found(plain, image_size=64).notes[0]


def test_images_in_neither_split_are_counted(plain: Path) -> None:
    before = found(plain)
    fill(plain / "test", range(60, 63))
    picture(70).save(plain / "loose.png")
    files = found(plain)
    assert files.fingerprint == before.fingerprint and files.summary().counts() == {"split": 4}
    assert "3 in test/" in files.summary().lines()[1]


@pytest.mark.parametrize(
    "folders", [("train", "test"), ("train", "validation"), ("Train", "Val"), ("train",), ("val",)]
)
def test_a_split_that_is_not_one_is_said(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for i, folder in enumerate(folders):
        fill(tmp_path / folder, range(20 * i, 20 * i + 12))
    files = found(tmp_path)
    assert len(used(files)) == 12 * len(folders) and not files.left_out
    (note,) = files.notes
    assert all(f"{folder}/" in note for folder in folders) and "data.validation_share 0.3" in note
    with pytest.raises(UserError, match=r"train and val.*raise data\.validation_share"):
        found(tmp_path, validation_share=1e-9)


def test_folders_of_classes_are_no_split(tmp_path: Path) -> None:
    for i, name in enumerate(("cats", "dogs")):
        fill(tmp_path / name, range(20 * i, 20 * i + 10))
    assert found(tmp_path).notes == ()


def test_what_earlier_versions_remember_of_a_folder_is_used(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = found(plain)
    (cache,) = (Path(os.environ["GSQ_CACHE"]) / "manifests").iterdir()
    cache.write_text(json.dumps({name: look[:3] for name, look in json.loads(cache.read_text()).items()}))
    monkeypatch.setattr(gsq.data.folders, "measure", None)
    assert found(plain) == first


def test_names_of_any_bytes(plain: Path) -> None:
    (Path(os.fsdecode(os.fsencode(plain) + b"/train/caf\xe9.png"))).write_bytes(encoded(80))
    (plain / "train" / "two\nlines.png").write_bytes(b"")
    files = found(plain, max_broken=0.5)
    assert len(files.train) == 11 and found(plain, max_broken=0.5) == files
    assert r"two\nlines.png: empty" in files.summary().lines()[1]
    assert {shown(file.name) for file in files.train} >= {r"train/caf\xe9.png"}
    (plain / "train" / "two\nlines.png").unlink()
    victim = next(file for file in files.train if "caf" in file.name)
    victim.path.write_bytes(encoded(81))
    with pytest.raises(UserError, match=r"caf\\xe9\.png: .*sha256"):
        ImageSource(data("image_folder", plain), files).load(victim)
    victim.path.write_bytes(encoded(80))
    assert ImageSource(data("image_folder", plain)).train_batch(0, 0, range(30)).shape[0] == 30


def test_nothing_but_files_that_are_not_read_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "b.heic").write_text("x")
    with pytest.raises(UserError, match=r"no images .*: 2 .* \(1 svg, 1 heic\)"):
        found(tmp_path)


def test_images_count_in_memory_as_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        Image.new("RGB", (400, 300), (i, i, i)).save(tmp_path / f"{i}.png")
    files = found(tmp_path)
    one = 4 * 400 * 300
    assert files.fits and files.decoded_bytes() == 22 * one and files.decoded_bytes(workers=3) == 26 * one
    # Bytes decide what is kept, not the number of images; copies are kept once.
    fill(tmp_path / "more", range(60))
    fill(tmp_path / "again", range(60))
    files = found(tmp_path)
    small = files.total_bytes - 20 * one
    assert small == 60 * 4 * 40 * 32 and files.fits and files.decoded_bytes() == 22 * one + small
    monkeypatch.setattr("gsq.data.manifest.KEPT_BYTES", files.total_bytes - 1)
    assert not files.fits and files.decoded_bytes() == 2 * one
