"""Copy a data set's images to a node's own disk, once for all processes and jobs of the node.

The images go one after another into one file, named by the data set's fingerprint, which replaces thousands of small
files or slow row groups. Each image's sha256 is checked when it is written and whenever it is read. Locks lie on that
disk alone, where they are reliable.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from gsq.data.manifest import ImageFile, Manifest
from gsq.data.shards import read_checked
from gsq.files import leftovers, whole
from gsq.words import counted

# Bytes left free on the disk.
SPARE_BYTES = 256 << 20
# Threads that read images, and images read at a time.
READERS, AHEAD = 8, 64


def stage(
    files: Manifest,
    folder: str,
    announce: Callable[[str], None] = lambda message: print(message, file=sys.stderr, flush=True),
    tick: Callable[[], None] = lambda: None,
) -> Manifest:
    """Return the data set with its images on the node's own disk below ``folder``, whose variables are expanded.

    If that fails (unknown variable, no room, no permission), announces why and leaves the images where they are. tick
    is called now and then, and can raise to stop; nothing is left half-written. Raises UserError for an image that has
    changed since the manifest was taken.
    """
    if not folder or files.name == "photos" or files.load is not None:
        return files
    expanded = os.path.expanduser(os.path.expandvars(folder))
    if unknown := re.search(r"\$\{?\w+\}?", expanded):
        announce(f"data is not staged: execution.stage_data {folder}: {unknown[0]} is not set here")
        return files
    target = Path(expanded).absolute() / f"gsq-{files.fingerprint}.images"
    try:
        layout = _layout(files)
        total = sum(size for _, size in layout)
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_suffix(".lock"), tick):
            if not target.is_file() or target.stat().st_size != total:
                free = shutil.disk_usage(target.parent).free
                if free < total + SPARE_BYTES:
                    announce(
                        f"data is not staged: {target.parent} has {free / 1e9:.1f} GB free, "
                        f"{(total + SPARE_BYTES) / 1e9:.1f} GB are needed"
                    )
                    return files
                announce(f"staging {counted(len(layout), 'image')} ({total / 1e9:.2f} GB) to {target}")
                _write(layout, target, tick)
    except OSError as error:
        announce(f"data is not staged: {error.filename or target}: {error.strerror or error}")
        return files
    places = {}
    start = 0
    for file, size in layout:
        places[file] = replace(file, path=target, start=start, size=size, row_group=-1, column="")
        start += size
    return replace(
        files,
        train=tuple(places[file] for file in files.train),
        validation=tuple(places[file] for file in files.validation),
    )


def _layout(files: Manifest) -> list[tuple[ImageFile, int]]:
    """Images with their sizes, in the order that is fastest to read and the same for every process."""
    in_order = sorted({*files.train, *files.validation}, key=lambda f: (str(f.path), f.row_group, f.start))
    return [(file, file.size if file.size >= 0 else file.path.stat().st_size) for file in in_order]


@contextmanager
def locked(path: Path, tick: Callable[[], None]) -> Iterator[None]:
    """Hold the lock ``path``. Raises OSError where the file system has no locks."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                tick()
                time.sleep(0.1)
        yield


def _write(layout: list[tuple[ImageFile, int]], target: Path, tick: Callable[[], None]) -> None:
    for old in leftovers(target):  # The caller holds the lock, so nobody writes to them.
        old.unlink(missing_ok=True)
    pool = ThreadPoolExecutor(READERS)
    waiting = iter(layout)
    try:
        with whole(target, sync=False) as partial, partial.open("wb") as out:
            while part := list(islice(waiting, AHEAD)):
                for data in pool.map(read_checked, [file for file, _ in part]):
                    out.write(data)
                tick()
    finally:
        pool.shutdown(cancel_futures=True)
