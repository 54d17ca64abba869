"""Per-image reconstruction quality on uint8 images.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> uint8, clamped and rounded (truncating would shift the mean by -0.37 grey levels)."""
    return images.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float().div(127.5).sub_(1)


def psnr_db(images: Tensor, originals: Tensor) -> Tensor:
    """(B,) float64: 10 log10(255^2 / MSE) of each uint8 image; infinite for equal ones."""
    mse = (images.double() - originals.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / mse)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """(B,) float32: structural similarity of uint8 images (torchmetrics: Gaussian window of 11, sigma 1.5)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(
        images.float() / 255, originals.float() / 255, data_range=1.0, reduction="none"
    )
    assert isinstance(values, Tensor)
    return values.reshape(-1)
