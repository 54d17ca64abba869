"""What the images are: manifest, split and fingerprint of a data set. Imports neither torch nor numpy.

A data set is a ``Manifest``: two lists of image files (training and validation) and a fingerprint over their
contents. ``gsq.data`` turns it into batches. Another source is one more function from a DataConfig to a Manifest, as
``gsq.shards`` is for WebDataset and Hugging Face shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from gsq.config import DataConfig
from gsq.errors import Missing, UserError
from gsq.signature import digest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

# The colour photographs in scikit-image's wheel: file, scene, split, sha256. Training and validation are
# different scenes; the two views of the stereo pair are one scene.
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


# Raised when the same file comes to be decoded otherwise, which makes other fingerprints (photos have no such files).
DECODING = 2


@dataclass(frozen=True, slots=True)
class ImageFile:
    name: str
    """Path below the data set's root, with forward slashes; in a shard, with its name or row there."""
    path: Path
    """The file, or the shard that holds it."""
    sha256: str
    start: int = -1
    """First byte in the shard (in Parquet: row of the row group); -1: the image is a file of its own."""
    size: int = -1
    """Bytes; -1: not known."""
    row_group: int = -1
    """In Parquet only."""
    column: str = ""
    """In Parquet only."""


# Why a file is left out, as a word for programs and in words for people.
KINDS = {
    "broken": "broken",
    "small": "too small",
    "format": "in a format that is not read",
    "hidden": "hidden, or written by an operating system or editor",
    "link": "links that lead nowhere",
    "split": "beside the training and validation images",
    "empty": "shards without images",
}


class LeftOut(NamedTuple):
    """A file that could have been an image of the data set, and is not."""

    name: str
    """As in ``ImageFile``; of a shard that is not read at all, its own."""
    kind: str
    """One of ``KINDS``."""
    reason: str


@dataclass(frozen=True)
class Summary:
    """What there is of a data set, in numbers: for ``gsq plan``, and for warnings about few images."""

    label: str
    """Name and fingerprint, as in the results table."""
    train: int
    """Images to train on; photos: the files that crops are taken from."""
    validation: int
    """Held-out images; photos: the files that crops are taken from, and the number of crops is not limited."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    """What else a user should know: how the images were split, which are enlarged, why the fingerprint is a new one."""

    def counts(self) -> dict[str, int]:
        """How many files were left out for each of ``KINDS``; those that occur."""
        found = Counter(one.kind for one in self.left_out)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "train": self.train,
            "validation": self.validation,
            "left_out": self.counts(),
            "files_left_out": [one._asdict() for one in self.left_out],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Manifest:
    name: str
    fingerprint: str
    """12 hex digits over names, split and contents; no path."""
    train: tuple[ImageFile, ...]
    validation: tuple[ImageFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Files that are not used, with the reasons."""
    notes: tuple[str, ...] = ()
    """As in ``Summary``."""

    @property
    def label(self) -> str:
        return f"{self.name}:{self.fingerprint}"

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the images that could not be read and were left out."""
        return tuple(one.name for one in self.left_out if one.kind == "broken")

    def summary(self) -> Summary:
        return Summary(self.label, len(self.train), len(self.validation), self.left_out, self.notes)


def data_root(config: DataConfig) -> Path:
    """``data.path`` with ``~`` and variables replaced. Raises Missing for a variable that is not set."""
    text = os.path.expandvars(config.path)
    unset = re.search(r"\$(\w+|\{\w+\})", text)
    if unset:
        name = unset[1].strip("{}")
        raise Missing(f"data.path: {config.path}: ${name} is not set; export {name}=FOLDER, or give the path itself")
    return Path(text).expanduser().resolve()


def manifest(config: DataConfig) -> Manifest:
    """The manifest of ``config``'s data set. Raises UserError for one that is missing (Missing, where it is the whole
    folder), empty, damaged or too small."""
    if config.kind == "photos":
        return _photos()
    if config.kind == "image_folder":
        return _image_folder(config)
    from gsq.shards import shard_manifest

    return shard_manifest(config)


def _build(
    name: str, train: list[ImageFile], validation: list[ImageFile], left_out: tuple[LeftOut, ...] = ()
) -> Manifest:
    content: dict[str, object] = {} if name == "photos" else {"decoding": DECODING}
    content["train"] = [(f.name, f.sha256) for f in train]
    content["validation"] = [(f.name, f.sha256) for f in validation]
    return Manifest(name, digest(content), tuple(train), tuple(validation), left_out)


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
    return _build("photos", split["train"], split["validation"])


def cache_folder() -> Path:
    """Where manifests are cached: below $GSQ_CACHE, by default ~/.cache/gsq."""
    return Path(os.environ.get("GSQ_CACHE") or Path.home() / ".cache" / "gsq") / "manifests"


def _cache_file(root: Path) -> Path:
    return cache_folder() / f"{hashlib.sha256(str(root).encode()).hexdigest()[:16]}.json"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _image_folder(config: DataConfig) -> Manifest:
    """Every readable jpg, png and webp below a folder; contents are hashed once and cached by size and time."""
    from gsq.images import broken as why_broken

    root = data_root(config)
    if not root.is_dir():
        raise Missing(f"data.path: {root} is not a folder")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"data.path: {root} holds no images ({', '.join(IMAGE_SUFFIXES)}), in no subfolder either")
    cache_file = _cache_file(root)
    try:
        known: dict[str, list[object]] = dict(json.loads(cache_file.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    seen: dict[str, list[object]] = {}
    files: list[ImageFile] = []
    broken: list[str] = []
    for path, name in _with_progress([(p, p.relative_to(root).as_posix()) for p in paths], known):
        stat = path.stat()
        entry = known.get(name)
        if not entry or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            entry = [stat.st_size, stat.st_mtime_ns, "" if why_broken(path) else _hash_file(path)]
        seen[name] = entry
        if entry[2]:
            files.append(ImageFile(name, path, str(entry[2]), size=stat.st_size))
        else:
            broken.append(name)
    if seen != known:
        write_cache(cache_file, seen)
    parts = {file.name.split("/")[0] for file in files}
    if {"train", "val"} <= parts:
        train = [f for f in files if f.name.startswith("train/")]
        validation = [f for f in files if f.name.startswith("val/")]
    else:
        train, validation = held_out(files, config.validation_share)
    return complete(config, str(root), train, validation, broken)


def held_out(files: list[ImageFile], share: float) -> tuple[list[ImageFile], list[ImageFile]]:
    """Training and validation images, split by a hash of their content."""
    # A copy of an image falls on the same side, whatever its name.
    held = [int(file.sha256[:8], 16) < share * 2**32 for file in files]
    return (
        [file for file, out in zip(files, held, strict=True) if not out],
        [file for file, out in zip(files, held, strict=True) if out],
    )


def complete(
    config: DataConfig, where: str, train: list[ImageFile], validation: list[ImageFile], broken: list[str]
) -> Manifest:
    """The manifest of a data set of one's own. Raises UserError for too few images, or too many broken ones."""
    readable = len(train) + len(validation)
    # One validation image has no covariance.
    if not train or len(validation) < 2:
        raise UserError(
            f"data.path: {where} gives {len(train)} training and {len(validation)} validation images of {readable} "
            f"readable ones ({len(broken)} broken); add images, make train and val subfolders (of shards: train and "
            f"val in their names), or raise data.validation_share (now {config.validation_share})"
        )
    if len(broken) > config.max_broken * (readable + len(broken)):
        shown = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        raise UserError(
            f"data.path: {len(broken)} of the {readable + len(broken)} images of {where} are broken ({shown}), more "
            f"than data.max_broken {config.max_broken:g} allows; mend or remove them, or raise it"
        )
    # In the order of their hashes any first part of them is a sample, whatever the folders are called.
    validation = sorted(validation, key=lambda file: file.sha256)
    return _build(config.kind, train, validation, tuple(LeftOut(name, "broken", "broken") for name in broken))


def _with_progress(items: list[tuple[Path, str]], known: dict[str, list[object]]):  # type: ignore[no-untyped-def]
    """Yield the items, with a progress bar on stderr where many have to be hashed for the first time."""
    if len(items) - len(known) < 2000:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, "hashing images", console=Console(stderr=True), transient=True)


def write_cache(path: Path, content: object) -> None:
    """Best effort: a cache that cannot be written costs time, not correctness."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content))
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
