"""Prepare images for a tokenizer: crop them to a size that it can encode, and refuse those that exceed memory."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsq.data.images import DECODING_BYTES, BrokenImageError, size_of
from gsq.tokenizer.memory import available_bytes
from gsq.tokenizer.tokenizer import Tokenizer


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

    It is ten maps of the widest level; the presets took eight to nine and a bit (CPU, 0.1 to 2 megapixels).
    """
    widest = max(width / 4**level for level, width in enumerate(tokenizer.config.model.widths))
    return round(pixels * (10 * 4 * widest + 32))


def require_memory(tokenizer: Tokenizer, data: bytes, size: int | None = None) -> None:
    """Raise BrokenImageError for an image that does not fit into memory, before taking any.

    size: side [pixels] of the square to encode; None for the whole image.
    """
    width, height = size_of(data)
    free = available_bytes()
    needs = [(width * height * DECODING_BYTES, free)]
    on_device = free if tokenizer.device.type == "cpu" else available_bytes(tokenizer.device)
    needs.append((working_bytes(tokenizer, size * size if size else width * height), on_device))
    for needed, there in needs:
        if needed > there:
            most = math.isqrt(width * height * there // needed)
            raise BrokenImageError(
                f"{height} x {width} pixels need about {needed / 1e9:.2g} GB of memory, and {there / 1e9:.2g} GB are "
                f"free; about {most} x {most} pixels fit"
            )
