"""Differentiable augmentation of a discriminator's images (Zhao et al. 2020, DiffAugment).

Augmentation takes explicit random numbers, so a resumed run draws the same ones and a part of a batch takes its rows.
Equal numbers give the images of the GSQ authors' code (ranges, order and rounding). Real and generated images get
independent numbers, like in DiffAugment.

Shapes: B images (B, C, H, W). Moved or cut-out pixels become 0: grey for images in [-1, 1], black for images in [0, 1]
(the authors' range; discriminator.image_range).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# gsq.data.batches uses the streams 0 and 1 of the counter-based generators.
FIRST_STREAM = 2
# Random numbers per image.
NUMBERS = {"color": 3, "translation": 2, "cutout": 2}
TRANSLATION, CUTOUT = 0.125, 0.2


def draw(policy: tuple[str, ...], seed: int, step: int, stream: int, batch_size: int) -> Tensor:
    """Random numbers for ``augment``, (batch_size, k) float32 in [0, 1).

    stream: which images of the step (say 0 real, 1 generated). Row i depends on (policy, seed, step, stream, i) alone.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, FIRST_STREAM + stream], counter=[0, 0, 0, step]))
    columns = sum(NUMBERS[name] for name in policy)
    return torch.from_numpy(random.random((batch_size, columns), dtype=np.float32))


def _color(images: Tensor, u: Tensor) -> Tensor:
    """Brightness + (-0.5 to 0.5), saturation x (0 to 2), contrast x (0.5 to 1.5)."""
    brightness, saturation, contrast = u.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    level = images.mean((1, 2, 3), keepdim=True)
    return (images - level) * (contrast + 0.5) + level


def _integers(u: Tensor, count: int) -> Tensor:
    """(B,) in [0, 1) -> (B, 1), whole numbers from 0 to count - 1."""
    return (u.double() * count).floor().long()[:, None]


def _translation(images: Tensor, u: Tensor) -> Tensor:
    """Whole pixels, up to 12.5 % of each side."""
    for axis in (0, 1):
        size = images.shape[2 + axis]
        largest = int(size * TRANSLATION + 0.5)
        shift = _integers(u[:, axis], 2 * largest + 1) - largest
        source = torch.arange(size, device=images.device) + shift
        inside = (source >= 0) & (source < size)
        view = (-1, 1, size, 1) if axis == 0 else (-1, 1, 1, size)
        # Gradients of pixels from outside are zero, so the clamped indices' sums do not depend on their order.
        moved = images.gather(2 + axis, source.clamp(0, size - 1).view(view).expand(images.shape))
        images = torch.where(inside.view(view), moved, 0)
    return images


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    """One rectangle of 20 % of each side, cut off at the borders."""
    cut = []
    for axis in (0, 1):
        size = images.shape[2 + axis]
        side = int(size * CUTOUT + 0.5)
        first = _integers(u[:, axis], size + 1 - side % 2) - side // 2
        position = torch.arange(size, device=images.device)
        cut.append((position >= first) & (position < first + side))
    return torch.where((cut[0][:, None, :, None]) & cut[1][:, None, None, :], 0, images)


FUNCTIONS = {"color": _color, "translation": _translation, "cutout": _cutout}


def augment(images: Tensor, policy: tuple[str, ...], numbers: Tensor) -> Tensor:
    """Apply the augmentations of ``policy`` in order, with the ``numbers`` (B, k) from ``draw``."""
    wanted = (len(images), sum(NUMBERS[name] for name in policy))
    if numbers.shape != wanted:
        raise ValueError(
            f"augmentation {list(policy)} of {wanted[0]} images: numbers {tuple(numbers.shape)}, not {wanted}"
        )
    numbers, first = numbers.to(images.device), 0
    for name in policy:
        images = FUNCTIONS[name](images, numbers[:, first : first + NUMBERS[name]])
        first += NUMBERS[name]
    return images
