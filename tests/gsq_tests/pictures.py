"""Small images, files of them and shards, for tests of data sets."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gsq.config.run import DataConfig


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth random colour image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(seed: int, form: str = "PNG", **options: Any) -> bytes:
    """The same as the content of a file."""
    out = io.BytesIO()
    picture(seed).save(out, form, **options)
    return out.getvalue()


def fill(folder: Path, seeds: range, suffix: str = ".png") -> None:
    """One file for each seed, made in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(folder / f"{seed:03d}{suffix}")


def write_tar(path: Path, members: dict[str, bytes], links: dict[str, tuple[bytes, str]] | None = None) -> None:
    """links: by their names, kind (tarfile.SYMTYPE or LNKTYPE) and target; after the members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, (kind, target) in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)


def data(kind: str, path: Path, **more: Any) -> DataConfig:
    """A data section of small images, three tenths of them held out."""
    return DataConfig(kind=kind, path=str(path), **{"image_size": 16, "validation_share": 0.3, **more})
