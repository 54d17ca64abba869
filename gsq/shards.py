"""Images in WebDataset shards (.tar) and in those of Hugging Face datasets (.parquet, .arrow).

A shard is read through once, for its manifest: where each image lies and its sha256, cached by the shard's size and
time. After that any image is reached at once: in a tar or an Arrow file as a range of bytes, in a Parquet file by its
row group, which has to be decoded as a whole; execution.stage_data unpacks it. Imports pyarrow for its shards only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from gsq.config import DataConfig
from gsq.datasets import IMAGE_SUFFIXES, ImageFile, Manifest, cache_folder, complete, data_root, held_out, write_cache
from gsq.errors import Missing, UserError
from gsq.images import broken

SUFFIXES = {"webdataset": (".tar",), "huggingface": (".parquet", ".arrow")}
# Words of a shard's path that name its split.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Decoded row groups that are kept.
ROW_GROUP_BYTES = 256 << 20
# Raised when what a cached manifest holds changes.
FORMAT = 1

Found = tuple[str, int, int, int, bytes | None]
"""Name within the shard, start, size, row group, content (None: there is no image)."""


def shard_manifest(config: DataConfig) -> Manifest:
    """The manifest of a folder of shards, or of one shard.

    A split is taken from the shards' paths where some are marked train and some validation (``train/``,
    ``data/validation-00000-of-00002.parquet``, ``photos-val-000000.tar``); others, such as test, are left out then.
    Else images are held out by a hash of their content. Raises UserError for shards that are missing or damaged.
    """
    root = data_root(config)
    shards, splits = _list_shards(config.kind, root)
    base = root if root.is_dir() else root.parent
    names = [shard.relative_to(base).as_posix() for shard in shards]
    folder = cache_folder() / hashlib.sha256(f"{base}\n{config.image_column}".encode()).hexdigest()[:16]
    scan = partial(_scan_or_cached, config.image_column, folder)
    pool = ThreadPoolExecutor(_threads())
    try:
        scanned = list(_with_progress(pool.map(scan, shards, names), len(shards), config.path))
    finally:
        pool.shutdown(cancel_futures=True)
    files: list[ImageFile] = []
    unreadable: list[str] = []
    parts: dict[str, list[ImageFile]] = {"train": [], "validation": []}
    for shard, name, split, content in zip(shards, names, splits, scanned, strict=True):
        column = content["column"]
        for inner, start, size, group, sha256 in content["images"]:
            if not sha256:
                unreadable.append(f"{name}/{inner}")
                continue
            file = ImageFile(f"{name}/{inner}", shard, sha256, start, size, group, column)
            files.append(file)
            parts.setdefault(split, []).append(file)
    explicit = {"train", "validation"} <= set(splits)
    train, validation = (parts["train"], parts["validation"]) if explicit else held_out(files, config.validation_share)
    return complete(config, str(root), train, validation, unreadable)


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


def _with_progress(items: Iterator[Any], count: int, path: str) -> Iterator[Any]:
    """The items, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hide = not console.is_terminal
    return iter(track(items, f"reading shards of {path}", count, console=console, transient=True, disable=hide))


def split_of(name: str) -> str:
    """train, validation, test or nothing, as the last part of a path that names a split says."""
    for part in reversed(Path(name).with_suffix("").parts):
        found = {SPLITS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLITS}
        if len(found) == 1:
            return found.pop()
    return ""


def _list_shards(kind: str, root: Path) -> tuple[list[Path], list[str]]:
    suffixes = SUFFIXES[kind]
    if root.is_file():
        if root.suffix not in suffixes:
            raise UserError(f"data.path: {root} is no {' or '.join(suffixes)} file, which data.kind {kind} needs")
        return [root], [""]
    if not root.is_dir():
        hint = "; fetch what is on the hub first: hf download --repo-type dataset ID --local-dir FOLDER"
        raise Missing(
            f"data.path: {root} is neither a folder of {' or '.join(suffixes)} shards nor one of them"
            f"{hint if kind == 'huggingface' else ''}"
        )
    # cache-*.arrow are the intermediate results of datasets.map and its like.
    shards = sorted(p for p in root.rglob("*") if p.suffix in suffixes and p.is_file() and p.name[:6] != "cache-")
    if not shards:
        compressed = next(root.rglob("*.tar.*"), None) if kind == "webdataset" else None
        hint = f"; {compressed.name} is compressed, and only a plain tar can be read at any place" if compressed else ""
        raise UserError(f"data.path: {root} holds no shards ({', '.join(suffixes)}), in no subfolder either{hint}")
    kinds = Counter(shard.suffix for shard in shards)
    if len(kinds) > 1:
        counts = " and ".join(f"{n} {suffix}" for suffix, n in kinds.items())
        raise UserError(f"data.path: {root} holds {counts} files; name the folder of the ones that are meant")
    _require_all(root, shards)
    splits = [split_of(shard.relative_to(root).as_posix()) for shard in shards]
    wanted = set(splits) & {"train", "validation"}
    if wanted:
        # Where training data is marked, what is marked otherwise or not at all is something else.
        known = {"train", "validation"} if len(wanted) == 2 else {*wanted, ""}
        kept = [(shard, split) for shard, split in zip(shards, splits, strict=True) if split in known]
        shards, splits = [shard for shard, _ in kept], [split for _, split in kept]
    return shards, splits


def _require_all(root: Path, shards: list[Path]) -> None:
    """Raise UserError where the shards' numbers say that some are missing."""
    numbered: dict[tuple[Path, str, str], set[int]] = {}
    for shard in shards:
        match = re.fullmatch(r"(.*?)(\d+)(-of-\d+.*)?", shard.stem)
        if match:
            prefix, number, of = match.groups()
            # Hashes after the total differ between shards.
            total = re.match(r"-of-\d+", of)[0] if of else ""  # type: ignore[index]
            numbered.setdefault((shard.parent, prefix, total), set()).add(int(number))
    for (folder, prefix, total), numbers in numbered.items():
        if total:
            expected = set(range(int(total[4:])))
        elif len(numbers) > 1:
            expected = set(range(min(numbers), max(numbers) + 1))
        else:
            continue
        if missing := sorted(expected - numbers):
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            where = (folder / f"{prefix}*").relative_to(root)
            raise UserError(
                f"data.path: {root}: of the shards {where} {len(missing)} of {len(expected)} are missing "
                f"(number {shown}); fetch them, or rename the others if a part is what you want"
            )


# Reading through a shard.


def _scan_or_cached(image_column: str, folder: Path, shard: Path, name: str) -> dict[str, Any]:
    stat = shard.stat()
    stamp = [FORMAT, stat.st_size, stat.st_mtime_ns]
    cache = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(cache.read_text())
        if known["stamp"] == stamp:
            return dict(known)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    column, images = _scanner(shard)(shard, image_column)
    entries = [
        (inner, start, size, group, "" if data is None or broken(data) else hashlib.sha256(data).hexdigest())
        for inner, start, size, group, data in images
    ]
    content = {"stamp": stamp, "column": column, "images": entries}
    write_cache(cache, content)
    return content


def _scanner(shard: Path) -> Callable[[Path, str], tuple[str, Iterator[Found]]]:
    return {".tar": _scan_tar, ".parquet": _scan_parquet, ".arrow": _scan_arrow}[shard.suffix]


def _scan_tar(shard: Path, _: str) -> tuple[str, Iterator[Found]]:
    return "", _tar_images(shard)


def _tar_images(shard: Path) -> Iterator[Found]:
    if not shard.stat().st_size:
        raise UserError(f"{shard}: is empty; get it again")
    count = 0
    try:
        with tarfile.open(shard, "r:") as tar, shard.open("rb") as file:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES):
                    if member.issparse():
                        raise UserError(f"{shard}: {member.name} is stored as a sparse file; write the tar without -S")
                    file.seek(member.offset_data)
                    count += 1
                    yield member.name, member.offset_data, member.size, -1, file.read(member.size)
            # Cut between two members, a tar only lacks the two blocks of zeros at its end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        raise UserError(f"{shard}: is no tar file, or was cut short ({error}); get it again") from None
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror or error})") from None
    if not count:
        raise UserError(f"{shard}: holds no images ({', '.join(IMAGE_SUFFIXES)})")


def _scan_parquet(shard: Path, image_column: str) -> tuple[str, Iterator[Found]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(shard)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from None
    column = find_column(shard, parquet.schema_arrow, image_column)

    def images() -> Iterator[Found]:
        number = empty = 0
        try:
            for group in range(parquet.num_row_groups):
                row = 0
                for batch in parquet.iter_batches(64, [group], [column]):
                    for value in _bytes(batch.column(0)):
                        data = value.as_py()
                        empty += data is None
                        yield str(number), row, len(data or b""), group, data
                        row, number = row + 1, number + 1
        except (pa.ArrowException, OSError) as error:
            raise _damaged(shard, error) from None
        _require_embedded(shard, number, empty, column)

    return column, images()


def _scan_arrow(shard: Path, image_column: str) -> tuple[str, Iterator[Found]]:
    import pyarrow as pa

    try:
        whole = pa.memory_map(str(shard)).read_buffer()
        try:
            reader: Any = pa.ipc.open_stream(whole)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(whole)
            batches: Iterator[Any] = (file.get_batch(i) for i in range(file.num_record_batches))
            schema = file.schema
        else:
            batches, schema = iter(reader), reader.schema
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from None
    column = find_column(shard, schema, image_column).removesuffix(".bytes")

    def images() -> Iterator[Found]:
        number = empty = 0
        try:
            for batch in batches:
                for start, size in _ranges(_bytes(batch.column(column)), whole):
                    if size > 0 and not 0 <= start <= whole.size - size:
                        raise UserError(f"{shard}: is compressed inside; datasets' save_to_disk writes it plainly")
                    empty += size < 0
                    yield str(number), start, max(size, 0), -1, None if size < 0 else bytes(whole[start : start + size])
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise _damaged(shard, error) from None
        _require_embedded(shard, number, empty, column)

    return column, images()


def _ranges(column: Any, whole: Any) -> Iterator[tuple[int, int]]:
    """Start in the file's buffer and size of each value of a binary array; size -1 for a null."""
    import numpy as np
    import pyarrow.types as types

    width = np.int64 if types.is_large_binary(column.type) else np.int32
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1].tolist()
    base = data.address - whole.address if data is not None else 0
    for valid, start, end in zip(column.is_valid().to_pylist(), ends, ends[1:], strict=False):
        yield base + start, end - start if valid else -1


def _damaged(shard: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{shard}: is no {shard.suffix[1:]} file, or was cut short ({reason}); get it again")


def _require_embedded(shard: Path, rows: int, empty: int, column: str) -> None:
    if not rows:
        raise UserError(f"{shard}: holds no rows")
    if empty == rows:
        raise UserError(
            f"{shard}: column {column} holds no image, perhaps only paths of images; write the data set with datasets' "
            "to_parquet or save_to_disk, which put the images into the shards, or use data.kind image_folder"
        )


def find_column(shard: Path, schema: Any, wanted: str) -> str:
    """Where the bytes of images are in a shard's Arrow schema: ``image``, or ``image.bytes`` of {bytes, path}.

    Raises UserError, naming the columns, where none, or several, could be meant.
    """
    import pyarrow.types as types

    def binary(type_: Any) -> bool:
        return types.is_binary(type_) or types.is_large_binary(type_)

    found: dict[str, str] = {}
    for field in schema:
        inner = {child.name: child.type for child in field.type} if types.is_struct(field.type) else {}
        if binary(field.type):
            found[field.name] = field.name
        elif "bytes" in inner and binary(inner["bytes"]):
            found[field.name] = f"{field.name}.bytes"
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    if wanted:
        if wanted not in found:
            raise UserError(
                f"data.image_column: '{wanted}' is no column of images ({{bytes, path}}, or binary) in {shard}, which "
                f"has {columns}"
            )
        return found[wanted]
    if not found:
        raise UserError(f"{shard}: no column of images ({{bytes, path}}, or binary) among its columns {columns}")
    if len(found) > 1:
        # Where the metadata of datasets, or the usual name, leaves no doubt.
        likely = [name for name in found if name in _declared(schema)] or [name for name in found if name == "image"]
        if len(likely) != 1:
            raise UserError(f"data.image_column: name one of {', '.join(found)}, the columns that {shard} has")
        return found[likely[0]]
    return next(iter(found.values()))


def _declared(schema: Any) -> list[str]:
    """Columns that datasets' own metadata declare to be images."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (TypeError, KeyError, ValueError, AttributeError):
        return []


def _bytes(column: Any) -> Any:
    """The binary array of a column, its {bytes, path} taken apart."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    return pc.struct_field(column, "bytes") if types.is_struct(column.type) else column


# Reading one image.


@lru_cache(maxsize=256)
def _opened(path: Path) -> Any:
    # Closed when nothing holds it any more, thus not while another thread reads.
    return path.open("rb", buffering=0)


class _RowGroups:
    """The last decoded row groups, up to ROW_GROUP_BYTES and at least one; shared by threads."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()

    def __call__(self, path: Path, group: int, column: str) -> Any:
        key = (path, group)
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        import pyarrow.parquet as pq

        table = pq.ParquetFile(path, metadata=_footer(path)).read_row_group(group, [column], use_threads=False)
        found = _bytes(table.column(0))
        with self.lock:
            if key not in self.kept:
                self.kept[key] = found
                self.bytes += found.nbytes
                while self.bytes > ROW_GROUP_BYTES and len(self.kept) > 1:
                    self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return found


@lru_cache(maxsize=4096)
def _footer(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_metadata(path)


_row_groups = _RowGroups()


def read_bytes(file: ImageFile) -> bytes:
    """The content of an image file, wherever it lies. Raises OSError where it cannot be read."""
    if file.start < 0:
        return file.path.read_bytes()
    if file.row_group < 0:
        shard = _opened(file.path)
        return os.pread(shard.fileno(), file.size, file.start)
    import pyarrow as pa

    try:
        return bytes(_row_groups(file.path, file.row_group, file.column)[file.start].as_py() or b"")
    except (pa.ArrowException, IndexError) as error:
        raise OSError(str(error)) from None


def read_checked(file: ImageFile) -> bytes:
    """As read_bytes. Raises UserError where it cannot be read, or changed since its manifest was taken."""
    try:
        data = read_bytes(file)
    except OSError as error:
        raise UserError(f"{file.path}: {file.name} cannot be read ({error.strerror or error})") from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(
            f"{file.path}: {file.name}: its content is not what the fingerprint was taken of (sha256 {file.sha256}); "
            "plan again, if the images were meant to change"
        )
    return data
