"""Folders and shards of small images, for the tests of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pictures
import pyarrow as pa
import pyarrow.parquet as pq
from pictures import write_tar

from gsq.config.run import DataConfig
from gsq.data.manifest import Manifest

SMALL = DataConfig(image_size=16)


def folder_config(root: Path, **more: Any) -> DataConfig:
    return DataConfig(kind="image_folder", path=str(root), image_size=16, validation_share=0.3, **more)


def contents(files: Manifest) -> tuple[set[str], set[str]]:
    return {f.sha256 for f in files.train}, {f.sha256 for f in files.validation}


# Shards: the same images as a folder, in all the forms in which they are handed around.


IMAGES = 12


def encoded(i: int, form: str = "JPEG") -> bytes:
    return pictures.encoded(i, form)


def table_of(images: list[bytes | None], **more: list[Any]) -> pa.Table:
    """A table as Hugging Face datasets store images, with a label before them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)], kind)
    return pa.table({"label": list(range(len(images))), "image": column, **more})


def write_parquet(path: Path, images: list[bytes | None], rows: int = 3, **more: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(images, **more), path, row_group_size=rows, compression="snappy")


def write_arrow(path: Path, images: list[bytes | None], stream: bool = True, compression: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table_of(images)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=4)


SHARDS = ["tar", "parquet", "arrow stream", "arrow file"]


def write_shard(form: str, path: Path, images: range) -> None:
    data: list[bytes | None] = [encoded(i) for i in images]
    if form == "tar":
        # Each with its label, as WebDataset has it.
        members = {f"{i:03d}.{end}": encoded(i) if end == "jpg" else b"7" for i in images for end in ("cls", "jpg")}
        write_tar(path.with_suffix(".tar"), members)
    elif form == "parquet":
        write_parquet(path.with_suffix(".parquet"), data)
    else:
        write_arrow(path.with_suffix(".arrow"), data, form == "arrow stream")


def shard_config(root: Path, form: str, **more: Any) -> DataConfig:
    kind = "webdataset" if form == "tar" else "huggingface"
    return DataConfig(kind=kind, path=str(root), image_size=16, **{"validation_share": 0.4, **more})
