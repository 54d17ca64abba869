"""Discriminators: images (B, 3, H, W) in [-1, 1] to a map of logits (B, 1, h', w')."""

from __future__ import annotations

from torch import nn

from gsq.config import DiscriminatorConfig


class PatchDiscriminator(nn.Sequential):
    """N-layer PatchGAN (pix2pix), with GroupNorm, which does not depend on the batch and its split over devices."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.layers + 1):
            outputs = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.layers else 1
            layers += [
                nn.Conv2d(width, outputs, 4, stride, 1, bias=False),
                nn.GroupNorm(config.norm_groups, outputs),
                nn.LeakyReLU(0.2),
            ]
            width = outputs
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        super().__init__(*layers)


def build_discriminator(config: DiscriminatorConfig) -> nn.Module | None:
    """The discriminator that ``config.kind`` names; None for "none"."""
    return PatchDiscriminator(config) if config.kind == "patchgan" else None
