"""Fixtures of the gsq tests: one CPU thread, caches below tmp_path, and a small file system that can be filled."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from image_sets import SHARDS, shard_config, write_shard
from pictures import picture
from tiny_run import tiny

from gsq import RunFolder, Tokenizer, train
from gsq.config.run import DataConfig
from gsq.pretrained.weights import verified_weights


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path_factory.getbasetemp() / "gsq-cache" / uuid.uuid4().hex))
    monkeypatch.delenv("GSQ_WEIGHTS", raising=False)


@pytest.fixture
def forget_verified() -> Iterator[None]:
    """Verified files are remembered for the process; what a test put in their place must not be."""
    verified_weights.cache_clear()
    yield
    verified_weights.cache_clear()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(kib) mounts a tmpfs of that size and returns its folder; all are unmounted at the end."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small tmpfs that can be filled")
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


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


@pytest.fixture(params=SHARDS)
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    """Three shards of four images, without a split in their names."""
    for i in range(3):
        write_shard(request.param, tmp_path / "shards" / f"part-{i:05d}-of-00003", range(4 * i, 4 * i + 4))
    return shard_config(tmp_path / "shards", request.param)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run: f = 4, D = 4, G = 2, V = 32."""
    return train(tiny(), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def tokenizer(run: RunFolder) -> Tokenizer:
    return Tokenizer.from_pretrained(run.path, device="cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny(), tmp_path_factory.mktemp("done"))
