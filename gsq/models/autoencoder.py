"""Encoder and decoder (GSQ paper, appendix B, fig. 6) around a quantizer.

Shapes: B images, C channels, D latent channels, K indices of a latent position, f downsampling, h = H / f, w = W / f.
It is the same function of the same weights as the authors' public code, down to where an epsilon is 1e-6 or PyTorch's
1e-5 (``gsq.tokenizer.flex_gen`` reads its checkpoints, and a test compares). Only the initialisation differs: here
every residual block starts as its skip connection. ``gsq.config.flops`` counts the same layers without torch; a test
compares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.config.model import ModelConfig
from gsq.config.parts import is_path, load, options_of
from gsq.config.run import RunConfig
from gsq.quantizers import build_quantizer


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, conv3x3, twice, plus a skip (conv1x1 where the width changes)."""

    def __init__(self, inputs: int, outputs: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, inputs)
        self.conv1 = conv3x3(inputs, outputs)
        self.norm2 = nn.GroupNorm(norm_groups, outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        # Each block starts as its skip connection: short runs learn markedly faster.
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.skip(x) + y


class Attention(nn.Module):
    """Single-head self-attention over positions, with a residual connection."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class NearestUpsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class DepthToSpaceUpsample(nn.Module):
    """conv3x3 C -> 4C, then depth-to-space with the block index outermost in the channels (DCR order)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, c, h, w = y.shape
        y = y.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(b, c // 4, 2 * h, 2 * w)


class AdaptiveGroupNorm(nn.Module):
    """Affine-free GroupNorm, scaled and shifted by linear maps of the quantized latent's spatial std and mean."""

    def __init__(self, latent_dim: int, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6, affine=False)
        self.scale = nn.Linear(latent_dim, channels)
        self.shift = nn.Linear(latent_dim, channels)
        # Start near a plain GroupNorm: the default bias around 0 would let almost no signal through at first.
        nn.init.ones_(self.scale.bias)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        flat = latent.flatten(2)
        # The unbiased variance, like the authors' code; a single position has variance 0.
        scale = self.scale((flat.var(2, correction=min(1, flat.shape[2] - 1)) + 1e-6).sqrt())
        shift = self.shift(flat.mean(2))
        return self.norm(x) * scale[:, :, None, None] + shift[:, :, None, None]


def _middle(config: ModelConfig, width: int, blocks: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers.append(ResBlock(width, width, config.norm_groups))
        if config.attention and i < blocks - 1:
            layers.append(Attention(width, config.norm_groups))
    return layers


class Encoder(nn.Sequential):
    """(B, 3, H, W) in [-1, 1] -> (B, D, h, w)."""

    def __init__(self, config: ModelConfig) -> None:
        *depths, middle = config.encoder_depths
        layers: list[nn.Module] = [conv3x3(3, config.channels)]
        width = config.channels
        for level, (outputs, blocks) in enumerate(zip(config.widths, depths, strict=True)):
            if outputs != width:
                layers.append(ResBlock(width, outputs, config.norm_groups))
                width = outputs
            layers += [ResBlock(width, width, config.norm_groups) for _ in range(blocks)]
            if level < len(depths) - 1:
                layers.append(conv3x3(width, width, stride=2))
        layers += _middle(config, width, middle)
        layers += [nn.GroupNorm(config.norm_groups, width), nn.SiLU(), nn.Conv2d(width, config.latent_dim, 1)]
        super().__init__(*layers)


class Decoder(nn.Module):
    """(B, D, h, w) -> (B, 3, H, W), not clamped."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        *depths, middle = config.decoder_depths
        width = config.widths[-1]
        upsample = {"nearest": NearestUpsample, "depth_to_space": DepthToSpaceUpsample}[config.upsample]

        def adaptive(channels: int) -> list[nn.Module]:
            if not config.adaptive_norm:
                return []
            return [AdaptiveGroupNorm(config.latent_dim, channels, config.norm_groups)]

        layers: list[nn.Module] = [conv3x3(config.latent_dim, width), *_middle(config, width, middle), *adaptive(width)]
        for level in reversed(range(len(depths))):
            outputs = config.widths[level]
            if outputs != width:
                layers.append(ResBlock(width, outputs, config.norm_groups))
                width = outputs
            layers += [ResBlock(width, width, config.norm_groups) for _ in range(depths[level])]
            if level:
                layers += [upsample(width), *adaptive(width)]
        layers += [nn.GroupNorm(config.norm_groups, width), nn.SiLU(), conv3x3(width, 3)]
        self.layers = nn.ModuleList(layers)

    def forward(self, latent: Tensor) -> Tensor:
        x = latent
        for layer in self.layers:
            x = layer(x, latent) if isinstance(layer, AdaptiveGroupNorm) else layer(x)
        return x


class AutoencoderOutput(NamedTuple):
    images: Tensor
    """(B, 3, H, W), not clamped."""
    indices: Tensor
    """(B, K, h, w), int64."""
    quantizer_loss: Tensor
    """Scalar."""


class Convolutional:
    """model.kind "autoencoder". One of a user's own has the same two functions, which also take its options."""

    encoder = Encoder
    """ModelConfig -> module, (B, 3, H, W) in [-1, 1] -> (B, D, H / f, W / f)."""
    decoder = Decoder
    """ModelConfig -> module, (B, D, h, w) -> (B, 3, h f, w f)."""


class Autoencoder(nn.Module):
    """Encoder, quantizer, decoder. Images (B, 3, H, W) in [-1, 1], H and W divisible by f."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.downsample = config.model.downsample
        model, options = config.model, {}
        kind: Any = Convolutional
        if is_path(model.kind):
            kind, options = load(model.kind, "model.kind"), options_of(model.kind, "model.kind", model.options)
        self.encoder = kind.encoder(model, **options)
        self.quantizer = build_quantizer(config)
        self.decoder = kind.decoder(model, **options)

    def forward(self, images: Tensor) -> AutoencoderOutput:
        quantized = self.quantizer(self.encoder(images))
        return AutoencoderOutput(self.decoder(quantized.latent), quantized.indices, quantized.loss)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> indices (B, K, h, w)."""
        return self.quantizer(self.encoder(images)).indices

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Indices (B, K, h, w) -> (B, 3, H, W)."""
        return self.decoder(self.quantizer.decode_indices(indices))
