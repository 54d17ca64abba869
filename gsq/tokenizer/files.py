"""Apply a tokenizer to image files: reconstructions to look at, and the indices of a folder as Parquet shards.

Shapes: f downsampling, h x w latent positions of K indices. Pixels that f does not divide are cropped off evenly.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from gsq.data.folders import find_images, nothing_found
from gsq.data.images import BrokenImageError, decode, require_large_enough
from gsq.data.listing import UNREAD_SUFFIXES, shown, suffix_of, utf8
from gsq.data.manifest import LeftOut
from gsq.errors import UserError, positive
from gsq.files import leftovers, read_json, whole, write_json
from gsq.metrics.reconstruction import psnr_db, to_uint8
from gsq.tokenizer.inputs import centre_square, crop_to_multiple, pixels, require_memory, to_image
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
# White pixels between an image and its reconstruction.
GAP = 4


@contextmanager
def _mendable(what: str, hint: str) -> Iterator[None]:
    """Turn a lack of memory or disk space into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
            raise UserError(f"{what}: out of memory; {hint}") from None
        raise
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be made a folder ({error.strerror})") from None


@dataclass(frozen=True)
class Reconstruction:
    image: str
    reconstruction: str
    side_by_side: str
    height: int
    """Pixels that were reconstructed: those of the file without the cropped ones."""
    width: int
    cropped: tuple[int, int]
    """Rows and columns cropped off."""
    psnr_db: float | None
    """PSNR of the uint8 images; None for a perfect reconstruction."""


def _read(path: Path, tokenizer: Tokenizer) -> tuple[Image.Image, tuple[int, int]]:
    """The part of an image that can be encoded, and the number of rows and columns cropped off. Raises UserError."""
    if path.is_dir():
        raise UserError(f"{shown(str(path))}: is a folder; name image files, such as {shown(str(path))}/*.jpg")
    try:
        data = path.read_bytes()
        require_memory(tokenizer, data)
        image = decode(data)
        part = crop_to_multiple(image, tokenizer.downsample)
        require_large_enough(*image.size)
    except OSError as error:
        raise UserError(f"{shown(str(path))}: {error.strerror}") from None
    except BrokenImageError as error:
        suffix = suffix_of(path.name)
        reason = f"{suffix[1:]} is not read; convert it to png" if suffix in UNREAD_SUFFIXES else str(error)
        raise UserError(f"{shown(str(path))}: not an image that can be read ({reason})") from None
    return part, (image.height - part.height, image.width - part.width)


def reconstruct_files(
    tokenizer: Tokenizer,
    images: Sequence[Path],
    output: Path,
    on_image: Callable[[Reconstruction], None] = lambda done: None,
) -> list[Reconstruction]:
    """Write NAME.reconstruction.png and NAME.side-by-side.png (original left) below ``output`` for each image.

    Reads every image before it writes anything, and again one at a time, so that only one is in memory. Raises
    UserError for an image that cannot be used.
    """
    for path in images:
        _read(path, tokenizer)
    _make_folder(output)
    done: list[Reconstruction] = []
    names: set[str] = set()
    for path in images:
        image, cropped = _read(path, tokenizer)
        name = next(n for k in range(len(images)) if (n := path.stem + (f"-{k + 1}" if k else "")) not in names)
        names.add(name)
        original = pixels(image)[None]
        with _mendable(shown(str(path)), "use a smaller image, or --device cpu"):
            made = to_uint8(tokenizer.reconstruct(original)).cpu()
        both = Image.new("RGB", (2 * image.width + GAP, image.height), "white")
        both.paste(image, (0, 0))
        both.paste(to_image(made[0]), (image.width + GAP, 0))
        files = output / f"{name}.reconstruction.png", output / f"{name}.side-by-side.png"
        with _mendable(str(output), "use smaller images"):
            for file, picture in zip(files, (to_image(made[0]), both), strict=True):
                with whole(file) as partial:
                    picture.save(partial, format="PNG")
        value = float(psnr_db(made, original))
        done.append(
            Reconstruction(
                image=shown(str(path)),
                reconstruction=shown(str(files[0])),
                side_by_side=shown(str(files[1])),
                height=image.height,
                width=image.width,
                cropped=cropped,
                psnr_db=value if math.isfinite(value) else None,
            )
        )
        on_image(done[-1])
    return done


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
    shard_size: int = 1000,
    batch_size: int = 8,
    on_images: Callable[[int], None] = lambda count: None,
    on_start: Callable[[int], None] = lambda total: None,
) -> Summary:
    """Write the indices of every image below ``folder`` to ``output``/indices-NNNNN.parquet, and a _manifest.json.

    A shard holds the images of ``shard_size`` file names; it gets its name when it is whole, so that a call that was
    stopped goes on where it was. size: the centre square of each image at size x size; None keeps its own size,
    cropped to multiples of f. Columns: ``COLUMNS``; the Parquet schema's metadata repeat the manifest under "gsq".
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
            found = _make_shard(tokenizer, folder, part, size, batch_size, on_images)
            table, broken = found
            found_broken = [(one.name, one.reason, one.kind) for one in broken]
            metadata = {"gsq": json.dumps({**manifest, "shard": number, "broken": found_broken})}
            with _mendable(str(path), "use a smaller --shard-size"), whole(path) as partial:
                pq.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")
            for left in leftovers(path):
                left.unlink(missing_ok=True)
        table, broken = found
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
    "shard_size": "--shard-size",
    "images": "number of images",
    "listing_sha256": "names and sizes of the images",
}


def _claim(output: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or check that the existing one is the same."""
    _make_folder(output)
    path = output / MANIFEST
    if not path.exists():
        if any(output.glob("indices-*.parquet")):
            raise UserError(f"--output: {output} holds shards, but no {MANIFEST} to say of what; choose another folder")
        with _mendable(str(output), ""):
            write_json(path, manifest)
        return
    there = read_json(path)
    if not isinstance(there, dict):
        raise UserError(f"{path}: not a manifest of gsq tokenize; choose another --output")
    changed = [
        f"{words} ({there.get(key)} there, {manifest[key]} now)" if key != "listing_sha256" else words
        for key, words in _SAME.items()
        if there.get(key) != manifest[key]
    ]
    if changed:
        raise UserError(
            f"--output: {output} holds other indices; they differ in {', '.join(changed)}. Choose another folder, or "
            "remove that one"
        )


def _read_shard(path: Path, manifest: dict[str, Any]) -> tuple[pa.Table, list[LeftOut]] | None:
    """Shapes and broken images of an existing shard; None if it is missing, damaged or of another manifest."""
    try:
        with pq.ParquetFile(path) as file:
            metadata = json.loads((file.schema_arrow.metadata or {}).get(b"gsq", b"{}"))
            if any(metadata.get(key) != manifest[key] for key in _SAME):
                return None
            table = file.read(columns=["latent_height", "latent_width"])
    except (OSError, ValueError):  # pyarrow's errors derive from these
        return None
    # Shards of earlier versions have no kind.
    return table, [LeftOut(name, kind[0] if kind else "broken", reason) for name, reason, *kind in metadata["broken"]]


def _make_shard(
    tokenizer: Tokenizer,
    folder: Path,
    names: Sequence[str],
    size: int | None,
    batch_size: int,
    on_images: Callable[[int], None],
) -> tuple[pa.Table, list[LeftOut]]:
    rows: dict[str, dict[str, Any]] = {}
    broken: list[LeftOut] = []
    # Images of one size share a batch.
    waiting: dict[tuple[int, ...], list[tuple[str, str, Tensor]]] = {}

    def flush(batch: list[tuple[str, str, Tensor]]) -> None:
        with _mendable(shown(batch[0][0]), "use a smaller --batch-size, or --size"):
            indices = tokenizer.encode(torch.stack([image for _, _, image in batch]))
        flat = indices.permute(0, 2, 3, 1).to("cpu", torch.int32).numpy()
        for (name, sha256, image), found in zip(batch, flat, strict=True):
            values = (utf8(name), sha256, *image.shape[1:], *found.shape, found.reshape(-1))
            rows[name] = dict(zip(COLUMNS.names, values, strict=True))
        on_images(len(batch))
        batch.clear()

    for name in names:
        try:
            data = (folder / name).read_bytes()
            require_memory(tokenizer, data, size)
            image = decode(data)
            part = centre_square(image, size) if size else crop_to_multiple(image, tokenizer.downsample)
            require_large_enough(*image.size)
        except (OSError, BrokenImageError) as error:
            kind = error.kind if isinstance(error, BrokenImageError) else "unreadable"
            broken.append(LeftOut(name, kind, str(getattr(error, "strerror", None) or error)))
            on_images(1)
            continue
        tensor = pixels(part)
        batch = waiting.setdefault(tuple(tensor.shape), [])
        batch.append((name, hashlib.sha256(data).hexdigest(), tensor))
        if len(batch) == batch_size or (size is None and len(batch) * tensor[0].numel() >= BATCH_PIXELS):
            flush(batch)
        elif sum(math.prod(shape[1:]) * len(batch) for shape, batch in waiting.items()) > WAITING_PIXELS:
            flush(max(waiting.values(), key=len))
    for batch in waiting.values():
        if batch:
            flush(batch)
    return pa.Table.from_pylist([rows[name] for name in names if name in rows], schema=COLUMNS), broken
