"""Image files of any mode to RGB. Imports neither torch nor numpy."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

# Pixels whose black and white are known; of the others (I and F: whole numbers and floats of any range) none is.
KNOWN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_TO_EIGHT_BIT = [(value + 128) // 257 for value in range(1 << 16)]
_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class BrokenImageError(Exception):
    """An image that cannot be read or used, with the reason."""


def decode(data: bytes) -> Image.Image:
    """RGB, 8 bits a channel, as the image is displayed. Raises BrokenImageError.

    It is turned by its EXIF orientation; what is transparent (alpha channel, transparent palette entry or colour) lies
    on white; grey, palette, CMYK and YCbCr become RGB as Pillow converts them (no colour profile is applied); 16 bits
    a channel are scaled to 8, rounded (grey; of 16-bit RGB Pillow keeps the upper 8). Of an animation it is the first
    frame. Modes whose range is not known (32-bit integer and float) are refused.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            _require_known(image)
            upright = ImageOps.exif_transpose(image)
            if upright.mode in SIXTEEN_BIT:
                return upright.convert("I").point(_TO_EIGHT_BIT, "L").convert("RGB")
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            seen = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    except _ERRORS as error:
        raise BrokenImageError(_reason(error)) from None


def broken(image: Path | bytes) -> str:
    """Why an image file cannot be used; empty where it can. Faster than decode for a large JPEG."""
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            _require_known(opened)
            # verify() finds broken PNGs only. A JPEG is decoded at an eighth of its size, which finds its end too.
            opened.draft("RGB", (1, 1))
            opened.load()
    except BrokenImageError as error:
        return str(error)
    except _ERRORS as error:
        return _reason(error)
    return ""


def _require_known(image: Image.Image) -> None:
    if image.mode not in KNOWN and image.mode not in SIXTEEN_BIT:
        raise BrokenImageError(f"pixels of mode {image.mode}, whose range is not known; save it with 8 or 16 bits")


def _reason(error: BaseException) -> str:
    # Pillow names the buffer, not the file, for what it does not know at all.
    return "of no known image format" if isinstance(error, UnidentifiedImageError) else str(error) or "cut short"
