"""Images in WebDataset shards (.tar) and in those of Hugging Face datasets (.parquet, .arrow).

The first pass over a shard makes its manifest, the place and sha256 of each image, which is cached by the shard's size
and time. From then on any image is read directly: from a tar or Arrow file as a range of bytes, from a Parquet file by
decoding its row group (execution.stage_data unpacks it). Imports pyarrow for its shards only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from gsq.config.run import DataConfig
from gsq.data.images import BrokenImageError, measure
from gsq.data.kept import Kept
from gsq.data.listing import IMAGE_SUFFIXES, shown
from gsq.data.manifest import (
    Candidate,
    ImageFile,
    LeftOut,
    Manifest,
    complete,
    data_root,
    manifests_folder,
    write_cache,
)
from gsq.data.progress import shown_after_a_second
from gsq.data.shard_files import Shard, list_shards
from gsq.data.tar_files import Member, tar_images
from gsq.errors import UserError
from gsq.surroundings import cores

# Memory for decoded row groups [bytes].
ROW_GROUP_BYTES = 256 << 20
# Version of the content of a cached manifest.
FORMAT = 2


def shard_manifest(config: DataConfig) -> Manifest:
    """The manifest of a folder of shards, or of one shard.

    The shards' paths are the split if they mark some as train and some as validation (``train/``,
    ``data/validation-00000-of-00002.parquet``, ``photos-val-000000.tar``); others, such as test, are then left out.
    Otherwise images are held out by a hash of their content. Raises UserError for missing or damaged shards.
    """
    root = data_root(config)
    shards, left_out = list_shards(config.kind, root)
    base = root if root.is_dir() else root.parent
    where = f"{base}\n{config.image_column}".encode(errors="surrogateescape")
    folder = manifests_folder() / hashlib.sha256(where).hexdigest()[:16]
    scan = partial(_scan_or_cached, config.image_column, folder)
    pool = ThreadPoolExecutor(min(8, cores()))
    try:
        what = f"looking at the shards of {shown(config.path)}"
        scanned = list(shown_after_a_second(pool.map(scan, shards), what, len(shards)))
    finally:
        pool.shutdown(cancel_futures=True)
    _require_images(root, shards, scanned)
    candidates = []
    for shard, content in zip(shards, scanned, strict=True):
        if not content["images"]:
            left_out.append(LeftOut(shard.name, "empty", "no images"))
        for inner, start, size, group, sha256, width, height, kind, reason, former in content["images"]:
            file = ImageFile(
                f"{shard.name}/{inner}", shard.path, sha256, start, size, group, content["column"], width, height
            )
            candidates.append(Candidate(file, kind, reason, former, shard.split))
    return complete(config, str(root), candidates, _half_a_split(config, shards), left_out)


def _require_images(root: Path, shards: list[Shard], scanned: list[dict[str, Any]]) -> None:
    if any(not image[7] for content in scanned for image in content["images"]):
        return
    if all(not content["images"] for content in scanned):
        what = f"images ({', '.join(IMAGE_SUFFIXES)})" if shards[0].path.suffix.lower() == ".tar" else "rows"
        raise UserError(
            f"{shards[0].path}: holds no {what}{f', nor does another shard of {root}' if len(shards) > 1 else ''}"
        )


def _half_a_split(config: DataConfig, shards: list[Shard]) -> list[str]:
    """A note if shards are marked as one split only, so that the other is held out of them."""
    marked = {shard.split for shard in shards}
    if {"train", "validation"} <= marked or not marked & {"train", "validation"}:
        return []
    one, other = ("train", "validation") if "train" in marked else ("validation", "train")
    return [
        f"split: shards are marked {one}, and none {other}: data.validation_share {config.validation_share:g} of their "
        "images is held out, by a hash of the content"
    ]


# Reading through a shard.


def _scan_or_cached(image_column: str, folder: Path, shard: Shard) -> dict[str, Any]:
    """Column and images of a shard. Each image is a list: the fields of Member up to group, sha256, width, height, kind
    and reason if it is left out, and whether earlier versions read it."""
    stat = shard.path.stat()
    stamp = [FORMAT, stat.st_size, stat.st_mtime_ns]
    cache = folder / f"{hashlib.sha256(shard.name.encode(errors='surrogateescape')).hexdigest()[:16]}.json"
    try:
        known = json.loads(cache.read_text())
        if known["stamp"] == stamp:
            return dict(known)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    column, images = _scanner(shard.path)(shard.path, image_column)
    try:
        entries = [_entry(image) for image in images]
    except MemoryError:
        raise UserError(f"{shard.path}: there is not enough memory to decode one of its images") from None
    content = {"stamp": stamp, "column": column, "images": entries}
    write_cache(cache, content)
    return content


def _entry(image: Member) -> list[Any]:
    sha256, width, height, kind, reason = "", -1, -1, image.kind, image.reason
    former = image.former
    if image.data is not None:
        try:
            width, height = measure(image.data)
        except BrokenImageError as error:
            kind, reason = kind or error.kind, reason or str(error)
            former = former and error.kind == "small"
        if former or not kind:
            sha256 = hashlib.sha256(image.data).hexdigest()
    elif not kind:
        kind, reason, former = "broken", "no image", False
    return [image.name, image.start, image.size, image.group, sha256, width, height, kind, reason, former]


def _scanner(shard: Path) -> Callable[[Path, str], tuple[str, Iterator[Member]]]:
    return {".tar": _scan_tar, ".parquet": _scan_parquet, ".arrow": _scan_arrow}[shard.suffix.lower()]


def _scan_tar(shard: Path, _: str) -> tuple[str, Iterator[Member]]:
    return "", tar_images(shard)


def _scan_parquet(shard: Path, image_column: str) -> tuple[str, Iterator[Member]]:
    import pyarrow.parquet as pq

    with _whole_shard(shard):
        parquet = pq.ParquetFile(shard)
    column = find_column(shard, parquet.schema_arrow, image_column)

    def images() -> Iterator[Member]:
        number = empty = 0
        with _whole_shard(shard):
            for group in range(parquet.num_row_groups):
                row = 0
                for batch in parquet.iter_batches(64, [group], [column]):
                    for value in _bytes(batch.column(0)):
                        data = value.as_py()
                        empty += data is None
                        yield Member(str(number), row, len(data or b""), group, data)
                        row, number = row + 1, number + 1
        _require_embedded(shard, number, empty, column)

    return column, images()


def _scan_arrow(shard: Path, image_column: str) -> tuple[str, Iterator[Member]]:
    import pyarrow as pa

    with _whole_shard(shard):
        whole = pa.memory_map(str(shard)).read_buffer()
        try:
            reader: Any = pa.ipc.open_stream(whole)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(whole)
            batches: Iterator[Any] = (file.get_batch(i) for i in range(file.num_record_batches))
            schema = file.schema
        else:
            batches, schema = iter(reader), reader.schema
    column = find_column(shard, schema, image_column).removesuffix(".bytes")

    def images() -> Iterator[Member]:
        number = empty = 0
        with _whole_shard(shard):
            for batch in batches:
                for start, size in _ranges(_bytes(batch.column(column)), whole):
                    if size > 0 and not 0 <= start <= whole.size - size:
                        raise UserError(f"{shard}: is compressed inside; datasets' save_to_disk writes it plainly")
                    empty += size < 0
                    data = None if size < 0 else bytes(whole[start : start + size])
                    yield Member(str(number), start, max(size, 0), -1, data)
                    number += 1
        _require_embedded(shard, number, empty, column)

    return column, images()


def _ranges(column: Any, whole: Any) -> Iterator[tuple[int, int]]:
    """Start in the file's buffer and size of each value of a binary array; the size of a null is -1."""
    import numpy as np
    import pyarrow.types as types

    width = np.int64 if types.is_large_binary(column.type) else np.int32
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, width)[column.offset : column.offset + len(column) + 1].tolist()
    base = data.address - whole.address if data is not None else 0
    for valid, start, end in zip(column.is_valid().to_pylist(), ends, ends[1:], strict=False):
        yield base + start, end - start if valid else -1


@contextmanager
def _whole_shard(shard: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged shard into a UserError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = shard.suffix[1:]
        raise UserError(f"{shard}: is not a {kind} file, or was cut short ({reason}); get it again") from None


def _require_embedded(shard: Path, rows: int, empty: int, column: str) -> None:
    if rows and empty == rows:
        raise UserError(
            f"{shard}: column {column} holds no image, perhaps only paths of images; write the data set with datasets' "
            "to_parquet or save_to_disk, which put the images into the shards, or use data.kind image_folder"
        )


def find_column(shard: Path, schema: Any, wanted: str) -> str:
    """Path of the image bytes in a shard's Arrow schema: ``image``, or ``image.bytes`` of {bytes, path}.

    Raises UserError, which names the columns, if none or several could be meant.
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
                f"data.image_column: '{wanted}' is not a column of images ({{bytes, path}}, or binary) in {shard}, "
                f"which has {columns}"
            )
        return found[wanted]
    if not found:
        raise UserError(f"{shard}: no column of images ({{bytes, path}}, or binary) among its columns {columns}")
    if len(found) > 1:
        # The metadata of datasets, or the usual name, may settle it.
        likely = [name for name in found if name in _declared(schema)] or [name for name in found if name == "image"]
        if len(likely) != 1:
            raise UserError(f"data.image_column: name one of {', '.join(found)}, the columns that {shard} has")
        return found[likely[0]]
    return next(iter(found.values()))


def _declared(schema: Any) -> list[str]:
    """Columns that the metadata of datasets declare to be images."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [name for name, feature in features.items() if feature.get("_type") == "Image"]
    except (TypeError, KeyError, ValueError, AttributeError):
        return []


def _bytes(column: Any) -> Any:
    """The binary array of a column, also of one of {bytes, path}."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    return pc.struct_field(column, "bytes") if types.is_struct(column.type) else column


# Reading one image.


@lru_cache(maxsize=256)
def _opened(path: Path) -> Any:
    # The file closes once nothing refers to it, so never while another thread reads.
    return path.open("rb", buffering=0)


@lru_cache(maxsize=4096)
def _footer(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_metadata(path)


_row_groups: Kept[Any] = Kept(ROW_GROUP_BYTES, lambda column: int(column.nbytes))


def _row_group(path: Path, group: int, column: str) -> Any:
    def read() -> Any:
        import pyarrow.parquet as pq

        table = pq.ParquetFile(path, metadata=_footer(path)).read_row_group(group, [column], use_threads=False)
        return _bytes(table.column(0))

    return _row_groups((path, group, column), read)


def read_bytes(file: ImageFile) -> bytes:
    """The content of an image file or of an image in a shard. Raises OSError if it cannot be read."""
    if file.start < 0:
        return file.path.read_bytes()
    if file.row_group < 0:
        shard = _opened(file.path)
        return os.pread(shard.fileno(), file.size, file.start)
    import pyarrow as pa

    try:
        return bytes(_row_group(file.path, file.row_group, file.column)[file.start].as_py() or b"")
    except (pa.ArrowException, IndexError) as error:
        raise OSError(str(error)) from None


def read_checked(file: ImageFile) -> bytes:
    """Like ``read_bytes``. Raises UserError if the image cannot be read or has changed since its manifest was taken."""
    where = f"{shown(str(file.path))}: {shown(file.name)}"
    try:
        data = read_bytes(file)
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror or error})") from None
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise UserError(
            f"{where}: its content has changed since the fingerprint was taken (sha256 {file.sha256} then); "
            "plan again if the images were meant to change"
        )
    return data
