"""The fingerprint of data that a program of a user's own reads."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from gsq.errors import Missing
from gsq.files import sha256_of


def fingerprint(path: str | Path) -> str:
    """64 hex digits (sha256) over the content of a file, or over names and contents of all files below a folder.

    ``$NAME`` and ``~`` in the path are expanded. Raises Missing if there is nothing or it cannot be read.
    """
    place = Path(os.path.expandvars(path)).expanduser()
    try:
        if not place.is_dir():
            return _of_file(str(place), place.stat().st_size, place.stat().st_mtime_ns)
        hashed = hashlib.sha256()
        for file in sorted(one for one in place.rglob("*") if one.is_file()):
            stat = file.stat()
            name = file.relative_to(place).as_posix().encode()
            hashed.update(name + b"\0" + _of_file(str(file), stat.st_size, stat.st_mtime_ns).encode() + b"\0")
        return hashed.hexdigest()
    except OSError as error:
        raise Missing(f"{place.absolute()}: cannot be read: {error.strerror or error}") from None


@cache
def _of_file(path: str, size: int, changed: int) -> str:
    """size and changed [ns]: so that a changed file is read again."""
    return sha256_of(Path(path))
