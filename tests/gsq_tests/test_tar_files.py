"""Images in tar files: links among the members, hidden members, formats."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from pictures import data, encoded, write_tar

from gsq import UserError
from gsq.data.batches import load_image
from gsq.data.images import decode
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest

HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE
IMAGES = {f"a/{i}.png": encoded(i) for i in range(8)}


def found(path: Path) -> Manifest:
    return manifest(data("webdataset", path, validation_share=0.4))


def used(files: Manifest) -> dict[str, str]:
    return {file.name.removeprefix("x.tar/"): file.sha256 for file in (*files.train, *files.validation)}


def left_out(files: Manifest) -> dict[str, str]:
    return {one.name.removeprefix("x.tar/"): one.kind for one in files.left_out}


@pytest.mark.parametrize(
    ("links", "same_as"),
    [
        ({"b/hard.png": (HARD, "a/0.png")}, {"b/hard.png": "a/0.png"}),
        ({"b/soft.png": (SYMBOLIC, "../a/1.png")}, {"b/soft.png": "a/1.png"}),
        ({"a/beside.png": (SYMBOLIC, "1.png")}, {"a/beside.png": "a/1.png"}),
        ({"a/b.png": (SYMBOLIC, "c.png"), "a/c.png": (HARD, "a/2.png")}, {"a/b.png": "a/2.png", "a/c.png": "a/2.png"}),
        ({"b.png": (SYMBOLIC, "blobs/5f2a")}, {"b.png": "blobs/5f2a"}),
        ({"train": (SYMBOLIC, "a")}, {f"train/{i}.png": f"a/{i}.png" for i in range(8)}),
        (
            {"t/b": (SYMBOLIC, "../z"), "z": (SYMBOLIC, "./a")},
            {f"{folder}/{i}.png": f"a/{i}.png" for folder in ("t/b", "z") for i in range(8)},
        ),
    ],
)
def test_links_to_members_are_images(
    tmp_path: Path, links: dict[str, tuple[bytes, str]], same_as: dict[str, str]
) -> None:
    path = tmp_path / "x.tar"
    members = {**IMAGES, "blobs/5f2a": encoded(90)}
    write_tar(path, members)
    plain = found(path)
    write_tar(path, members, links)
    files = found(path)
    assert used(files).keys() - used(plain).keys() == same_as.keys() and not files.left_out
    by_name = {file.name.removeprefix("x.tar/"): file for file in (*files.train, *files.validation)}
    for link, target in same_as.items():
        assert load_image(by_name[link]).tobytes() == decode(members[target]).tobytes()
    # The note names both counts, since the data set is another one.
    assert plain.fingerprint in files.notes[-1] and "behind links" in files.notes[-1]


def test_links_that_lead_nowhere_or_in_circles_are_counted(tmp_path: Path) -> None:
    links = {
        "gone.png": (SYMBOLIC, "/data/elsewhere.png"),
        "class": (SYMBOLIC, "../outside"),
        "one.png": (SYMBOLIC, "two.png"),
        "two.png": (SYMBOLIC, "one.png"),
        "a/up": (SYMBOLIC, "."),
        "a/top": (SYMBOLIC, ".."),
        "label.txt": (SYMBOLIC, "nothing.txt"),
    }
    write_tar(tmp_path / "x.tar", IMAGES, links)
    files = found(tmp_path / "x.tar")
    assert left_out(files) == dict.fromkeys(("gone.png", "class", "one.png", "two.png", "a/up", "a/top"), "link")
    assert used(files).keys() == IMAGES.keys() and not files.notes


def test_hidden_members_and_other_formats(tmp_path: Path) -> None:
    usual = {f"./{name}": content for name, content in IMAGES.items()}
    write_tar(tmp_path / "x.tar", usual)
    plain = found(tmp_path)
    extra = {
        "./a/._0.png": b"\0\5\x16\7",
        "./__MACOSX/a.png": b"x",
        "./.DS_Store": b"x",
        "./b.svg": b"<svg/>",
        "./c.heic": b"x",
        "./0.cls": b"7",
    }
    write_tar(tmp_path / "x.tar", {**usual, **extra})
    files = found(tmp_path)
    kinds = {"./a/._0.png": "hidden", "./__MACOSX/a.png": "hidden", "./b.svg": "format", "./c.heic": "format"}
    assert left_out(files) == kinds and files.fingerprint == plain.fingerprint and not files.notes
    assert found(tmp_path) == files
    write_tar(tmp_path / "x.tar", {**usual, "./d.gif": encoded(60, "GIF"), "./e.avif": encoded(61, "AVIF")})
    assert used(found(tmp_path)).keys() - used(plain).keys() == {"./d.gif", "./e.avif"}


def test_shards_without_images_are_passed_over(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", IMAGES)
    write_tar(tmp_path / "labels.tar", {"0.txt": b"7"})
    write_tar(tmp_path / "nothing.tar", {})
    files = found(tmp_path)
    assert len(files.train) + len(files.validation) == 8
    assert {one.name: one.kind for one in files.left_out} == {"labels.tar": "empty", "nothing.tar": "empty"}
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"labels\.tar: holds no images"):
        found(tmp_path)
