"""Decoded images on disk, once for all processes of a machine. Imports neither torch nor numpy.

Two kinds of files lie in the cache folder, named by the data set's fingerprint and the decoders' versions: the images
as they are decoded, and blocks of what is always resized alike, the centre squares that evaluations compare. Training
crops have random places and sides, and bicubic resizing to a smaller size first would change their pixels, as would
decoding a JPEG at a reduced scale; so nothing below full size can be shared between them.

A file gets its name when it is whole and on the disk. Processes map it into memory. Locks only avoid duplicate work,
and tell files in use from others.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import PIL
from PIL import Image, features

from gsq.config.run import ExecutionConfig
from gsq.config.signature import digest
from gsq.data.decoded_sizes import MAPPED_BYTES, images_folder, limit_bytes, wanted_bytes
from gsq.data.images import BrokenImageError, decode
from gsq.data.listing import shown
from gsq.data.manifest import PIXEL_BYTES, ImageFile, Manifest
from gsq.data.progress import shown_after_a_second
from gsq.data.shards import read_checked
from gsq.data.staging import SPARE_BYTES, locked
from gsq.errors import UserError
from gsq.files import leftovers, whole
from gsq.surroundings import cores

# Largest memory [bytes] of images being decoded at a time while a cache is built.
BUILDING_BYTES = 256 << 20
# Images of a block of resized ones, blocks that a process keeps open, and rows that are written at a time.
BLOCK, OPEN, ROWS = 64, 8, 256
# Only images that have at least so many times the pixels of the resized ones are kept resized.
LARGER = 4
SUFFIX = ".pixels"
# Errors of file systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def load_image(file: ImageFile) -> Image.Image:
    """RGB, see ``gsq.data.images.decode``. Raises UserError for an image that changed since its manifest was taken."""
    try:
        return decode(read_checked(file))
    except BrokenImageError as error:
        raise UserError(f"{shown(str(file.path))}: {shown(file.name)} cannot be read ({error})") from None


def kept_on_disk(
    files: Manifest,
    execution: ExecutionConfig,
    announce: Callable[[str], None] = lambda message: print(message, file=sys.stderr, flush=True),
    tick: Callable[[], None] = lambda: None,
) -> Manifest:
    """Return the data set with images that are read, decoded, from this machine's disk; gsq decodes them if need be.

    They lie below execution.stage_data, or else $GSQ_CACHE. Where they cannot (limit, full disk, permission), announces
    why and returns ``files``. tick is called now and then, and can raise to stop. Raises UserError for an image that
    has changed since the manifest was taken.
    """
    limit, total = limit_bytes(execution), wanted_bytes(files)
    if not limit or not total:
        return files
    folder = images_folder()
    staged = os.path.expanduser(os.path.expandvars(execution.stage_data))
    if staged and not re.search(r"\$\{?\w+\}?", staged):
        folder = Path(staged).absolute()
    store = Store(folder, files, limit, announce, tick)
    originals = store.file("originals", total, store.decode_all)
    if originals is None:
        return files
    return replace(files, load=Originals(originals), store=store)


class Mapped:
    """A file of the cache, mapped into memory and marked as in use while this process lives."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError if there is no whole file."""
        self.file = path.open("rb")
        with suppress(OSError):
            fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with suppress(OSError):
            os.utime(path)
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        length = int.from_bytes(self.map[-8:], "little")
        self.index: Any = json.loads(self.map[-8 - length : -8])
        self.lock, self.seen = threading.Lock(), 0

    def part(self, start: int, size: int) -> memoryview:
        """Bytes of the file. What a process has looked at before counts as its memory only up to MAPPED_BYTES."""
        with self.lock:
            self.seen += size
            if self.seen > MAPPED_BYTES:
                self.map.madvise(mmap.MADV_DONTNEED)
                self.seen = size
        return memoryview(self.map)[start : start + size]


class Originals:
    """``Manifest.load`` from a mapped file."""

    def __init__(self, mapped: Mapped) -> None:
        self.mapped = mapped

    def __call__(self, file: ImageFile) -> Image.Image:
        """The decoded image without a copy. Mode RGBX, in which Pillow computes as in RGB."""
        start, width, height = self.mapped.index[file.sha256]
        part = self.mapped.part(start, PIXEL_BYTES * width * height)
        return Image.frombuffer("RGBX", (width, height), part, "raw", "RGBX", 0, 1)  # type: ignore[arg-type]


class Store:
    """The cache files of one data set."""

    def __init__(
        self, folder: Path, files: Manifest, limit: int, announce: Callable[[str], None], tick: Callable[[], None]
    ) -> None:
        self.folder, self.files, self.limit = folder, files, limit
        self.announce, self.tick = announce, tick
        decoders = [PIL.__version__, *(features.version(one) for one in ("jpg", "libjpeg_turbo", "webp", "jpg_2000"))]
        self.name = f"gsq-{files.fingerprint}-{digest({'decoders': decoders})}"
        self.mapped: dict[str, Mapped | None] = {}
        self.said = False
        self.numbers = {file.sha256: number for number, file in enumerate(files.validation)}
        self.lock = threading.Lock()

    def file(self, what: str, size: int, write: Callable[[IO[bytes]], Any]) -> Mapped | None:
        """A file of the cache, made if need be; None if it cannot be.

        size: its bytes, about. write: writes its content and returns its index (JSON).
        """
        with self.lock:
            if what not in self.mapped:
                if len(self.mapped) > OPEN:  # Blocks are used one after another.
                    del self.mapped[next(name for name in reversed(self.mapped) if name != "originals")]
                try:
                    self.mapped[what] = self._file(self.folder / f"{self.name}-{what}{SUFFIX}", size, write)
                except OSError as error:
                    self._say(f"{error.filename or self.folder}: {error.strerror or error}")
                    self.mapped[what] = None
            return self.mapped[what]

    def _file(self, path: Path, size: int, write: Callable[[IO[bytes]], Any]) -> Mapped | None:
        if (found := _open(path)) is not None:
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder / f"{self.name}.lock", self.tick):
                for old in leftovers(path):  # Nobody writes to them while this process holds the lock.
                    old.unlink(missing_ok=True)
                return self._made(path, size, write)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return self._made(path, size, write)

    def _made(self, path: Path, size: int, write: Callable[[IO[bytes]], Any]) -> Mapped | None:
        """The file, made unless another process has just done so."""
        if (found := _open(path)) is not None:
            return found
        if (why := self._no_room(size)) is not None:
            self._say(why)
            return None
        with whole(path) as partial, partial.open("wb") as out:
            index = json.dumps(write(out)).encode()
            out.write(index + len(index).to_bytes(8, "little"))
        return _open(path)

    def _say(self, why: str) -> None:
        """Say once why the images are not kept."""
        if not self.said:
            self.announce(f"decoded images are not kept on disk, so every process decodes or resizes them anew: {why}")
        self.said = True

    def _no_room(self, size: int) -> str | None:
        """Why a file of ``size`` bytes does not fit; makes room first by removing what no process uses."""
        there = {path: path.stat() for path in self.folder.glob(f"*{SUFFIX}")}
        used = sum(stat.st_size for stat in there.values())
        for path in sorted(there, key=lambda one: there[one].st_mtime):
            if used + size <= self.limit or size > self.limit:
                break
            if remove_unused(path):
                used -= there[path].st_size
        if used + size > self.limit:
            return (
                f"they take {size / 1e9:.1f} GB, and {used / 1e9:.1f} GB of others in {self.folder} are in use; "
                f"execution.image_cache_gb allows {self.limit / 1e9:g}"
            )
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE_BYTES:
            return f"{self.folder} has {free / 1e9:.1f} GB free, {(size + SPARE_BYTES) / 1e9:.1f} GB are needed"
        return None

    def decode_all(self, out: IO[bytes]) -> dict[str, tuple[int, int, int]]:
        """Write every image, row by row and 4 bytes a pixel; returns start, width and height by sha256."""
        images = list({file.sha256: file for file in (*self.files.train, *self.files.validation)}.values())
        index: dict[str, tuple[int, int, int]] = {}
        start = 0
        what = f"decoding the images of {self.files.label} ({self.files.total_bytes / 1e9:.1f} GB) to {self.folder}"
        for file, image in zip(images, shown_after_a_second(self._decoded(images), what, len(images)), strict=True):
            index[file.sha256] = start, *image.size
            for top in range(0, image.height, ROWS):
                rows = image.crop((0, top, image.width, min(top + ROWS, image.height)))
                start += out.write(rows.tobytes("raw", "RGBX"))
            self.tick()
        return index

    def _decoded(self, images: list[ImageFile]) -> Iterator[Image.Image]:
        """The images, of which as many are decoded at a time as BUILDING_BYTES and the processors allow."""
        at_once = BUILDING_BYTES // max(1, self.files.largest_bytes * 2)
        at_once = max(1, min(at_once, 8, cores()))
        if at_once == 1:
            yield from map(load_image, images)
            return
        with ThreadPoolExecutor(at_once) as pool:
            for first in range(0, len(images), at_once):
                yield from pool.map(load_image, images[first : first + at_once])

    def resized(self, file: ImageFile, size: int, make: Callable[[ImageFile], Image.Image]) -> Image.Image | None:
        """A validation image as ``make`` resizes it to ``size`` x ``size`` RGB pixels; None if it is not kept.

        The whole block of it is made at a time, whichever of the images the caller evaluates (Manifest.below)."""
        images = len(self.files.train) + len(self.files.validation)
        if self.files.total_bytes < LARGER * images * PIXEL_BYTES * size * size:
            return None
        number = self.numbers[file.sha256]
        first = number // BLOCK * BLOCK
        numbers = range(first, min(first + BLOCK, len(self.files.validation)))
        bytes_each = 3 * size * size

        def write(out: IO[bytes]) -> list[int]:
            for i in numbers:
                out.write(make(self.files.validation[i]).tobytes())
                self.tick()
            return [*numbers]

        block = self.file(f"{size}-centre-bicubic-{first:06d}", len(numbers) * bytes_each, write)
        if block is None:
            return None
        part = block.part((number - first) * bytes_each, bytes_each)
        return Image.frombytes("RGB", (size, size), bytes(part))


def _open(path: Path) -> Mapped | None:
    try:
        return Mapped(path)
    except FileNotFoundError:
        return None
    except ValueError:  # Not written by this module.
        path.unlink(missing_ok=True)
        return None


def is_unused(path: Path, remove: bool = False) -> bool:
    """Return whether no process holds the lock of a file in the cache; if so, remove the file if requested."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove:
                path.unlink()
            return True
    except OSError:
        return False


def remove_unused(path: Path) -> bool:
    """Remove a file of the cache that no process uses; returns whether it did."""
    return is_unused(path, remove=True)
