"""Data sets that are folders of image files. Imports neither torch nor numpy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gsq.config.run import DataConfig
from gsq.data.images import BrokenImageError, measure, require_large_enough, size_of
from gsq.data.listing import FORMER_SUFFIXES, IMAGE_SUFFIXES, Entry, classified, in_order, shown, suffix_of, walk
from gsq.data.manifest import (
    Candidate,
    ImageFile,
    LeftOut,
    Manifest,
    complete,
    data_root,
    described,
    manifests_folder,
    write_cache,
)
from gsq.data.progress import shown_after_a_second
from gsq.errors import Missing, UserError
from gsq.files import sha256_of


class Look(NamedTuple):
    """Result of the first look at a file, valid until its size or time changes."""

    bytes: int
    modified_ns: int
    sha256: str
    """Empty if the image is broken or its format is not read."""
    width: int = -1
    height: int = -1
    kind: str = ""
    """One of gsq.data.manifest.KINDS if the image cannot be used."""
    reason: str = ""


def find_images(root: Path) -> list[Entry]:
    """Every image below a folder, sorted folder by folder; those that cannot be used have a kind that says why.

    Training, evaluation and tokenizing all find their images this way.
    """
    what = f"listing the files of {shown(str(root))}"
    found = (classified(entry, root) for entry in shown_after_a_second(walk(root), what))
    return sorted((entry for entry in found if entry is not None), key=lambda entry: in_order(entry.name))


def nothing_found(where: str, entries: Iterable[Entry]) -> UserError:
    """The error for a folder without a usable image."""
    beside = "".join(f"; left out: {line}" for line in described(LeftOut(e.name, e.kind, e.reason) for e in entries))
    return UserError(f"{where} holds no images ({', '.join(IMAGE_SUFFIXES)}), in no subfolder either{beside}")


def image_folder(config: DataConfig) -> Manifest:
    """The manifest of the images below a folder. Hashes and sizes are cached by the files' size and time.

    Links to files and folders are followed. ``train/`` and ``val/`` are the split if both hold images. Raises UserError
    like ``gsq.data.sources.manifest``.
    """
    root = data_root(config)
    if not root.is_dir():
        raise Missing(f"data.path: {root} is not a folder")
    entries = find_images(root)
    if all(entry.kind for entry in entries):
        raise nothing_found(f"data.path: {root}", entries)
    candidates = [_candidate(root, entry, look) for entry, look in _looked_at(root, config.path, entries)]
    return complete(config, str(root), candidates, _half_a_split(config, candidates))


def _candidate(root: Path, entry: Entry, look: Look | None) -> Candidate:
    """look: None if the name says enough, so that the file was not opened."""
    # Hidden images are opened only to know whether earlier versions used them.
    former = (
        look is not None
        and look.kind in ("", "small")
        and not entry.linked
        and suffix_of(entry.name) in FORMER_SUFFIXES
    )
    look = look or Look(-1, -1, "")
    return Candidate(
        ImageFile(entry.name, root / entry.name, look.sha256, size=look.bytes, width=look.width, height=look.height),
        entry.kind or look.kind,
        entry.reason or look.reason,
        former,
        _split_of(entry.name),
    )


def _split_of(name: str) -> str:
    top = name.split("/")[0] if "/" in name else ""
    return {"train": "train", "val": "validation"}.get(top, f"in {top}/" if top else "beside train/ and val/")


# Common names of folders that hold a split.
_LIKELY = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")


def _half_a_split(config: DataConfig, candidates: list[Candidate]) -> list[str]:
    """A note if there are folders named like splits that do not decide the split."""
    held = {one.split for one in candidates if not one.kind}
    if {"train", "validation"} <= held:
        return []
    tops = sorted({one.file.name.split("/")[0] for one in candidates if "/" in one.file.name})
    named = [f"{shown(top)}/" for top in tops if top.lower() in _LIKELY]
    if not named:
        return []
    return [
        f"split: only folders named train and val, both with images, decide it; here are only {', '.join(named)}, so "
        f"data.validation_share {config.validation_share:g} of all images is held out, by a hash of the content, "
        "whatever folder they are in. Name the folders train and val if they are the split"
    ]


def _looked_at(root: Path, shown_as: str, entries: list[Entry]) -> list[tuple[Entry, Look | None]]:
    cache_file = (
        manifests_folder() / f"{hashlib.sha256(str(root).encode(errors='surrogateescape')).hexdigest()[:16]}.json"
    )
    try:
        known: dict[str, list[object]] = dict(json.loads(cache_file.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    seen: dict[str, list[object]] = {}
    found: list[tuple[Entry, Look | None]] = []
    what = f"looking at the images of {shown(shown_as)}"
    for entry in shown_after_a_second(entries, what, len(entries)):
        hidden = entry.kind == "hidden" and suffix_of(entry.name) in FORMER_SUFFIXES
        look = None if entry.kind and not hidden else _look(root / entry.name, known.get(entry.name))
        if look is not None:
            seen[entry.name] = list(look)
        found.append((entry, look))
    if seen != known:
        write_cache(cache_file, seen)
    return found


def _look(path: Path, known: list[object] | None) -> Look:
    try:
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns)
        if known and (*known[:2],) == stamp:
            if len(known) == len(Look._fields):
                return Look(*known)  # type: ignore[arg-type]
            if known[2]:
                # An earlier version did not keep the size.
                size = size_of(path)
                require_large_enough(*size)
                return Look(*stamp, str(known[2]), *size)
        size = measure(path)
        return Look(*stamp, sha256_of(path), *size)
    except BrokenImageError as error:
        return Look(*stamp, sha256_of(path) if error.kind == "small" else "", -1, -1, error.kind, str(error))
    except MemoryError:
        raise UserError(
            f"{shown(str(path))}: there is not enough memory to decode this image; make it smaller, or remove it"
        ) from None
    except OSError as error:
        return Look(-1, -1, "", -1, -1, "unreadable", f"cannot be read ({error.strerror or error})")
