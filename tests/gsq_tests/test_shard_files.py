"""Which shards there are: numbers that count them and numbers that do not, links, hidden files, splits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pictures import data, encoded, write_tar

from gsq import UserError
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest


def shards(folder: Path, *names: str) -> None:
    for k, name in enumerate(names):
        write_tar(folder / f"{name}.tar", {f"{i}.png": encoded(20 * k + i) for i in range(8)})


def found(folder: Path) -> Manifest:
    return manifest(data("webdataset", folder, validation_share=0.4))


@pytest.mark.parametrize(
    "names",
    [
        ("crawl-20230105", "crawl-20230212"),
        ("crawl-20230130", "crawl-20230131", "crawl-20230201"),
        ("05012023", "07012023"),
        ("a-202301", "a-202304"),
        ("2019", "2021", "2022"),
        ("2023-01-05", "2023-01-07"),
        ("2023_01", "2023_04"),
        ("2023-jan-05", "2023-jan-09"),
        ("2023-W05", "2023-W09"),
        ("x-20230105T083000", "x-20230105T123000"),
        ("x-2023-01-05_08-30", "x-2023-01-05_08-45"),
        ("1672531200", "1704067200"),
        ("part-1672531200123", "part-1704067200456"),
        ("20220105123000", "20230105124500"),
        ("id-7", "id-90210", "id-1000000007"),
        ("a-99999999999999999999", "a-10000000000000000000"),
    ],
)
def test_numbers_that_are_no_numbering_are_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    shards(tmp_path, *names)
    files = found(tmp_path)
    assert len(files.train) + len(files.validation) == 8 * len(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("x-000000", "x-000003"), r"2 of the 4 shards .* are missing \(number 1, 2\)"),
        (("x-0", "x-1", "x-9"), r"7 of the 10 shards .* are missing"),
        (("x-100", "x-101", "x-103"), r"1 of the 4 shards .* are missing \(number 102\)"),
        (("coco2017-000000", "coco2017-000002"), r"1 of the 3 shards .* are missing \(number 1\)"),
        (("x-00000-of-00003", "x-00002-of-00003"), r"1 of the 3 shards .* are missing \(number 1\)"),
        (
            ("x-00000-of-99999999999",),
            r"99999999998 of the 99999999999 shards .* are missing \(number 1, 2, 3, .*8, \.\.\.",
        ),
    ],
)
def test_gaps_in_a_numbering_are_refused_at_once(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    shards(tmp_path, *names)
    begun = time.monotonic()
    with pytest.raises(UserError, match=said):
        found(tmp_path)
    assert time.monotonic() - begun < 1


def test_linked_shards_are_read_and_hidden_ones_are_not(tmp_path: Path) -> None:
    shards(tmp_path / "store", "a", "b")
    root = tmp_path / "data"
    root.mkdir()
    (root / "linked").symlink_to("../store")
    (root / "linked-a.tar").symlink_to("../store/a.tar")
    (root / "gone.tar").symlink_to("nowhere.tar")
    (root / "._a.tar").write_bytes(b"\0\5\x16\7")
    (root / "c.tar.gz").write_bytes(b"x")
    files = found(root)
    assert len(files.train) + len(files.validation) == 24
    assert {one.name: one.kind for one in files.left_out} == {
        "gone.tar": "link",
        "._a.tar": "hidden",
        "c.tar.gz": "format",
    }


def test_shards_of_no_split_are_counted(tmp_path: Path) -> None:
    shards(tmp_path, "train-0", "val-0", "test-0", "test-1", "more")
    files = found(tmp_path)
    assert (len(files.train), len(files.validation)) == (8, 8)
    assert files.summary().counts() == {"split": 3}
    assert "2 shards of test" in files.summary().lines()[1]


def test_shards_of_one_split_alone_are_said(tmp_path: Path) -> None:
    shards(tmp_path, "train-0", "train-1", "test-0")
    files = found(tmp_path)
    assert len(files.train) + len(files.validation) == 16
    assert "marked train, and none validation" in files.notes[0] and "0.4" in files.notes[0]
