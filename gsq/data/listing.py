"""The images of a folder: recognised by name, found through links, without files that no person put there."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


def _suffixes(words: str) -> tuple[str, ...]:
    return tuple(f".{word}" for word in words.split())


# The formats of earlier versions: a data set of these alone keeps its fingerprint.
FORMER_SUFFIXES = _suffixes("jpg jpeg png webp")
IMAGE_SUFFIXES = (*FORMER_SUFFIXES, *_suffixes("jpe jfif avif bmp gif jp2 pbm pgm ppm pnm tif tiff"))
# Pictures that Pillow reads badly or not at all: vector drawings, camera files, layers, icons, rare formats.
UNREAD_SUFFIXES = _suffixes(
    """
    ai arw bpg cr2 cr3 cur dcm dds dng emf eps exr flif fits hdr heic heif hif icns ico j2c j2k jpf jpm jpx jxl jxr nef
    nii orf pcx pfm psb psd qoi raf raw rw2 sgi sr2 svg svgz tga wmf xcf xpm
    """
)
# Other files that often lie beside images; their names suffice to skip them.
_OTHER_SUFFIXES = _suffixes(
    """
    7z arrow avi bin bz2 cfg ckpt cls csv db doc docx gz h5 hdf5 html ini ipynb json jsonl lmdb lock log mat md md5 mdb
    metadata mkv mov mp3 mp4 npy npz parquet pdf pickle pkl pt pth py rar rst safetensors sh sha256 sqlite tar tfrecord
    tgz toml tsv txt wav webm xls xlsx xml xz yaml yml zip zst
    """
)
# Names, in lower case, that operating systems, storage boxes and archivers write; dot files are hidden too.
_HIDDEN = (
    "@eadir @recycle @recently-snapshot #recycle #snapshot $recycle.bin __macosx desktop.ini ehthumbs.db lost+found "
    "thumbs.db"
)
_HIDDEN_NAMES = frozenset((*_HIDDEN.split(), "system volume information"))
# Nested links to folders; deeper ones are taken for a circle.
MAX_LINKS = 4
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


class Entry(NamedTuple):
    """A file below a folder."""

    name: str
    """Path below the folder, with forward slashes."""
    kind: str = ""
    """Empty for a readable file, else one of gsq.data.manifest.KINDS."""
    reason: str = ""
    linked: bool = False
    """Whether it was reached through a link to a folder."""


def is_hidden(name: str) -> bool:
    """Whether no person made the last part of a path: ``.thumbnails``, ``._a.jpg``, ``@eaDir``."""
    return (name[:1] == "." and name not in (".", "..")) or name.lower() in _HIDDEN_NAMES


def suffix_of(name: str) -> str:
    """``.jpg`` of ``a/B.JPG``."""
    return os.path.splitext(name)[1].lower()


def walk(root: Path) -> Iterator[Entry]:
    """Yield every file below a folder, unsorted. Follows links to files and folders, but never in a circle.

    Hidden files have the kind hidden; links below hidden folders are not followed. Dead links, links into a folder
    above them and unreadable folders are entries of their own.
    """
    above = frozenset(filter(None, (_identity(str(folder)) for folder in (root, *root.parents))))
    # Name, identities of the folders above, links on the way, and whether it is hidden.
    waiting: list[tuple[str, frozenset[tuple[int, int]], int, bool]] = [("", above, 0, False)]
    while waiting:
        folder, above, links, hidden = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as found:
                entries = list(found)
        except OSError as error:
            yield Entry(folder or ".", "unreadable", f"a folder that cannot be read ({error.strerror})")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            unseen = hidden or is_hidden(entry.name)
            link = entry.is_symlink()
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                if not unseen:
                    yield Entry(name, *_dead(entry.path, link, error))
                continue
            if not stat.S_ISDIR(mode):
                if unseen:
                    yield Entry(name, "hidden", "hidden", links > 0)
                elif stat.S_ISREG(mode):
                    yield Entry(name, linked=links > 0)
                else:
                    yield Entry(name, "unreadable", "no regular file")
                continue
            if link and unseen:
                continue
            identity = _identity(entry.path)
            if identity is None or (identity in above and (link or links)):
                yield Entry(name, "link", "a link to a folder that it is in")
            elif links + link > MAX_LINKS:
                yield Entry(name, "link", f"a link below {MAX_LINKS} other links")
            else:
                waiting.append((name, above | {identity}, links + link, unseen))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _dead(path: str, link: bool, error: OSError) -> tuple[str, str]:
    if not link:
        return "unreadable", f"cannot be read ({error.strerror})"
    return "link", f"a link to {os.readlink(path)}, which cannot be reached ({error.strerror})"


def classified(entry: Entry, root: Path) -> Entry | None:
    """The entry with its kind as an image; None if it is no image.

    Kind ``format``: a picture in a format that is not read, or one without a suffix of images, recognised by its first
    bytes.
    """
    suffix = suffix_of(entry.name)
    if entry.kind == "hidden":
        return entry if suffix in IMAGE_SUFFIXES else None
    if entry.kind:
        return None if suffix in _OTHER_SUFFIXES else entry
    if suffix in IMAGE_SUFFIXES:
        return entry if _has_decoder(suffix) else entry._replace(kind="format", reason=f"{suffix[1:]}, without plugin")
    if suffix in UNREAD_SUFFIXES:
        return entry._replace(kind="format", reason=suffix[1:])
    if suffix not in _OTHER_SUFFIXES and _looks_like_an_image(root / entry.name):
        return entry._replace(kind="format", reason="without a suffix of images")
    return None


def _has_decoder(suffix: str) -> bool:
    if suffix in FORMER_SUFFIXES or suffix not in (".avif", ".jp2"):
        return True
    from PIL import Image, features

    if suffix == ".jp2":
        return bool(features.check("jpg_2000"))
    return suffix in Image.registered_extensions()


def _looks_like_an_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    # avif and heic; webp.
    return start.startswith(_MAGIC) or start[4:12] in (b"ftypavif", b"ftypheic") or start[8:12] == b"WEBP"


def in_order(name: str) -> list[str]:
    """Sorting key of names: folder by folder."""
    return name.split("/")


def utf8(name: str) -> str:
    """A name with bytes that are not UTF-8 written as ``\\xe9``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(name: str) -> str:
    """A name that prints on one line: like ``utf8``, with control characters escaped too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in utf8(name))


def some(names: Iterable[str], most: int = 5) -> str:
    """The first ``most`` names, and "..." if there are more."""
    listed = list(names)
    return ", ".join(map(shown, listed[:most])) + (", ..." if len(listed) > most else "")


def counted(reasons: Iterable[str]) -> str:
    """Frequencies, the highest first: ``12 svg, 3 heic``."""
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(reasons).most_common())
