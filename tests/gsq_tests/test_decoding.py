"""Image files become the RGB pixels that a viewer shows."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from image_sets import SMALL
from PIL import Image, ImageCms

from gsq.data.images import BrokenImageError, broken, decode
from gsq.data.sources import manifest

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode(data)
    assert image.mode == "RGB" and not broken(data)
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return tuple(int(value) for value in found)


def test_modes_become_rgb_as_they_are_displayed() -> None:
    assert pixel(saved(Image.new("L", (2, 2), 100))) == (100, 100, 100)
    assert pixel(saved(Image.new("1", (2, 2), 1))) == WHITE
    assert pixel(saved(Image.new("RGB", (2, 2), RED).convert("P"))) == RED
    # What is transparent lies on white, whatever colour it hides.
    assert pixel(saved(Image.new("RGBA", (2, 2), (*RED, 0)))) == WHITE
    assert pixel(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 51)))) == (204, 204, 204)
    assert pixel(saved(Image.new("LA", (2, 2), (10, 255)))) == (10, 10, 10)
    assert pixel(saved(Image.new("RGBA", (2, 2), (*RED, 0)), "WEBP", lossless=True)) == WHITE
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    assert pixel(saved(palette, transparency=1)) == RED and pixel(saved(palette, transparency=1), (1, 0)) == WHITE
    assert pixel(saved(Image.new("RGB", (2, 2), RED), transparency=RED)) == WHITE
    # CMYK: cyan ink takes red away.
    cyan = pixel(saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100))
    assert cyan == pytest.approx((0, 255, 255), abs=3)
    assert pixel(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "TIFF")) == WHITE


@pytest.mark.parametrize(("deep", "wanted"), [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_not_clipped(deep: int, wanted: int) -> None:
    image = Image.fromarray(np.full((2, 3), deep, np.uint16))
    assert image.mode == "I;16"
    assert pixel(saved(image)) == (wanted,) * 3 and pixel(saved(image, "TIFF")) == (wanted,) * 3


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 7)), (6, (7, 0)), (8, (0, 3))])
def test_images_stand_as_their_exif_says(orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (4, 8), "black")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, "PNG", exif=exif)
    assert decode(data).size == ((8, 4) if orientation in (6, 8) else (4, 8))
    assert pixel(data, corner) == RED


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_known_range_are_broken_images(mode: str) -> None:
    data = saved(Image.new(mode, (2, 2), 1), "TIFF")
    assert f"mode {mode}" in broken(data)
    with pytest.raises(BrokenImageError, match=rf"mode {mode}, .*range"):
        decode(data)


def test_colour_profiles_are_not_applied_and_animations_stand_still() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert pixel(saved(Image.new("RGB", (2, 2), RED), icc_profile=profile)) == RED
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, WHITE)]
    assert pixel(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)) == RED


def test_photos_are_decoded_as_they_ever_were() -> None:
    for file in manifest(SMALL).train + manifest(SMALL).validation:
        with Image.open(file.path) as image:
            assert np.array_equal(decode(file.path.read_bytes()), image.convert("RGB"))
