"""Decode image files of any mode to RGB, or say why they cannot be used. Imports neither torch nor numpy."""

from __future__ import annotations

import errno
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Modes with a known range of values, unlike I and F (whole numbers and floats of any range).
KNOWN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_TO_EIGHT_BIT = [(value + 128) // 257 for value in range(1 << 16)]
# Images with a shorter side are placeholders or tracking pixels. data.image_size is at least this, too.
MIN_SIDE = 8
# Pillow's default limit of pixels, and the bytes that decoding briefly takes for each of them at most.
MAX_PIXELS, DECODING_BYTES = 178_956_970, 16
# The transposition that turns a picture upright, by the orientation in its EXIF data.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's warnings about odd metadata and large images name lines of its own code. Neither is a fault of the images;
# this module refuses what cannot be read, with a reason.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BrokenImageError(Exception):
    """An image that cannot be read or used, with the reason."""

    kind = "broken"
    """One of gsq.data.manifest.KINDS."""


class SmallImageError(BrokenImageError):
    """An image too small to be used."""

    kind = "small"


class UnreadFormatError(BrokenImageError):
    """An image in a format that gsq does not read."""

    kind = "format"


def decode(data: bytes) -> Image.Image:
    """Decode an image to RGB, 8 bits a channel, as it is displayed. Raises BrokenImageError.

    EXIF orientation is applied (unreadable EXIF data are ignored), transparency is laid on white, and other modes
    become RGB as Pillow converts them, without colour profiles. 16-bit grey is scaled to 8 bits and rounded; of 16-bit
    RGB Pillow keeps the upper 8. Animations and multi-page files give their first picture. Modes of unknown range
    (32-bit integer and float) and images of more than MAX_PIXELS are refused.
    """
    with _opened(data) as image:
        return _rgb(image)


def measure(image: Path | bytes) -> tuple[int, int]:
    """Width and height of a usable image. Raises BrokenImageError like ``decode``, SmallImageError, and OSError for a
    file that the system does not let it read.

    Takes the steps of ``decode``, for a JPEG at an eighth of its size, which also reads the file to its end.
    """
    with _opened(image) as opened:
        size = opened.size
        # verify() would find broken PNGs only.
        opened.draft("RGB", (1, 1))
        _rgb(opened)
    require_large_enough(*size)
    return size


def miniature(image: bytes | Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """The image in grey at ``size`` (width, height), to compare it with others, and its own size as it is displayed.

    Decodes a JPEG at a reduced scale. Raises BrokenImageError like ``decode``.
    """
    if isinstance(image, Image.Image):
        return image.convert("L").resize(size, Image.Resampling.BOX), image.size
    with _opened(image) as opened:
        width, height = opened.size
        opened.draft("RGB", (4 * size[0], 4 * size[1]))
        rgb = _rgb(opened)
        turned = (rgb.width > rgb.height) != (width > height) and rgb.width != rgb.height
        return rgb.convert("L").resize(size, Image.Resampling.BOX), (height, width) if turned else (width, height)


def size_of(image: Path | bytes) -> tuple[int, int]:
    """Width and height from the start of the file alone. Raises BrokenImageError if that is not usable."""
    with _opened(image) as opened:
        return opened.size


def require_large_enough(width: int, height: int) -> None:
    """Raise SmallImageError if a side is below MIN_SIDE."""
    if min(width, height) < MIN_SIDE:
        raise SmallImageError(f"{height} x {width} pixels; the smallest side used is {MIN_SIDE}")


def broken(image: Path | bytes) -> str:
    """Why an image file cannot be decoded; empty if it can."""
    try:
        measure(image)
    except SmallImageError:
        return ""
    except BrokenImageError as error:
        return str(error)
    return ""


@contextmanager
def _opened(image: Path | bytes) -> Iterator[Image.Image]:
    """Open an image that is usable as far as its start tells. Errors of decoders become BrokenImageError, but not those
    of the file system, which say nothing of the image (permission, a server that is away)."""
    try:
        if not (image.stat().st_size if isinstance(image, Path) else len(image)):
            raise BrokenImageError("empty")
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            _require_usable(opened)
            yield opened
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:
        # EINVAL is a seek to where a damaged file points.
        if isinstance(image, Path) and isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        # Decoders raise anything: struct.error, KeyError, zlib.error, RuntimeError.
        raise BrokenImageError(_reason(error)) from None


def _require_usable(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BrokenImageError(_too_large(f"{height} x {width} pixels are"))
    if image.mode not in KNOWN and image.mode not in SIXTEEN_BIT:
        raise UnreadFormatError(
            f"pixels of mode {image.mode}, whose range is not known; save it with 8 or 16 bits a channel"
        )


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    upright = _upright(image)
    if upright.mode in SIXTEEN_BIT:
        return upright.convert("I").point(_TO_EIGHT_BIT, "L").convert("RGB")
    if not upright.has_transparency_data:
        # Convert returns a copy, which holds no open file.
        return upright if upright is not image and upright.mode == "RGB" else upright.convert("RGB")
    seen = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Like ImageOps.exif_transpose, which also rewrites the EXIF data and fails if these are odd."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
        turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    except Exception:  # the picture can be seen without them
        turn = None
    return image if turn is None else image.transpose(turn)


def _too_large(what: str) -> str:
    return f"{what} more than the {MAX_PIXELS // 10**6} megapixels that are read; make it smaller"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow names the buffer, not the file.
        return "of no known image format"
    if isinstance(error, Image.DecompressionBombError):
        return _too_large("its pixels are")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OSError | SyntaxError | ValueError | EOFError):
        return str(error) or "cut short"
    return f"cannot be decoded ({type(error).__name__}: {error})"
