"""Image files that are odd: what the first look accepts can be decoded, and nothing else can end a training."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from pictures import encoded, picture
from PIL import Image

from gsq.data.images import MAX_PIXELS, BrokenImageError, SmallImageError, broken, decode, measure


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block with such tags: number, type, count, value."""
    offset, body, rest = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, count, value in sorted(entries):
        if len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field, rest = struct.pack("<L", offset + len(rest)), rest + value
        body += struct.pack("<HHL", tag, kind, count) + field
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + body + bytes(4) + rest


TURN = (0x0112, 3, 1, struct.pack("<H", 6))
ODD = {
    "zero in a rational": exif(TURN, (0x011A, 10, 1, struct.pack("<ll", -1, 0))),
    "too large a rational": exif(TURN, (0x011A, 5, 1, struct.pack("<LL", 2**32 - 1, 1))),
    "text in a number": exif(TURN, (0x0100, 2, 4, b"abc\0")),
    "a negative number": exif(TURN, (0x0103, 8, 1, struct.pack("<h", -5))),
    "an unknown type": exif(TURN, (0x0100, 99, 1, b"abcd")),
    "far outside": exif(TURN)[:-4] + b"\xff\xff\xff\x7f",
}
UNTURNED = {
    "no head": b"Exif\0\0hello world",
    "nothing": b"Exif\0\0",
    "cut": ODD["a negative number"][:20],
    "orientation of text": exif((0x0112, 2, 4, b"six\0")),
    "orientation of several": exif((0x0112, 3, 3, struct.pack("<3H", 6, 6, 6))),
    "orientation of none": exif((0x0112, 3, 1, struct.pack("<H", 99))),
}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("block", [*ODD.values(), *UNTURNED.values()], ids=[*ODD, *UNTURNED])
def test_odd_exif_data_end_nothing(form: str, block: bytes) -> None:
    data = encoded(1, form, exif=block)
    assert broken(data) == "" and measure(data) == (40, 32)
    image = decode(data)
    assert image.mode == "RGB" and image.size in ((40, 32), (32, 40))
    if block in ODD.values() and form != "WEBP":
        assert image.size == (32, 40)


def test_a_turned_image_is_what_pillow_makes_of_it() -> None:
    from PIL import ImageOps

    for orientation in range(1, 9):
        block = exif((0x0112, 3, 1, struct.pack("<H", orientation)))
        data = encoded(2, "PNG", exif=block)
        with Image.open(io.BytesIO(data)) as image:
            assert decode(data).tobytes() == ImageOps.exif_transpose(image).tobytes(), orientation


def test_whatever_a_decoder_raises_is_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (struct.error("x"), KeyError("x"), RuntimeError("x"), IndexError("x"), AttributeError("x")):

        def load(self: Image.Image, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("PIL.ImageFile.ImageFile.load", load)
            assert type(error).__name__ in broken(encoded(1))
            with pytest.raises(BrokenImageError):
                decode(encoded(1))
        with monkeypatch.context() as patch:
            # Memory is no fault of the file.
            patch.setattr("PIL.ImageFile.ImageFile.load", lambda self: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(MemoryError):
                broken(encoded(1))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_every_part_of_a_file_can_be_damaged(form: str) -> None:
    """The first look and training agree of every file."""
    whole = encoded(3, form)
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            first = broken(data)
            try:
                decode(data)
                then = ""
            except BrokenImageError as error:
                then = str(error)
            # The first look at a JPEG reads an eighth of the size, and may see less of a damage than there is.
            assert not (then and not first), (at, first, then)


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    side = 2**15
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = bytearray(encoded(1))
    data[16:29] = head
    import zlib

    data[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    for content in (bytes(data),):
        assert f"more than the {MAX_PIXELS // 10**6} megapixels" in broken(content)
        with pytest.raises(BrokenImageError, match="make it smaller"):
            decode(content)


def test_pillow_warns_of_nothing(tmp_path: Path) -> None:
    Image.new("L", (12000, 8000)).save(tmp_path / "large.png")
    (tmp_path / "odd.jpg").write_bytes(encoded(1, "JPEG", exif=ODD["an unknown type"]))
    Image.new("P", (20, 20)).save(tmp_path / "palette.png", transparency=b"\x10\x20")
    code = (
        "import sys; from pathlib import Path; from gsq.data.images import broken, decode\n"
        "for name in sys.argv[1:]: print(decode(Path(name).read_bytes()).size, broken(Path(name)))"
    )
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    ran = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stderr == "" and "(12000, 8000)" in ran.stdout


def test_small_images_can_be_decoded_and_are_told_apart() -> None:
    out = io.BytesIO()
    picture(1, (7, 100)).save(out, "PNG")
    assert decode(out.getvalue()).size == (7, 100) and broken(out.getvalue()) == ""
    with pytest.raises(SmallImageError, match="100 x 7 pixels"):
        measure(out.getvalue())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert broken(b"") == "empty" and "no known image format" in broken(b"hello")
