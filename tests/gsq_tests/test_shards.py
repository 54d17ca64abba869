"""Shards give the images that a folder of the same files gives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_sets import IMAGES, contents, encoded, shard_config, table_of, write_arrow, write_parquet, write_shard
from pictures import write_tar

import gsq.data.batches
import gsq.data.shards
from gsq import UserError
from gsq.config.run import DataConfig
from gsq.data.batches import Batches, ImageSource
from gsq.data.shard_files import split_of
from gsq.data.sources import manifest


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
    with pytest.raises(UserError, match=r"data\.image_column: .* one, two"):
        manifest(config)
    features = {"info": {"features": {"two": {"_type": "Image"}, "one": {"_type": "Value"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    assert contents(manifest(config)) == asked
    with pytest.raises(UserError, match=r"data\.image_column: 'label' .* label \(int64\), one"):
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
    refused("webdataset", empty, r"a\.tar\.gz is compressed, .*plain tar")
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
    refused("huggingface", gaps, r"3 of the 5 shards train-\* are missing \(number 1, 2, 4\)")
    refused("webdataset", gaps, r"2 of the 4 shards x-\* are missing \(number 1, 2\)")
    # Contents.
    odd = tmp_path / "odd"
    odd.mkdir()
    pq.write_table(pa.table({"label": [1], "text": ["x"]}), odd / "a.parquet")
    refused("huggingface", odd, r"a\.parquet: no column of images .* label \(int64\), text \(string\)")
    write_parquet(odd / "a.parquet", [None, None])
    refused("huggingface", odd, r"column image\.bytes holds no image, .*paths")
    # The library datasets caches a folder of images so.
    write_arrow(tmp_path / "paths" / "a.arrow", [None, None])
    refused("huggingface", tmp_path / "paths", r"column image holds no image, .*paths")
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
    refused("huggingface", odd, r"a\.parquet: is not a parquet file, or was cut short \(.*get it again")
    (odd / "a.parquet").unlink()
    write_arrow(odd / "a.arrow", [encoded(i) for i in range(8)])
    (odd / "a.arrow").write_bytes((odd / "a.arrow").read_bytes()[:-3000])
    refused("huggingface", odd, r"a\.arrow: is not an? arrow file, or was cut short")
    write_arrow(odd / "a.arrow", [bytes(5000)] * 8, compression="zstd")
    refused("huggingface", odd, r"a\.arrow: is compressed inside")
    write_tar(odd / "a.tar", {"0.txt": b"x"})
    refused("webdataset", odd, r"a\.tar: holds no images \(\.jpg")
    (odd / "a.tar").write_bytes(b"")
    refused("webdataset", odd, r"a\.tar: is empty")
    (odd / "a.tar").write_bytes(b"nothing like a tar" * 100)
    refused("webdataset", odd, r"a\.tar: .*cut short.*get it again")
    write_tar(odd / "a.tar", {f"{i}.jpg": encoded(i) for i in range(4)})
    whole = (odd / "a.tar").read_bytes()
    with tarfile.open(odd / "a.tar") as tar:
        last = tar.getmembers()[-1]
    # In an image, at the start of a member, and between two members.
    for length in (last.offset_data + 10, last.offset + 100, last.offset):
        (odd / "a.tar").write_bytes(whole[:length])
        refused("webdataset", odd, r"a\.tar: .*cut short.*get it again")


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
