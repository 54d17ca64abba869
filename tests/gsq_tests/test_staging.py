"""Images copied to a node's own disk are the same images."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_sets import IMAGES, SMALL, folder_config, write_shard
from tiny_run import curve, status, tiny

import gsq.data.batches
import gsq.data.shards
import gsq.data.staging
from gsq import UserError
from gsq.config.run import DataConfig
from gsq.data.batches import ImageSource
from gsq.data.manifest import Manifest
from gsq.data.sources import manifest
from gsq.data.staging import stage
from gsq.records.read import read_metrics
from gsq.runs.execute import execute


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
    with pytest.raises(UserError, match=r"gsq-.*\.images: .* its content .*sha256 [0-9a-f]{64}.*plan again"):
        ImageSource(config, local).load(local.train[0])
    copy.unlink()
    for shard in Path(config.path).iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    gsq.data.shards._opened.cache_clear()
    gsq.data.shards._row_groups.clear()
    gsq.data.shards._footer.cache_clear()
    with pytest.raises(UserError, match=r"part-00000-of-00003\..*(sha256|cannot be read)"):
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
