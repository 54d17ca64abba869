"""The manifest of a data set of any kind."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from gsq.config.parts import blamed, is_path, load, options_of
from gsq.config.run import DataConfig
from gsq.data.manifest import ImageFile, Manifest, build_manifest
from gsq.errors import UserError

# The colour photographs in scikit-image's wheel: file, scene, split, sha256. Training and validation have different
# scenes; the two views of the stereo pair are one scene.
PHOTOS: tuple[tuple[str, str, str, str], ...] = (
    ("astronaut.png", "astronaut", "validation", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
    ("chelsea.png", "cat", "validation", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    ("coffee.png", "coffee", "validation", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    ("hubble_deep_field.jpg", "hubble", "train", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"),
    ("ihc.png", "tissue", "train", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
    ("motorcycle_left.png", "motorcycle", "train", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
    ("motorcycle_right.png", "motorcycle", "train", "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797"),
    ("retina.jpg", "retina", "train", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    ("rocket.jpg", "rocket", "train", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
)


def folder_kind(folder: Path) -> str:
    """The data.kind of a folder: image_folder if it holds images, else by its shards. Raises UserError if it holds
    neither, or is no folder."""
    from gsq.data.folders import find_images, nothing_found
    from gsq.data.shard_files import SUFFIXES

    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name a folder of images")
    entries = find_images(folder)
    if any(not entry.kind for entry in entries):
        return "image_folder"
    shards = {path.suffix.lower() for path in folder.rglob("*")}
    for kind, suffixes in SUFFIXES.items():
        if shards & {*suffixes}:
            return kind
    raise nothing_found(str(folder), entries)


def manifest(config: DataConfig) -> Manifest:
    """The manifest of ``config``'s data set. Raises UserError if it is empty, damaged or too small, and Missing if the
    whole folder is missing."""
    if is_path(config.kind):
        make, options = load(config.kind, "data.kind"), options_of(config.kind, "data.kind", config.options)
        with blamed("data.kind", config.kind):
            made = make(config, **options)
        if not isinstance(made, Manifest):
            raise UserError(
                f"data.kind: '{config.kind}' returned a {type(made).__name__}; a gsq.data.manifest.Manifest is needed "
                "(build_manifest makes one)"
            )
        if not made.train or len(made.validation) < 2:
            raise UserError(
                f"data.kind: '{config.kind}' gives {len(made.train)} training and {len(made.validation)} validation "
                "images; at least 1 and 2 are needed"
            )
        return made
    if config.kind == "photos":
        return _photos()
    if config.kind == "image_folder":
        from gsq.data.folders import image_folder

        return image_folder(config)
    from gsq.data.shards import shard_manifest

    return shard_manifest(config)


@cache
def _photos() -> Manifest:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.kind photos: scikit-image is not installed; pip install scikit-image")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    split: dict[str, list[ImageFile]] = {"train": [], "validation": []}
    for name, _, part, sha256 in PHOTOS:
        path = folder / name
        if not path.is_file():
            raise UserError(f"data.kind photos: {path} is missing; this release of scikit-image does not ship it")
        split[part].append(ImageFile(name, path, sha256))
    return build_manifest("photos", split["train"], split["validation"])
