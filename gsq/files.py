"""Files that are written whole: a reader finds the old content or the new, never a part of either.

Several processes, on one machine or on many, may write the same file at once: each writes to a name of its own beside
it, and the last one to finish replaces the file. Files have the permissions of the user's umask.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def is_yaml(name: object) -> bool:
    """Whether a name or path is that of a YAML file."""
    return str(name).endswith((".yaml", ".yml"))


def cache_folder() -> Path:
    """Folder of what only saves time: $GSQ_CACHE (default ~/.cache/gsq)."""
    return Path(os.environ.get("GSQ_CACHE") or Path.home() / ".cache" / "gsq")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary(path: Path) -> Path:
    """A name beside ``path`` that no other process, thread or host uses: ``.NAME.<12 hex digits>.partial``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def leftovers(path: Path) -> list[Path]:
    """Temporary files of ``path``, left by processes that are writing it or were killed while writing."""
    start = f".{path.name}."
    return [one for one in path.parent.glob(".*.partial") if one.name.startswith(start)]


@contextmanager
def whole(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary name to write to. It replaces ``path`` when the block ends well, and is removed otherwise.

    sync: the content is on the disk before it replaces the file, so that a power cut leaves one of the two whole.
    Raises OSError if the file cannot be written; the earlier file stays.
    """
    partial = temporary(path)
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, sync: bool = True) -> None:
    """Replace a file's content with ``text`` in UTF-8, see ``whole``."""
    with whole(path, sync) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, sync: bool = True) -> None:
    """Replace a file's content with ``value`` as JSON, see ``whole``."""
    write_text(path, json.dumps(value, indent=1, allow_nan=True) + "\n", sync)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
