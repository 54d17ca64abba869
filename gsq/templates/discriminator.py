"""A discriminator of your own: logits of patches.

Use it in a sweep with   set: {discriminator.kind: "gsq.templates.discriminator:Mine"}
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from gsq.config.objective import DiscriminatorConfig


@dataclass(frozen=True)
class Options:
    """The keys of discriminator.options. A default is left out of the run's signature."""

    width: int = 32


class Mine(nn.Module):
    """(B, 3, S, S) -> logits of any shape with B first, high for real images; nothing may depend on other images."""

    Options = Options

    def __init__(self, config: DiscriminatorConfig, image_size: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
