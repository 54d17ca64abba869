"""Prepare images for a tokenizer: crop them to a size that it can encode, and refuse those that exceed memory."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsq.data.images import DECODING_BYTES, BrokenImageError, size_of
from gsq.errors import UserError
from gsq.tokenizer.memory import available_bytes
from gsq.tokenizer.tiles import SIDE, Tiles, tiles_of
from gsq.tokenizer.tokenizer import Tokenizer

# Bytes a pixel that an image in tiles takes as a whole: as it is, its reconstruction, both side by side.
WHOLE_BYTES = 40


def crop_to_multiple(image: Image.Image, f: int) -> Image.Image:
    """The largest centred part whose sides f divides. Raises BrokenImageError if a side is shorter than f."""
    width, height = (side - side % f for side in image.size)
    if not width or not height:
        raise BrokenImageError(f"{image.height} x {image.width} pixels are fewer than f = {f} on a side")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, resized to size x size like in evaluations (bicubic, antialiased)."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def pixels(image: Image.Image) -> Tensor:
    """(3, H, W), uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_image(tensor: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> RGB."""
    return Image.fromarray(tensor.permute(1, 2, 0).cpu().numpy())


def working_bytes(tokenizer: Tokenizer, pixels: int) -> int:
    """Largest memory [bytes] to encode and decode ``pixels`` pixels in float32, without the weights.

    A residual block holds up to eight maps of its width, and the step up to a level five of the width below it, which
    are as large as the level's own. Measured on a CPU, without gaps in the heap: 0.7 to 0.9 of it.
    """
    widths = tokenizer.config.model.widths
    pairs = zip(widths, (*widths[1:], 0), strict=True)
    floats = max(max(8 * own, 5 * lower) / 4**level for level, (own, lower) in enumerate(pairs))
    return round(pixels * (4 * floats + 32))


class NoRoomError(BrokenImageError):
    """An image that is whole, and takes more memory than there is."""


def require_tile(tokenizer: Tokenizer, tile: int | None) -> None:
    """Raise UserError for a side of tiles that is no whole number of latent positions."""
    f = tokenizer.downsample
    if tile is None:
        return
    if tile < f:
        raise UserError(f"--tile: {tile} is below f = {f}, a latent position; 512 is usual")
    if tile % f:
        raise UserError(
            f"--tile: {tile} is not a multiple of f = {f}, so tiles would be smaller than that; use "
            f"{tile - tile % f} or {tile - tile % f + f}"
        )


def tiles_for(tokenizer: Tokenizer, data: bytes, size: int | None = None, tile: int | None = None) -> Tiles | None:
    """How to cut an image that is not encoded as a whole; None for one that is.

    size: side [pixels] of the square to encode; None for the whole image. tile: side [pixels] of the tiles of every
    larger image; without it, an image that does not fit into memory is cut where that gives the same result. Raises
    NoRoomError for an image that does not fit into memory, before taking any.
    """
    width, height = size_of(data)
    free, on_device = available_bytes(), available_bytes(tokenizer.device)
    encoded = size * size if size else width * height
    _require(width, height, width * height * DECODING_BYTES, free)
    if tile is not None and encoded > tile * tile:
        _require(width, height, encoded * WHOLE_BYTES + working_bytes(tokenizer, tile * tile), free)
        return tiles_of(tokenizer, tile, any_result=True)
    if working_bytes(tokenizer, encoded) <= on_device:
        return None
    left = min(on_device, free - encoded * WHOLE_BYTES) // 2
    side = min(SIDE, math.isqrt(max(0, left) // working_bytes(tokenizer, 1)))
    tiles = tiles_of(tokenizer, side, any_result=False)
    if tiles is None:
        hint = "; --tile N encodes such images in tiles of N pixels, each on its own, which gives another result"
        _require(width, height, working_bytes(tokenizer, encoded), on_device, hint)
    return tiles


def images_at_once(tokenizer: Tokenizer, pixels: int) -> int:
    """How many images of ``pixels`` pixels fit into memory together, at least one."""
    return max(1, available_bytes(tokenizer.device) // working_bytes(tokenizer, pixels))


def _require(width: int, height: int, needed: int, there: int, hint: str = "") -> None:
    """Raise NoRoomError if ``needed`` bytes are not there."""
    if needed > there:
        most = math.isqrt(width * height * there // needed)
        raise NoRoomError(
            f"{height} x {width} pixels need about {needed / 1e9:.2g} GB of memory, and {there / 1e9:.2g} GB are "
            f"free; about {most} x {most} pixels fit{hint}"
        )
