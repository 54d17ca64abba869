"""Image files of any mode to RGB, and why a file is none that can be used. Imports neither torch nor numpy."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# Pixels whose black and white are known; of the others (I and F: whole numbers and floats of any range) none is.
KNOWN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_TO_EIGHT_BIT = [(value + 128) // 257 for value in range(1 << 16)]
# A shorter side has nothing to learn from: placeholders and tracking pixels of the web. data.image_size is no smaller.
MIN_SIDE = 8
# Pillow's default limit of pixels, and the bytes that decoding briefly takes for each of them at most.
MAX_PIXELS, DECODING_BYTES = 178_956_970, 16
# What turns a picture upright, by the orientation in its EXIF data.
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

# Pillow warns of odd metadata and of large images, naming lines of its own code. Neither is a fault of the images:
# what cannot be read is refused here, with a reason.
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
    """An image whose format is not read."""

    kind = "format"


def decode(data: bytes) -> Image.Image:
    """RGB, 8 bits a channel, as the image is displayed. Raises BrokenImageError.

    It is turned by its EXIF orientation (EXIF data that cannot be read are ignored); what is transparent (alpha
    channel, transparent palette entry or colour) lies on white; grey, palette, CMYK and YCbCr become RGB as Pillow
    converts them (no colour profile is applied); 16 bits a channel are scaled to 8, rounded (grey; of 16-bit RGB
    Pillow keeps the upper 8). Of an animation or of several pages it is the first one. Modes whose range is not known
    (32-bit integer and float) are refused, and so are images of more than MAX_PIXELS.
    """
    with _opened(data) as image:
        return _rgb(image)


def measure(image: Path | bytes) -> tuple[int, int]:
    """Width and height of an image that can be used. Raises BrokenImageError as ``decode`` does, and SmallImageError.

    It takes the steps of ``decode``, on a JPEG at an eighth of its size, which also reaches the end of the file.
    """
    with _opened(image) as opened:
        size = opened.size
        # verify() would find broken PNGs only.
        opened.draft("RGB", (1, 1))
        _rgb(opened)
    require_large_enough(*size)
    return size


def size_of(image: Path | bytes) -> tuple[int, int]:
    """Width and height from the start of the file alone. Raises BrokenImageError where that cannot be used."""
    with _opened(image) as opened:
        return opened.size


def require_large_enough(width: int, height: int) -> None:
    """Raise SmallImageError where a side is below MIN_SIDE."""
    if min(width, height) < MIN_SIDE:
        raise SmallImageError(f"{height} x {width} pixels; the smallest side used is {MIN_SIDE}")


def broken(image: Path | bytes) -> str:
    """Why an image file cannot be decoded; empty where it can."""
    try:
        measure(image)
    except SmallImageError:
        return ""
    except BrokenImageError as error:
        return str(error)
    return ""


@contextmanager
def _opened(image: Path | bytes) -> Iterator[Image.Image]:
    """The image, opened and known to be usable as far as its start tells; whatever a decoder raises of the file is a
    BrokenImageError."""
    try:
        if not (image.stat().st_size if isinstance(image, Path) else len(image)):
            raise BrokenImageError("empty")
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            _require_usable(opened)
            yield opened
    except (BrokenImageError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise what their parsing runs into: struct.error, KeyError, zlib.error, RuntimeError.
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
