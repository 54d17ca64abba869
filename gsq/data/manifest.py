"""Manifest, split and fingerprint of a data set. Imports neither torch nor numpy.

A data set is a ``Manifest``: lists of training and validation images, and a fingerprint of their contents, which
``gsq.data.batches`` turns into batches. A new source is one more function from a DataConfig to a Manifest, like those
in ``gsq.data.shards``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gsq.config.run import DataConfig
from gsq.config.signature import digest
from gsq.data.listing import FORMER_SUFFIXES, counted, shown, some, suffix_of
from gsq.errors import Missing, UserError
from gsq.files import cache_folder, write_text

# A process keeps the decoded images of a data set in memory if all of them take no more than KEPT_BYTES. Pillow holds
# PIXEL_BYTES a pixel.
KEPT_BYTES, PIXEL_BYTES = 256 << 20, 4
# Files left out: how many of each kind are named, and how many are listed in JSON.
NAMED, MOST_LISTED = 3, 1000

# Version of decoding, which is part of fingerprints. It rises when the same file decodes differently (photos excepted).
DECODING = 2


@dataclass(frozen=True, slots=True)
class ImageFile:
    name: str
    """Path below the data set's root, with forward slashes; in a shard, followed by its name or row there."""
    path: Path
    """The file, or the shard that holds it."""
    sha256: str
    start: int = -1
    """First byte in the shard (Parquet: row of the row group); -1 for an image in a file of its own."""
    size: int = -1
    """Size [bytes]; -1: not known."""
    row_group: int = -1
    """Parquet only."""
    column: str = ""
    """Parquet only."""
    width: int = -1
    """Width [pixels] before the image is turned upright; -1: not known."""
    height: int = -1


# Reasons to leave a file out: a word for programs, and one for people.
KINDS = {
    "broken": "broken",
    "small": "too small",
    "format": "in a format that is not read",
    "hidden": "hidden, or written by an operating system or editor",
    "link": "links that lead nowhere or in a circle",
    "unreadable": "that cannot be opened",
    "split": "in neither split",
    "empty": "shards without images",
}


class LeftOut(NamedTuple):
    """A file that looks like an image but is no part of the data set."""

    name: str
    """Name as in ``ImageFile``; for a shard that is skipped as a whole, the shard's own."""
    kind: str
    """One of ``KINDS``."""
    reason: str


@dataclass(frozen=True)
class Summary:
    """A data set in numbers, for ``gsq plan`` and for warnings about few images."""

    label: str
    """Name and fingerprint, as in the results table."""
    train: int
    """Number of training images; photos: files from which crops are taken."""
    validation: int
    """Number of held-out images; photos: files from which any number of crops is taken."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes for the user: how the images were split, which are enlarged, why the fingerprint is new."""
    decoded_bytes: int = 0
    """Bytes of all images, decoded; 0 if the images' sizes are not known."""
    in_both: tuple[str, ...] = ()
    """Names of the held-out images that are training images, too."""

    def counts(self) -> dict[str, int]:
        """Number of files left out, for each of ``KINDS`` that occurs."""
        found = Counter(one.kind for one in self.left_out)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def lines(self) -> list[str]:
        """The summary as text: the images of each split, then ``remarks``."""
        return [f"images: {self.train:,} training and {self.validation:,} validation, {self.label}", *self.remarks()]

    def remarks(self) -> list[str]:
        """A line for each kind of file that was left out, then the notes; empty if all is well."""
        return [*(f"left out: {line}" for line in described(self.left_out)), *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """A summary for JSON, with the first MOST_LISTED files of each kind."""
        listed = [one for kind in KINDS for one in self._of(kind)[:MOST_LISTED]]
        return {
            "label": self.label,
            "train": self.train,
            "validation": self.validation,
            "left_out": self.counts(),
            "files_left_out": [{**one._asdict(), "name": shown(one.name)} for one in listed],
            "notes": list(self.notes),
            "decoded_bytes": self.decoded_bytes,
        }

    def _of(self, kind: str) -> list[LeftOut]:
        return [one for one in self.left_out if one.kind == kind]


def described(left_out: Iterable[LeftOut], most: int = NAMED) -> list[str]:
    """A line for each kind of file that was left out: how many, why, and the names of the first ``most``."""
    kinds: dict[str, list[LeftOut]] = {kind: [] for kind in KINDS}
    for one in left_out:
        kinds[one.kind].append(one)
    lines = []
    for kind, found in kinds.items():
        if not found:
            continue
        line = f"{len(found):,} {KINDS[kind]}"
        if kind in ("format", "split"):
            line += f" ({counted(one.reason.partition(';')[0] for one in found)})"
        if kind in ("broken", "small", "link", "unreadable"):
            names = (f"{shown(one.name)}: {one.reason}" for one in found[:most])
        else:
            names = (shown(one.name) for one in found[:most])
        lines.append(f"{line}: {'; '.join(names)}{'; ...' if len(found) > most else ''}")
    return lines


@dataclass(frozen=True)
class Manifest:
    name: str
    fingerprint: str
    """12 hex digits over names, split and contents, but not the place of the data set."""
    train: tuple[ImageFile, ...]
    validation: tuple[ImageFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Unused files, with the reasons."""
    notes: tuple[str, ...] = ()
    """Remarks about the files; see ``Summary``."""
    load: Callable[[ImageFile], Any] | None = None
    """Returns an entry's image (PIL, mode RGB or RGBX), the same at every call; for a user's own source without image
    files, and for decoded images on disk."""
    store: Any = None
    """The place on disk of decoded and resized images (gsq.data.decoded.Store)."""

    @cached_property
    def label(self) -> str:
        return f"{self.name}:{self.fingerprint}"

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the images that were left out because they cannot be read."""
        return tuple(one.name for one in self.left_out if one.kind == "broken")

    @cached_property
    def _decoded_sizes(self) -> dict[str, int]:
        """Bytes of each decoded image by sha256; copies count once, and unknown sizes not at all."""
        files = (*self.train, *self.validation)
        return {file.sha256: PIXEL_BYTES * file.width * file.height for file in files if file.width > 0}

    @property
    def total_bytes(self) -> int:
        """Bytes of all images, decoded; 0 if the images' sizes are not known."""
        return sum(self._decoded_sizes.values())

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest image, decoded; 0 if the images' sizes are not known."""
        return max(self._decoded_sizes.values(), default=0)

    @property
    def fits(self) -> bool:
        """Whether a process keeps the decoded images, since all of them together fit into KEPT_BYTES."""
        return self.total_bytes <= KEPT_BYTES

    def below(self, folder: str) -> Manifest:
        """The manifest with the validation images below ``folder`` alone; itself for an empty one.

        folder: path below the data set's root or, for short, below the split (a class of ImageNet). Raises UserError if
        no image lies there, or in several places.
        """
        if not (wanted := folder.strip("/")):
            return self
        inside = {f: f.name.rpartition(f"{wanted}/")[0] for f in self.validation if f"/{wanted}/" in f"/{f.name}"}
        places = sorted(set(inside.values()))
        if not places:
            names = dict.fromkeys(f.name.rpartition("/")[0] for f in self.validation)
            there = ", ".join(f"'{name}'" for name in [*filter(None, names)][:4]) or "no folder"
            raise UserError(
                f"evaluation.folder: '{folder}' holds none of the {len(self.validation)} validation images; they are "
                f"in {there}{', ...' if len(names) > 4 else ''}"
            )
        if len(places) > 1:
            listed = ", ".join(f"{place}{wanted}" for place in places[:3])
            raise UserError(f"evaluation.folder: '{folder}' is in several places ({listed}); name one of them")
        return replace(self, validation=tuple(inside))

    def summary(self) -> Summary:
        """The manifest in numbers."""
        counts = len(self.train), len(self.validation)
        return Summary(self.label, *counts, self.left_out, self.notes, self.total_bytes, self.in_both)

    @cached_property
    def in_both(self) -> tuple[str, ...]:
        """Names of the held-out images that are training images, too."""
        held_out = {file.sha256 for file in self.validation}
        both = {file.sha256 for file in self.train if file.sha256 in held_out}
        return tuple(file.name for file in self.validation if file.sha256 in both)

    def decoded_bytes(self, workers: int = 0) -> int:
        """Largest memory [bytes] that decoded images take in a run which decodes them itself; 0 if the images' sizes
        are not known. Pillow holds two copies while it decodes."""
        return (self.total_bytes if self.fits else 0) + 2 * self.largest_bytes * max(1, workers)


def data_root(config: DataConfig) -> Path:
    """``data.path`` with ``~`` and variables expanded. Raises Missing for a variable that is not set."""
    text = os.path.expandvars(config.path)
    unset = re.search(r"\$(\w+|\{\w*[^}]*\}?)", text)
    if unset:
        name = unset[1].strip("{}")
        if not re.fullmatch(r"\w+", name):
            raise UserError(f"data.path: {config.path}: only $NAME and ${{NAME}} can be expanded here")
        raise Missing(f"data.path: {config.path}: ${name} is not set; export {name}=FOLDER, or give the path itself")
    return Path(text).expanduser().resolve()


def build_manifest(
    name: str, train: list[ImageFile], validation: list[ImageFile], left_out: tuple[LeftOut, ...] = ()
) -> Manifest:
    content: dict[str, object] = {} if name == "photos" else {"decoding": DECODING}
    content["train"] = [(f.name, f.sha256) for f in train]
    content["validation"] = [(f.name, f.sha256) for f in validation]
    return Manifest(name, digest(content), tuple(train), tuple(validation), left_out)


def manifests_folder() -> Path:
    """Folder of cached manifests."""
    return cache_folder() / "manifests"


def held_out(files: list[ImageFile], share: float) -> tuple[list[ImageFile], list[ImageFile]]:
    """Training and validation images, split by a hash of their content."""
    # Copies of an image fall on the same side, whatever their names.
    held = [int(file.sha256[:8], 16) < share * 2**32 for file in files]
    return (
        [file for file, out in zip(files, held, strict=True) if not out],
        [file for file, out in zip(files, held, strict=True) if out],
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible image of a user's data set, after the first look at it."""

    file: ImageFile
    kind: str = ""
    """Why it is left out, one of KINDS; empty if it is used."""
    reason: str = ""
    former: bool = True
    """Whether earlier versions of gsq, which neither followed links nor skipped hidden or tiny files, used it."""
    split: str = ""
    """train, validation or other if paths tell; empty if the content decides."""


def complete(
    config: DataConfig,
    where: str,
    candidates: list[Candidate],
    notes: Sequence[str] = (),
    passed_over: Sequence[LeftOut] = (),
) -> Manifest:
    """The manifest of a user's data set. Raises UserError for too few images, or too many broken ones.

    passed_over: files that were no candidates.
    """
    used = [one for one in candidates if not one.kind]
    left_out = [*passed_over, *(LeftOut(one.file.name, one.kind, one.reason) for one in candidates if one.kind)]
    if {one.split for one in used}.issuperset(SPLITS):
        left_out += [LeftOut(one.file.name, "split", one.split) for one in used if one.split not in SPLITS]
    train, validation = _split(used, config.validation_share)
    unusable = ("broken", "unreadable")
    broken = [one for one in left_out if one.kind in unusable]
    readable = len(train) + len(validation)
    # One validation image has no covariance.
    if not train or len(validation) < 2:
        lines = [*described(one for one in left_out if one.kind not in unusable), *notes]
        raise UserError(
            f"data.path: {where} gives {len(train)} training and {len(validation)} validation images of {readable} "
            f"readable ones ({len(broken)} broken{''.join(f'; {line}' for line in lines)}); add images, make train and "
            "val subfolders (of shards: train and val in their names), or raise data.validation_share (now "
            f"{config.validation_share})"
        )
    if len(broken) > config.max_broken * (readable + len(broken)):
        raise UserError(
            f"data.path: {len(broken)} of the {readable + len(broken)} images of {where} are broken "
            f"or cannot be opened ({some(one.name for one in broken)}), more than data.max_broken "
            f"{config.max_broken:g} allows; mend or remove them, or raise it"
        )
    made = build_manifest(config.kind, train, validation, tuple(left_out))
    more = [*notes, *_enlarged(config, made), *_renewed(config, candidates, made)]
    return replace(made, notes=tuple(more))


SPLITS = ("train", "validation")


def _split(used: list[Candidate], share: float) -> tuple[list[ImageFile], list[ImageFile]]:
    """The split by paths if both splits have images, else by content."""
    parts = {split: [one.file for one in used if one.split == split] for split in SPLITS}
    train, validation = parts.values() if all(parts.values()) else held_out([one.file for one in used], share)
    # Sorted by hash, any first part is a sample, whatever the folders are called.
    return train, sorted(validation, key=lambda file: file.sha256)


def _enlarged(config: DataConfig, files: Manifest) -> Iterator[str]:
    known = [file for file in (*files.train, *files.validation) if file.width > 0]
    small = sum(min(file.width, file.height) < config.image_size for file in known)
    if small:
        yield (
            f"enlarged: {small:,} of {len(known):,} images have a side below data.image_size {config.image_size} pixels"
        )


def _renewed(config: DataConfig, candidates: list[Candidate], now: Manifest) -> Iterator[str]:
    """Explain a fingerprint that differs from that of earlier versions of gsq."""
    before = _split([one for one in candidates if one.former], config.validation_share)
    old = build_manifest(config.kind, *before)
    if old.fingerprint == now.fingerprint or not before[0] or len(before[1]) < 2:
        return
    added = [_news(one) for one in candidates if not one.kind and not one.former]
    removed = [KINDS[one.kind] for one in candidates if one.kind and one.former]
    why = [f"{what}: {counted(found)}" for what, found in (("added", added), ("left out", removed)) if found]
    yield (
        f"earlier versions of gsq read {len(before[0]):,} training and {len(before[1]):,} validation images here, "
        f"this one {len(now.train):,} and {len(now.validation):,} ({'; '.join(why)}); the fingerprint was "
        f"{old.fingerprint}; runs on those images count as runs on another data set and are not reused"
    )


def _news(one: Candidate) -> str:
    suffix = suffix_of(one.file.name)
    return "behind links" if suffix in FORMER_SUFFIXES else suffix[1:]


def write_cache(path: Path, content: object) -> None:
    """Write a cache if possible: without it, only time is lost."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content), sync=False)
