"""Per-image reconstruction quality on uint8 images.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> uint8, clamped and rounded (truncating would shift the mean by -0.37 grey levels)."""
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float().div(127.5).sub_(1)


def psnr_db(images: Tensor, originals: Tensor) -> Tensor:
    """(B,) float64: 10 log10(255^2 / MSE) of each uint8 image, infinite for equal images."""
    mse = (images.double() - originals.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse)


def psnr_db_by_rows(image: Tensor, original: Tensor, rows: int = 256) -> float:
    """``psnr_db`` of one large image (3, H, W), uint8, in the memory of some rows; infinite for equal images."""
    pairs = zip(image.split(rows, 1), original.split(rows, 1), strict=True)
    squares = sum(float((one.double() - other.double()).square().sum()) for one, other in pairs)
    return 10 * math.log10(255**2 * image.numel() / squares) if squares else math.inf


def psnr_ceiling_db(values: int) -> float:
    """The PSNR of a uint8 image that differs from its original by one grey level in one of its ``values``.

    Every inexact image is below it, so means use it for equal images, whose own PSNR is infinite: 101.1 dB at
    256 x 256 x 3. scikit-image and torchmetrics return infinity for such an image and for every mean over it.
    """
    return 10 * math.log10(255**2 * values)


@cache
def _window(size: int) -> Tensor:
    """(size, size): the matrix that applies the Gaussian window to a line of pixels, mirrored at its ends."""
    offsets = torch.arange(-5, 6)
    taps = torch.exp(-offsets.double().square() / (2 * 1.5**2))
    places = (torch.arange(size)[:, None] + offsets).abs()
    places = torch.where(places < size, places, 2 * (size - 1) - places)
    window = torch.zeros(size, size, dtype=torch.float64)
    return window.scatter_add_(1, places, (taps / taps.sum()).expand(size, -1))


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """(B,) float64: structural similarity (Wang et al. 2004) of uint8 images of at least 6 x 6 pixels.

    gsq.evaluation.protocol.SSIM describes window and borders. Computed in float64, because variances of flat images are
    differences of nearly equal numbers; float32 errs by 1e-4 and exceeds 1. Agrees with torchmetrics on float64 images
    to 1e-12, and is several times as fast, since the window is applied as two matrix products. Raises ValueError for
    smaller images, which leave nothing to mirror.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 6:
        raise ValueError(f"ssim needs images of at least 6 x 6 pixels, got {height} x {width}")
    x, y = images.double() / 255, originals.double() / 255
    down, across = _window(height).to(x.device), _window(width).to(x.device)
    mean_x, mean_y, xx, yy, xy = down @ (torch.stack([x, y, x * x, y * y, x * y]) @ across.T)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * product + c1) * (2 * (xy - product) + c2) / ((squares + c1) * (xx + yy - squares + c2))
    # Only rounding can exceed 1.
    return similarity.clamp_(max=1).flatten(1).mean(1)
