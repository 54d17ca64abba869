"""Checkpoints, written whole, with a sha256 beside them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from gsq.files import sha256_of, whole, write_json

PATTERN = re.compile(r"checkpoint-(\d{8})\.json")
KEEP = 2
# Second name by which an attempt keeps the checkpoint that it starts from.
START = "checkpoint-start.pt"


class _HashingFile:
    """A file that hashes its content, and keeps the OSError that torch hides behind a RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, step: int, state: dict[str, Any], keep: Collection[int] = ()) -> Path:
    """Write ``state`` (tensors and plain values) as the checkpoint of ``step``. A folder keeps its last two, and those
    of the steps ``keep``.

    Raises OSError (ENOSPC on a full disk), leaving no partial file behind.
    """
    path = folder / f"checkpoint-{step:08d}.pt"
    _remove_partial(folder)
    try:
        with whole(path) as partial, partial.open("wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(state, hashing)  # type: ignore[arg-type]
            except Exception as error:
                if hashing.error is not None:
                    raise hashing.error from error
                raise
        # The JSON comes last: a checkpoint without it does not count.
        record = {"step": step, "sha256": hashing.sha256.hexdigest(), "bytes": hashing.size}
        write_json(path.with_suffix(".json"), record)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    for old in sorted(_steps(folder))[:-KEEP]:
        if old not in keep:
            _remove(folder, old)
    # An attempt that resumed from it has made steps since.
    (folder / START).unlink(missing_ok=True)
    return path


def hold(folders: list[Path], folder: Path) -> Path | None:
    """Give the newest checkpoint of a run a second name in ``folder``, so that it stays if a live attempt removes it.
    Returns its own name on file systems without links, and None if there is no checkpoint."""
    (folder / START).unlink(missing_ok=True)
    while (path := next(newest(folders), None)) is not None:
        try:
            os.link(path, folder / START)
        except FileNotFoundError:
            continue  # A newer one has just replaced it.
        except OSError:
            return path
        return folder / START
    return None


def _steps(folder: Path) -> Iterator[int]:
    for name in os.listdir(folder) if folder.is_dir() else []:
        if match := PATTERN.fullmatch(name):
            yield int(match[1])


def _remove(folder: Path, step: int) -> None:
    for suffix in (".json", ".pt"):
        (folder / f"checkpoint-{step:08d}{suffix}").unlink(missing_ok=True)


def _remove_partial(folder: Path) -> None:
    """Delete leftovers of a killed writer; only one process writes to a folder."""
    for leftover in folder.glob("*checkpoint-*.partial"):
        leftover.unlink(missing_ok=True)


def remove_all(folder: Path, keep: Collection[int] = ()) -> None:
    """Delete the checkpoints of a folder except those of the steps ``keep``, and leftovers of a killed writer."""
    for step in list(_steps(folder)):
        if step not in keep:
            _remove(folder, step)
    kept = {f"checkpoint-{step:08d}.pt" for step in keep}
    _remove_partial(folder)
    for leftover in folder.glob("checkpoint-*.pt"):
        if leftover.name not in kept:
            leftover.unlink(missing_ok=True)


def of_step(folders: Iterable[Path], step: int) -> Path | None:
    """A checkpoint of that step with a valid checksum, from any attempt of a run."""
    return next((path for folder in folders if _valid(path := folder / f"checkpoint-{step:08d}.pt")), None)


def newest(folders: list[Path]) -> Iterator[Path]:
    """Yield the checkpoints of a run with a valid checksum, newest step first, over all attempts."""
    found = sorted(((step, i) for i, folder in enumerate(folders) for step in _steps(folder)), reverse=True)
    for step, i in found:
        if _valid(path := folders[i] / f"checkpoint-{step:08d}.pt"):
            yield path


def _valid(path: Path) -> bool:
    try:
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
        return bool(sha256_of(path) == expected)
    except (OSError, ValueError, KeyError):
        return False


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """The state in a checkpoint."""
    state = torch.load(path, map_location=device, weights_only=True)
    assert isinstance(state, dict)
    return state


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous tensors as a safetensors file, see ``gsq.files.whole``.

    Raises OSError or SafetensorError if it cannot be written.
    """
    with whole(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        safetensors.torch.save_file(dict(tensors), partial)
        partial.chmod(mode)  # safetensors makes a file that only its owner may read (0600)
