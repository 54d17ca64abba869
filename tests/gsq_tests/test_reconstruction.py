"""PSNR and SSIM against scikit-image and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from gsq.metrics.reconstruction import from_uint8, psnr_ceiling_db, psnr_db, ssim, to_uint8


def test_to_uint8_rounds() -> None:
    grey = torch.tensor([0.0, 0.4, 0.6, 1.4, 1.6, 253.6, 254.4, 254.6, 255.0])
    assert to_uint8(grey / 127.5 - 1).tolist() == [0, 0, 1, 1, 2, 254, 254, 255, 255]
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 7.0])).tolist() == [0, 0, 255, 255]


def test_to_uint8_inverts_from_uint8() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels).min() == -1 and from_uint8(levels).max() == 1
    assert from_uint8(levels).dtype == torch.float32 and to_uint8(from_uint8(levels)).dtype == torch.uint8


def test_a_perfect_reconstruction_has_no_bias() -> None:
    """Truncation would darken it by half a grey level; rounding leaves no bias, nor noise below half a level."""
    x = torch.rand(1, 3, 200, 200, generator=torch.Generator().manual_seed(1)) * 2 - 1
    bias = (to_uint8(x).double() - (x.double() + 1) * 127.5).mean()
    assert abs(bias) < 0.005
    levels = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(3)) - 0.5
    assert torch.equal(to_uint8(from_uint8(levels) + 0.98 * noise / 127.5), levels)


def images(seed: int, count: int = 3, height: int = 32, width: int = 40) -> torch.Tensor:
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return to_uint8(torch.nn.functional.interpolate(coarse * 2 - 1, (height, width), mode="bicubic"))


def noisy(x: torch.Tensor, level: float) -> torch.Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)) * level
    return (x.float() + noise).round().clamp(0, 255).to(torch.uint8)


def test_psnr() -> None:
    x = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    y = x.clone()
    y[0] += 1
    y[1, 0, 0, 0] = 200
    found = psnr_db(y, x)
    assert found.dtype == torch.float64
    # A mean square of 1, and one value of 192 off by 100.
    assert found.tolist() == pytest.approx([20 * math.log10(255), 10 * math.log10(255**2 * 192 / 100**2)])
    assert psnr_db(x, x).isinf().all()
    # The least that two images of 192 values can differ by.
    z = x.clone()
    z[:, 0, 0, 0] += 1
    assert psnr_db(z, x).tolist() == pytest.approx([psnr_ceiling_db(192)] * 2)
    a, b = images(0), noisy(images(0), 12)
    wanted = [peak_signal_noise_ratio(p.numpy(), q.numpy()) for p, q in zip(a, b, strict=True)]
    assert psnr_db(b, a).tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("level", [2.0, 20.0, 80.0])
def test_ssim_equals_scikit_image(level: float) -> None:
    """scikit-image leaves a border of half a window out of the mean; torchmetrics mirrors the image there and keeps
    it. So scikit-image is given the image with that border mirrored outwards."""
    a = images(1)
    b = noisy(a, level)

    def mirrored(image: torch.Tensor) -> NDArray[np.uint8]:
        return np.pad(image.numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect")

    wanted = [
        structural_similarity(
            mirrored(p),
            mirrored(q),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        for p, q in zip(a, b, strict=True)
    ]
    assert ssim(b, a).tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(32, 40), (6, 9), (96, 17)])
def test_ssim_equals_torchmetrics(height: int, width: int) -> None:
    a = torch.randint(0, 256, (3, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    b = noisy(a, 30)
    wanted = structural_similarity_index_measure(b.double() / 255, a.double() / 255, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(b, a), wanted.double(), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="at least 6 x 6"):
        ssim(a[..., :5], b[..., :5])


def test_ssim_of_one_and_of_equal_images() -> None:
    a = images(2)
    assert ssim(a, a).tolist() == [1.0] * 3
    assert ssim(a[:1], noisy(a[:1], 10)).shape == (1,)
    assert ssim(a[:1], noisy(a[:1], 10)).item() < 0.99


@pytest.mark.parametrize("level", [0, 1, 60, 127, 128, 254])
def test_ssim_of_flat_images_is_its_formula(level: int) -> None:
    """Without variance only the means count; in float32 it was up to 1.3e-4 off, and above 1."""
    a = torch.full((1, 3, 64, 64), level, dtype=torch.uint8)
    assert ssim(a, a).item() == 1
    mean, other = level / 255, (level + 1) / 255
    wanted = (2 * mean * other + 1e-4) / (mean**2 + other**2 + 1e-4)
    assert ssim(a, a + 1).item() == pytest.approx(wanted, rel=1e-11)
    # A flat image with a single speck, and nearly so.
    b = a.clone()
    b[0, :, 30, 30] += 1
    reference = structural_similarity_index_measure(b.double() / 255, a.double() / 255, data_range=1.0)
    assert ssim(b, a).item() <= 1 and ssim(b, a).item() == pytest.approx(float(reference), abs=1e-9)
