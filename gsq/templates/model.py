"""An encoder and decoder of your own: patches through a small convolutional network.

Use it in a sweep with   set: {model.kind: "gsq.templates.model:Mine"}
and an option as an axis    axes: {model.options.width: [16, 32, 64]}
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gsq.config.model import ModelConfig


@dataclass(frozen=True)
class Options:
    """The keys of model.options. A default is left out of the run's signature."""

    width: int = 32


class Mine:
    """Two functions that return modules. ``config`` has downsample (f) and latent_dim (D)."""

    Options = Options

    @staticmethod
    def encoder(config: ModelConfig, width: int = 32) -> nn.Module:
        """(B, 3, H, W) in [-1, 1] -> (B, D, H / f, W / f)."""
        f = config.downsample
        return nn.Sequential(
            nn.Conv2d(3, width, f, f), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, config.latent_dim, 1),
        )  # fmt: skip

    @staticmethod
    def decoder(config: ModelConfig, width: int = 32) -> nn.Module:
        """(B, D, h, w) -> (B, 3, h f, w f), not clamped."""
        f = config.downsample
        return nn.Sequential(
            nn.Conv2d(config.latent_dim, width, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(width, width, f, f),
            nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip
