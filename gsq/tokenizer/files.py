"""The indices of a folder of images as Parquet shards.

Shapes: f downsampling, h x w latent positions of K indices. Pixels that f does not divide are cropped off evenly.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gsq.data.folders import find_images, nothing_found
from gsq.data.images import BrokenImageError, decode, require_large_enough
from gsq.data.listing import shown, utf8
from gsq.data.manifest import LeftOut
from gsq.errors import UserError, positive
from gsq.files import leftovers, read_json, whole, write_json
from gsq.tokenizer.inputs import centre_square, crop_to_multiple, images_at_once, pixels, require_tile, tiles_for
from gsq.tokenizer.memory import without_gaps
from gsq.tokenizer.reconstructions import make_folder, mendable
from gsq.tokenizer.tiles import Tiles
from gsq.tokenizer.tiles import encode as encode_tiles
from gsq.tokenizer.tokenizer import Tokenizer

# Readers of the folder ignore names that begin with an underscore.
MANIFEST, FORMAT = "_manifest.json", 1
# Columns of a shard: path below the folder, and indices flattened from (h, w, K), K fastest.
COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("latent_height", pa.int32()),
        ("latent_width", pa.int32()),
        ("indices_per_position", pa.int32()),
        ("indices", pa.list_(pa.int32())),
    ]
)
# Pixels of images that wait for others of their size (200 MB).
WAITING_PIXELS = 1 << 26
# Pixels of a batch of images in their own size, some of which have many megapixels.
BATCH_PIXELS = 1 << 20


@dataclass
class Summary:
    """The result of ``tokenize_folder``."""

    output: str
    images: int = 0
    """Tokenized images, in all shards."""
    positions: int = 0
    """Latent positions, in all shards."""
    bits_per_token: float = 0.0
    shards: int = 0
    shards_before: int = 0
    """How many of the shards existed already."""
    broken: list[tuple[str, str]] = field(default_factory=list)
    """Unusable images, with the reasons."""
    left_out: list[LeftOut] = field(default_factory=list)
    """Files that were not tried: other formats, hidden files, dead links."""
    in_tiles: list[str] = field(default_factory=list)
    """Images that were cut into tiles with another result than that of the whole image."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        values["broken"] = [{"path": shown(path), "reason": reason} for path, reason in self.broken]
        values["left_out"] = [{**one._asdict(), "name": shown(one.name)} for one in self.left_out]
        return values


def list_images(folder: Path) -> list[str]:
    """Names of the images below ``folder``, sorted, with forward slashes. Raises UserError if there are none."""
    return _list_images(folder)[0]


def _list_images(folder: Path) -> tuple[list[str], list[LeftOut]]:
    """Names of the images, and the files left out: the same as for a data set to train on."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; a folder of images is needed"
        )
    entries = find_images(folder)
    names = sorted(entry.name for entry in entries if not entry.kind)
    if not names:
        raise nothing_found(f"{folder}:", entries)
    return names, [LeftOut(entry.name, entry.kind, entry.reason) for entry in entries if entry.kind]


def tokenize_folder(
    tokenizer: Tokenizer,
    folder: Path,
    output: Path,
    *,
    size: int | None = None,
    tile: int | None = None,
    shard_size: int = 1000,
    batch_size: int = 8,
    on_images: Callable[[int], None] = lambda count: None,
    on_start: Callable[[int], None] = lambda total: None,
    on_part: Callable[[str], None] = lambda what: None,
) -> Summary:
    """Write the indices of every image below ``folder`` to ``output``/indices-NNNNN.parquet, and a _manifest.json.

    A shard holds the images of ``shard_size`` file names; it gets its name when it is whole, so that a call that was
    stopped goes on where it was. size: the centre square of each image at size x size; None keeps its own size,
    cropped to multiples of f. tile: as in ``gsq.tokenizer.inputs.tiles_for``. Columns: ``COLUMNS``; the
    Parquet schema's metadata repeat the manifest under "gsq".
    Raises UserError for bad input, and if ``output`` holds another tokenizer's indices, or those of other images
    (told by their names and file sizes). Which files are images, and which of these are used, is as for training; a
    name that is not UTF-8 stands in ``path`` with its bytes as ``\\xe9``.
    """
    started = time.monotonic()
    positive("--shard-size", shard_size)
    positive("--batch-size", batch_size)
    f = tokenizer.downsample
    if size is not None and (size < f or size % f):
        raise UserError(f"--size: {size} is not a multiple of f = {f}; {max(f, size // f * f)} would be")
    require_tile(tokenizer, tile)
    names, left_out = _list_images(folder)
    listing = hashlib.sha256(json.dumps([(n, (folder / n).stat().st_size) for n in names]).encode()).hexdigest()
    manifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint(),
        "source": Path(tokenizer.source).name,
        "downsample": f,
        "index_sizes": list(tokenizer.index_sizes),
        "order": "indices.reshape(latent_height, latent_width, indices_per_position)",
        "size": size,
        **({} if tile is None else {"tile": tile}),
        "shard_size": shard_size,
        "images": len(names),
        "listing_sha256": listing,
    }
    _claim(output, manifest)
    total = math.ceil(len(names) / shard_size)
    summary = Summary(str(output), bits_per_token=tokenizer.config.bits_per_token, shards=total, left_out=left_out)
    on_start(len(names))
    for number in range(total):
        part = names[number * shard_size : (number + 1) * shard_size]
        path = output / f"indices-{number:05d}.parquet"
        found = _read_shard(path, manifest)
        if found is not None:
            summary.shards_before += 1
            on_images(len(part))
        else:
            maker = _ShardMaker(tokenizer, folder, size, tile, batch_size, on_images, on_part)
            found = maker.make(part)
            table, broken, in_tiles = found
            found_broken = [(one.name, one.reason, one.kind) for one in broken]
            more = {"broken": found_broken, **({"in_tiles": in_tiles} if in_tiles else {})}
            metadata = {"gsq": json.dumps({**manifest, "shard": number, **more})}
            with mendable(str(path), "use a smaller --shard-size"), whole(path) as temporary:
                pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")
            for left in leftovers(path):
                left.unlink(missing_ok=True)
        table, broken, in_tiles = found
        summary.in_tiles += in_tiles
        summary.images += len(table)
        summary.positions += sum(
            h * w for h, w in zip(table["latent_height"].to_pylist(), table["latent_width"].to_pylist(), strict=True)
        )
        summary.broken += [(one.name, one.reason) for one in broken]
    if not summary.images:
        name, reason = summary.broken[0]
        raise UserError(f"{folder}: none of {len(names)} images can be read; {shown(name)}: {reason}")
    summary.seconds = time.monotonic() - started
    return summary


# Fields of the manifest that shards must share, with names for messages.
_SAME = {
    "format": "format",
    "tokenizer": "tokenizer",
    "size": "--size",
    "tile": "--tile",
    "shard_size": "--shard-size",
    "images": "number of images",
    "listing_sha256": "names and sizes of the images",
}


def _claim(output: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or check that the existing one is the same."""
    make_folder(output)
    path = output / MANIFEST
    if not path.exists():
        if any(output.glob("indices-*.parquet")):
            raise UserError(f"--output: {output} holds shards without a {MANIFEST}; choose another folder")
        with mendable(str(output), ""):
            write_json(path, manifest)
        return
    there = read_json(path)
    if not isinstance(there, dict):
        raise UserError(f"{path}: not a manifest of gsq tokenize; choose another --output")
    changed = [
        f"{words} ({there.get(key)} there, {manifest.get(key)} now)" if key != "listing_sha256" else words
        for key, words in _SAME.items()
        if there.get(key) != manifest.get(key)
    ]
    if changed:
        raise UserError(
            f"--output: {output} holds other indices; they differ in {', '.join(changed)}. Choose another folder, or "
            "remove that one"
        )


# Table of a shard, its broken images, and the names of those in tiles with another result than the whole image's.
Made = tuple[pa.Table, list[LeftOut], list[str]]


def _read_shard(path: Path, manifest: dict[str, Any]) -> Made | None:
    """An existing shard, of its table only the shapes; None if it is missing, damaged or of another manifest."""
    try:
        with pq.ParquetFile(path) as file:
            metadata = json.loads((file.schema_arrow.metadata or {}).get(b"gsq", b"{}"))
            if any(metadata.get(key) != manifest.get(key) for key in _SAME):
                return None
            table = file.read(columns=["latent_height", "latent_width"])
    except (OSError, ValueError):  # pyarrow's errors derive from these
        return None
    # Shards of earlier versions have no kind.
    broken = [LeftOut(name, kind[0] if kind else "broken", reason) for name, reason, *kind in metadata["broken"]]
    return table, broken, metadata.get("in_tiles", [])


@dataclass
class _ShardMaker:
    """The rows of one shard. Images of one size share a batch."""

    tokenizer: Tokenizer
    folder: Path
    size: int | None
    tile: int | None
    batch_size: int
    on_images: Callable[[int], None]
    on_part: Callable[[str], None]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    waiting: dict[tuple[int, ...], list[tuple[str, str, Tensor]]] = field(default_factory=dict)
    in_tiles: list[str] = field(default_factory=list)

    def make(self, names: Sequence[str]) -> Made:
        """The shard of these images."""
        broken: list[LeftOut] = []
        for name in names:
            try:
                self._take(name)
            except (OSError, BrokenImageError) as error:
                kind = error.kind if isinstance(error, BrokenImageError) else "unreadable"
                broken.append(LeftOut(name, kind, str(getattr(error, "strerror", None) or error)))
                self.on_images(1)
        for batch in self.waiting.values():
            if batch:
                self._flush(batch)
        rows = [self.rows[name] for name in names if name in self.rows]
        return pa.Table.from_pylist(rows, schema=COLUMNS), broken, self.in_tiles

    def _take(self, name: str) -> None:
        """Read an image, and encode a batch that is full."""
        data = (self.folder / name).read_bytes()
        tiles = tiles_for(self.tokenizer, data, self.size, self.tile)
        image = decode(data)
        part = centre_square(image, self.size) if self.size else crop_to_multiple(image, self.tokenizer.downsample)
        require_large_enough(*image.size)
        tensor, sha256 = pixels(part), hashlib.sha256(data).hexdigest()
        if tiles is not None:
            self._encode_in_tiles(name, sha256, tensor, tiles)
            return
        batch = self.waiting.setdefault(tuple(tensor.shape), [])
        batch.append((name, sha256, tensor))
        if len(batch) == self.batch_size or (self.size is None and len(batch) * tensor[0].numel() >= BATCH_PIXELS):
            self._flush(batch)
        elif sum(math.prod(shape[1:]) * len(batch) for shape, batch in self.waiting.items()) > WAITING_PIXELS:
            self._flush(max(self.waiting.values(), key=len))

    def _encode_in_tiles(self, name: str, sha256: str, image: Tensor, tiles: Tiles) -> None:
        def tell(done: int, total: int) -> None:
            self.on_part(f"{shown(name)}, tile {done:,} of {total:,}")

        with mendable(shown(name), "use a smaller --tile, or --size"), without_gaps():
            indices = encode_tiles(self.tokenizer, image, tiles, tell)
        if not tiles.exact:
            self.in_tiles.append(name)
        self._add(name, sha256, image, indices)
        self.on_images(1)

    def _flush(self, batch: list[tuple[str, str, Tensor]]) -> None:
        pixels_of_one = batch[0][2][0].numel()
        at_once = min(len(batch), images_at_once(self.tokenizer, pixels_of_one))
        images = torch.stack([image for _, _, image in batch])
        with (
            mendable(shown(batch[0][0]), "use a smaller --batch-size, or --size"),
            without_gaps() if at_once * pixels_of_one > BATCH_PIXELS else nullcontext(),
        ):
            indices = torch.cat([self.tokenizer.encode(part) for part in images.split(at_once)])
        for (name, sha256, image), found in zip(batch, indices, strict=True):
            self._add(name, sha256, image, found)
        self.on_images(len(batch))
        batch.clear()

    def _add(self, name: str, sha256: str, image: Tensor, indices: Tensor) -> None:
        """indices: (K, h, w)."""
        found = indices.permute(1, 2, 0).to("cpu", torch.int32).numpy()
        values = (utf8(name), sha256, *image.shape[1:], *found.shape, found.reshape(-1))
        self.rows[name] = dict(zip(COLUMNS.names, values, strict=True))
