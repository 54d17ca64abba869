"""Reconstructions of image files to look at.

Shapes: f downsampling. Pixels that f does not divide are cropped off evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gsq.data.images import BrokenImageError, SmallImageError, decode, require_large_enough
from gsq.data.listing import UNREAD_SUFFIXES, shown, suffix_of
from gsq.errors import UserError
from gsq.files import whole
from gsq.metrics.reconstruction import psnr_db, psnr_db_by_rows, to_uint8
from gsq.tokenizer.inputs import NoRoomError, crop_to_multiple, pixels, require_tile, tiles_for, to_image
from gsq.tokenizer.memory import without_gaps
from gsq.tokenizer.tiles import Tiles
from gsq.tokenizer.tiles import decode as decode_tiles
from gsq.tokenizer.tiles import encode as encode_tiles
from gsq.tokenizer.tokenizer import Tokenizer

# White pixels between an image and its reconstruction.
GAP = 4


@contextmanager
def mendable(what: str, hint: str) -> Iterator[None]:
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


def make_folder(folder: Path) -> None:
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
    tiles: int = 1
    """Number of tiles that the image was cut into."""
    as_a_whole: bool = True
    """Whether the result is that of the whole image (gsq.tokenizer.tiles)."""


def _read(path: Path, tokenizer: Tokenizer, tile: int | None) -> tuple[Image.Image, tuple[int, int], Tiles | None]:
    """The part of an image that can be encoded, the number of rows and columns cropped off, and how it is cut into
    tiles. Raises UserError."""
    if path.is_dir():
        raise UserError(f"{shown(str(path))}: is a folder; name image files, such as {shown(str(path))}/*.jpg")
    try:
        data = path.read_bytes()
        tiles = tiles_for(tokenizer, data, tile=tile)
        image = decode(data)
        part = crop_to_multiple(image, tokenizer.downsample)
        require_large_enough(*image.size)
    except OSError as error:
        raise UserError(f"{shown(str(path))}: {error.strerror}") from None
    except (NoRoomError, SmallImageError) as error:
        raise UserError(f"{shown(str(path))}: {error}") from None
    except BrokenImageError as error:
        suffix = suffix_of(path.name)
        reason = f"{suffix[1:]} is not read; convert it to png" if suffix in UNREAD_SUFFIXES else str(error)
        raise UserError(f"{shown(str(path))}: not an image that can be read ({reason})") from None
    return part, (image.height - part.height, image.width - part.width), tiles


def reconstruct_files(
    tokenizer: Tokenizer,
    images: Sequence[Path],
    output: Path,
    on_image: Callable[[Reconstruction], None] = lambda done: None,
    *,
    tile: int | None = None,
    on_part: Callable[[int, str], None] = lambda done, what: None,
) -> list[Reconstruction]:
    """Write NAME.reconstruction.png and NAME.side-by-side.png (original left) below ``output`` for each image.

    Reads every image before it writes anything, and again one at a time, so that only one is in memory. tile: as in
    ``gsq.tokenizer.inputs.tiles_for``. on_part receives the number of images done, and what is done just now, as often
    as a tile. Raises UserError for an image that cannot be used.
    """
    require_tile(tokenizer, tile)
    for path in images:
        on_part(0, f"reading {shown(path.name)}")
        _read(path, tokenizer, tile)
    make_folder(output)
    done: list[Reconstruction] = []
    names: set[str] = set()
    for path in images:
        on_part(len(done), shown(path.name))
        image, cropped, tiles = _read(path, tokenizer, tile)
        name = next(n for k in range(len(images)) if (n := path.stem + (f"-{k + 1}" if k else "")) not in names)
        names.add(name)
        original = pixels(image)[None]
        with mendable(shown(str(path)), "use a smaller image, or --device cpu"), without_gaps():
            if tiles is None:
                made = to_uint8(tokenizer.reconstruct(original)).cpu()
                value = float(psnr_db(made, original))
            else:
                made = _in_tiles(tokenizer, original[0], tiles, partial(_tell, on_part, len(done), path.name))[None]
                value = psnr_db_by_rows(made[0], original[0])
        both = Image.new("RGB", (2 * image.width + GAP, image.height), "white")
        both.paste(image, (0, 0))
        both.paste(to_image(made[0]), (image.width + GAP, 0))
        files = output / f"{name}.reconstruction.png", output / f"{name}.side-by-side.png"
        with mendable(str(output), "use smaller images"):
            for file, picture in zip(files, (to_image(made[0]), both), strict=True):
                with whole(file) as temporary:
                    picture.save(temporary, format="PNG")
        done.append(
            Reconstruction(
                image=shown(str(path)),
                reconstruction=shown(str(files[0])),
                side_by_side=shown(str(files[1])),
                height=image.height,
                width=image.width,
                cropped=cropped,
                psnr_db=value if math.isfinite(value) else None,
                tiles=1 if tiles is None else tiles.count(*(s // tokenizer.downsample for s in made.shape[2:])),
                as_a_whole=tiles is None or tiles.exact,
            )
        )
        on_image(done[-1])
    return done


def _in_tiles(tokenizer: Tokenizer, image: Tensor, tiles: Tiles, tell: Callable[[str, int, int], None]) -> Tensor:
    """(3, H, W) uint8 -> its reconstruction."""
    indices = encode_tiles(tokenizer, image, tiles, partial(tell, "encoding"))
    return decode_tiles(tokenizer, indices, tiles, partial(tell, "decoding"))


def _tell(on_part: Callable[[int, str], None], images: int, name: str, verb: str, done: int, total: int) -> None:
    on_part(images, f"{verb} {shown(name)}, tile {done:,} of {total:,}")
