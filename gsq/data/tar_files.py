"""Images in a plain tar file: members, and links to members."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gsq.data.listing import FORMER_SUFFIXES, IMAGE_SUFFIXES, UNREAD_SUFFIXES, is_hidden, suffix_of
from gsq.errors import UserError

# Links in a row; operating systems follow as many.
MAX_STEPS = 40


class Member(NamedTuple):
    """An image in a shard, or something that looks like one."""

    name: str
    """Within the shard."""
    start: int
    """First byte in the shard; in Parquet the row of the row group."""
    size: int
    group: int
    """Row group in Parquet, else -1."""
    data: bytes | None
    """None if there is no image."""
    kind: str = ""
    """One of gsq.data.manifest.KINDS if it is left out whatever its content."""
    reason: str = ""
    former: bool = True
    """Whether earlier versions of gsq, which neither followed links nor skipped hidden files, read it."""


def tar_images(shard: Path) -> Iterator[Member]:
    """Yield the images of a tar file in order, then those behind links. Raises UserError for a damaged file."""
    if not shard.stat().st_size:
        raise UserError(f"{shard}: is empty; get it again")
    # Every file by its path within the shard, and every link with the path that it leads to.
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar, shard.open("rb") as file:
            for member in tar:
                path = posixpath.normpath(member.name)
                if member.issym() or member.islnk():
                    # A hard link names its member from the top, a symbolic one from its own folder.
                    base = posixpath.dirname(path) if member.issym() else ""
                    links[path] = posixpath.normpath(posixpath.join(base, member.linkname))
                elif member.isfile():
                    if member.issparse() and suffix_of(member.name) in IMAGE_SUFFIXES:
                        raise UserError(f"{shard}: {member.name} is stored as a sparse file; write the tar without -S")
                    files[path] = member.offset_data, member.size
                    if found := _image(file, member.name, *files[path]):
                        yield found
            # Cut between two members, a tar only lacks the two blocks of zeros at its end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark")
            yield from _linked(file, files, links)
    except tarfile.TarError as error:
        raise UserError(f"{shard}: is not a tar file, or was cut short ({error}); get it again") from None
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror or error})") from None


def _image(file: BinaryIO, name: str, start: int, size: int, former: bool = True) -> Member | None:
    """The member as an image; None if its name says that it is none."""
    suffix = suffix_of(name)
    if suffix in UNREAD_SUFFIXES:
        hidden = any(map(is_hidden, name.split("/")))
        return None if hidden else Member(name, start, size, -1, None, "format", suffix[1:], False)
    if suffix not in IMAGE_SUFFIXES:
        return None
    kind = reason = "hidden" if any(map(is_hidden, name.split("/"))) else ""
    file.seek(start)
    return Member(name, start, size, -1, file.read(size), kind, reason, former and suffix in FORMER_SUFFIXES)


def _linked(file: BinaryIO, files: dict[str, tuple[int, int]], links: dict[str, str]) -> Iterator[Member]:
    """Yield what links lead to: a member of the shard, or everything in a folder of it."""
    targets = {name: _target(name, links) for name in links}
    images = {name: files[target] for name, target in targets.items() if target in files} | files
    for link, target in targets.items():
        if target in files:
            found = _image(file, link, *files[target], former=False)
            if found is not None:
                yield found
            continue
        inside = f"{target}/" if target not in (None, ".") else ""
        below = [] if target is None else [name for name in images if name.startswith(inside)]
        if below and link.startswith(inside):
            yield Member(link, -1, 0, -1, None, "link", "a link to a folder that it is in", False)
            continue
        if not below and (not suffix_of(link) or suffix_of(link) in IMAGE_SUFFIXES):
            yield Member(
                link, -1, 0, -1, None, "link", f"a link to {links[link]}, which this shard does not hold", False
            )
        for name in below:
            found = _image(file, f"{link}/{name[len(inside) :]}", *images[name], former=False)
            if found is not None:
                yield found


def _target(name: str, links: dict[str, str]) -> str | None:
    """The path that a path leads to once links are followed; None for a circle."""
    for _ in range(MAX_STEPS):
        parts = name.split("/")
        heads = ("/".join(parts[:i]) for i in range(1, len(parts) + 1))
        head = next((head for head in heads if head in links), None)
        if head is None:
            return name
        name = posixpath.normpath(posixpath.join(links[head], name[len(head) + 1 :]))
    return None
