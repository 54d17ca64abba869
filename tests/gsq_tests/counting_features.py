"""Features that count the images they are asked for, to be named as evaluation.features in tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

images_seen = 0


class Means(nn.Module):
    """(B, 3, H, W) -> (B, 6): mean and deviation of each channel, times a buffer."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, images: Tensor) -> Tensor:
        global images_seen
        images_seen += len(images)
        pixels = images.flatten(2)
        return torch.cat([pixels.mean(2), pixels.std(2)], 1) * self.factor


def means() -> nn.Module:
    return Means(1.0)


def twice() -> nn.Module:
    return Means(2.0)


def named() -> nn.Module:
    module = Means(1.0)
    module.sha256 = "ab" * 32
    return module


def maps() -> nn.Module:
    return nn.Identity()


def number() -> int:
    return 3


nothing = None
