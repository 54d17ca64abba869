"""The autoencoder in a config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from gsq.config.parts import Options, choose_or_own
from gsq.errors import UserError, at_least, choose_each

# Channel multipliers by downsampling factor: f = 8 and 16 from the paper (appendix B, fig. 3). The paper does not print
# f = 32, which adds one more level of multiplier 1, as f = 16 does to f = 8; f = 2 and 4 take f = 8's first levels.
DEFAULT_MULTIPLIERS: dict[int, tuple[int, ...]] = {
    2: (1, 2),
    4: (1, 2, 2),
    8: (1, 2, 2, 4),
    16: (1, 1, 2, 2, 4),
    32: (1, 1, 1, 2, 2, 4),
}


@dataclass(frozen=True)
class ModelConfig:
    """Autoencoder (paper appendix B, fig. 6)."""

    kind: str = field(default="autoencoder", metadata={"legacy": "autoencoder"})
    """autoencoder (the paper's), or a pair of encoder and decoder of your own, package.module:Name, whose
    keys are `downsample`, `latent_dim` and those in `options` (``gsq new model``)."""
    downsample: int = 8
    """f, image height over latent height: 2, 4, 8, 16 or 32."""
    latent_dim: int = 16
    """D, latent channels."""
    channels: int = 128
    """Channels of the first level (the width)."""
    channel_multipliers: tuple[int, ...] = ()
    """Width of each level over `channels`, log2(f) + 1 of them; empty takes the default for f."""
    blocks: int = 2
    """Residual blocks in each level and in the middle, if the two lists below are empty."""
    encoder_blocks: tuple[int, ...] = ()
    """Residual blocks by level, the middle last; empty takes `blocks` everywhere."""
    decoder_blocks: tuple[int, ...] = ()
    """Like encoder_blocks, for the decoder; levels in the encoder's order."""
    attention: bool = False
    """A single-head attention block between consecutive middle blocks."""
    upsample: str = "nearest"
    """nearest (nearest + convolution) or depth_to_space (convolution + DCR depth-to-space)."""
    adaptive_norm: bool = True
    """Adaptive group norm in the decoder, conditioned on the quantized latent."""
    norm_groups: int = 32
    """Groups of each GroupNorm."""
    options: dict[str, Any] = field(default_factory=Options, metadata={"legacy": Options()})
    """Keys of a model of your own (`kind: package.module:Name`), as it declares them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", Options(self.options))
        choose_or_own("model", self, kind=("autoencoder",))
        choose_each("model", self, downsample=DEFAULT_MULTIPLIERS, upsample=("nearest", "depth_to_space"))
        at_least("model", self, 1, "latent_dim", "channels", "blocks", "norm_groups")
        levels = int(math.log2(self.downsample)) + 1
        for key, wanted in zip(("channel_multipliers", "encoder_blocks", "decoder_blocks"), (0, 1, 1), strict=True):
            wanted += levels
            value = tuple(getattr(self, key))
            object.__setattr__(self, key, value)
            if value and len(value) != wanted:
                raise UserError(
                    f"model.{key}: {list(value)} has {len(value)} entries, but downsample {self.downsample} needs "
                    f"{wanted}; leave it empty for the default"
                )
            if any(entry < 1 for entry in value):
                raise UserError(f"model.{key}: {list(value)} must be positive whole numbers")
        for width in self.widths:
            if width % self.norm_groups:
                raise UserError(
                    f"model.norm_groups: {self.norm_groups} does not divide the level width {width} "
                    f"(channels {self.channels} x multipliers {list(self.multipliers)})"
                )

    @property
    def multipliers(self) -> tuple[int, ...]:
        return self.channel_multipliers or DEFAULT_MULTIPLIERS[self.downsample]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, first level first."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def encoder_depths(self) -> tuple[int, ...]:
        """Residual blocks of each level, then of the middle."""
        return self.encoder_blocks or (self.blocks,) * (len(self.multipliers) + 1)

    @property
    def decoder_depths(self) -> tuple[int, ...]:
        return self.decoder_blocks or (self.blocks,) * (len(self.multipliers) + 1)
