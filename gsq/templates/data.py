"""A data source of your own: images that are made here, from a number each.

Use it in a sweep with   set: {data.kind: "gsq.templates.data:mine"}
Where your images are files, leave out ``load``, and give each its path and the sha256 of its bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from gsq.config.run import DataConfig
from gsq.data.manifest import ImageFile, Manifest, build_manifest


@dataclass(frozen=True)
class Options:
    """The keys of data.options. A default is left out of the run's signature."""

    images: int = 500


def _file(number: int) -> ImageFile:
    # The hash stands for the image's content: the data set's fingerprint is made of names and hashes.
    name = f"blobs-{number}"
    return ImageFile(name, Path(name), hashlib.sha256(name.encode()).hexdigest())


def load(file: ImageFile) -> Image.Image:
    """The RGB image of an entry, the same at every call and in every process."""
    random = np.random.default_rng(int(file.sha256[:8], 16))
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((96, 96), Image.Resampling.BICUBIC)


def mine(config: DataConfig, images: int = 500) -> Manifest:
    """Training and held-out images; ``config`` has image_size, path and the other keys of the section data."""
    files = [_file(number) for number in range(images)]
    held_out = images // 5
    return replace(build_manifest("blobs", files[held_out:], files[:held_out]), load=load)


mine.Options = Options  # type: ignore[attr-defined]
