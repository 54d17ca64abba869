"""Batches as a function of (seed, step), and fixed validation images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import SMALL, folder_config
from PIL import Image

from gsq.config.run import DataConfig
from gsq.data.batches import ImageSource, to_tensor


def test_batches_depend_on_seed_and_step_alone() -> None:
    batch = ImageSource(SMALL).train_batch(3, 7, range(4))
    other = ImageSource(SMALL)
    other.train_batch(3, 0, range(4))
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(other.train_batch(3, 7, range(4)), batch)
    assert not torch.equal(other.train_batch(3, 8, range(4)), batch)
    assert not torch.equal(other.train_batch(4, 7, range(4)), batch)
    # A larger batch starts with the smaller one.
    assert torch.equal(other.train_batch(3, 7, range(6))[:4], batch)


def test_batches_have_the_promised_form() -> None:
    batch = torch.cat([ImageSource(SMALL).train_batch(0, step, range(8)) for step in range(4)])
    assert batch.shape == (32, 3, 16, 16) and batch.dtype == torch.float32 and batch.is_contiguous()
    assert batch.min() >= -1 and batch.max() <= 1
    assert batch.min() < -0.9 and batch.max() > 0.9
    assert len({tuple(image.flatten()[:20].tolist()) for image in batch}) == 32


def test_to_tensor_maps_black_and_white_to_the_ends() -> None:
    image = Image.new("RGB", (2, 1), (255, 0, 51))
    assert to_tensor([image]).tolist()[0] == [[[1.0, 1.0]], [[-1.0, -1.0]], [[pytest.approx(-0.6)] * 2]]


def test_flips_only_where_asked() -> None:
    plain = ImageSource(DataConfig(image_size=16, flip=False))
    flipping = ImageSource(SMALL)
    flipped = 0
    for step in range(12):
        a, b = plain.train_batch(0, step, range(1)), flipping.train_batch(0, step, range(1))
        assert torch.equal(a, b) or torch.equal(a.flip(3), b)
        flipped += not torch.equal(a, b)
    assert 0 < flipped < 12


def test_crops_follow_min_and_max_crop(folder: Path) -> None:
    # min = max = 2: every crop is the 32 x 32 square of a 40 x 32 image, shrunk.
    source = ImageSource(folder_config(folder, min_crop=2.0, max_crop=2.0, flip=False))
    full = ImageSource(folder_config(folder, min_crop=100.0, max_crop=100.0, flip=False))
    assert torch.allclose(source.train_batch(0, 0, range(4)), full.train_batch(0, 0, range(4)), atol=1e-6)
    small = ImageSource(folder_config(folder, min_crop=0.1, max_crop=0.1, flip=False))
    assert small.train_batch(0, 0, range(8)).std((2, 3)).mean() < full.train_batch(0, 0, range(8)).std((2, 3)).mean()


@pytest.mark.parametrize("kind", ["photos", "image_folder"])
def test_validation_images_are_fixed(kind: str, folder: Path) -> None:
    config = SMALL if kind == "photos" else folder_config(folder)
    source = ImageSource(config)
    count = source.num_validation(6)
    assert count == 6
    whole = source.validation_batch(0, 6)
    source.train_batch(5, 5, range(2))
    parts = torch.cat([source.validation_batch(0, 1), source.validation_batch(1, 4), source.validation_batch(5, 1)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, ImageSource(config).validation_batch(0, 6))
    assert whole.min() >= -1 and whole.max() <= 1
    assert len({image.sum().item() for image in whole}) == 6


def test_validation_images_of_a_folder_are_centre_squares(folder: Path) -> None:
    source = ImageSource(folder_config(folder))
    file = source.manifest.validation[0]
    image = Image.open(file.path).convert("RGB").crop((4, 0, 36, 32)).resize((16, 16), Image.Resampling.BICUBIC)
    # At the edge the kernel sees the pixels beside the square, which cropping first would hide.
    found, wanted = source.validation_batch(0, 1), to_tensor([image])
    assert torch.equal(found[..., 2:-2], wanted[..., 2:-2])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)
    assert source.num_validation(1000) == len(source.manifest.validation)
