"""Open-MAGVIT2's image tokenizer (Luo et al., arXiv 2409.04410): look-up free, 18 bits a position.

The state dict has its published names. Shapes: B images of H x W pixels, h = H / f, w = W / f.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.peers.checkpoints import filled
from gsq.peers.vqgan import Level, Residual, conv, norm


class _Upsample(nn.Module):
    """Convolution to four times the channels, of which the outermost index becomes the place in a 2 x 2 square."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x).unflatten(1, (2, 2, -1))
        return y.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)


class _Adaptive(nn.Module):
    """GroupNorm scaled and shifted by the spread and mean of the latent over its positions."""

    def __init__(self, latent: int, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(32, channels, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(latent, channels), nn.Linear(latent, channels)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        flat = latent.flatten(2)
        scale, shift = self.gamma((flat.var(2) + 1e-6).sqrt()), self.beta(flat.mean(2))
        return scale[:, :, None, None] * self.gn(x) + shift[:, :, None, None]


class _Encoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, latent: int) -> None:
        super().__init__()
        self.conv_in = conv(3, widths[0], bias=False)
        self.down = nn.ModuleList(
            Level(widths[max(i - 1, 0)], width, blocks, bias=False) for i, width in enumerate(widths)
        )
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = nn.Conv2d(width, width, 3, 2, padding=1)
        self.mid_block = nn.Sequential(*(Residual(widths[-1], widths[-1], bias=False) for _ in range(blocks)))
        self.norm_out, self.conv_out = norm(widths[-1]), conv(widths[-1], latent, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.get_submodule("downsample")(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class _Decoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, latent: int) -> None:
        super().__init__()
        above = (*widths[1:], widths[-1])
        self.conv_in = conv(latent, widths[-1])
        self.mid_block = nn.Sequential(*(Residual(widths[-1], widths[-1], bias=False) for _ in range(blocks)))
        self.up = nn.ModuleList(
            Level(inputs, width, blocks, bias=False) for inputs, width in zip(above, widths, strict=True)
        )
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = _Upsample(width)
        self.adaptive = nn.ModuleList(_Adaptive(latent, inputs) for inputs in above)
        self.norm_out, self.conv_out = norm(widths[0]), conv(widths[0], 3)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latent))
        for adaptive, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(adaptive(x, latent))
            if hasattr(level, "upsample"):
                x = level.get_submodule("upsample")(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class OpenMAGVIT2(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to indices (B, h, w) below 2^bits: bit k is the sign of latent channel k."""

    quantizer = "lfq"

    def __init__(self, multipliers: tuple[int, ...], blocks: int, bits: int, channels: int) -> None:
        super().__init__()
        widths = tuple(channels * m for m in multipliers)
        self.latent_dim, self.codebook_size = bits, 2**bits
        self.encoder, self.decoder = _Encoder(widths, blocks, bits), _Decoder(widths, blocks, bits)

    @property
    def _places(self) -> Tensor:
        return 2 ** torch.arange(self.latent_dim, device=self.encoder.conv_in.weight.device)

    def encode(self, images: Tensor) -> Tensor:
        return ((self.encoder(images) > 0).permute(0, 2, 3, 1) * self._places).sum(3)

    def decode(self, indices: Tensor) -> Tensor:
        bits = (indices[..., None] & self._places) != 0
        return self.decoder((bits * 2.0 - 1).permute(0, 3, 1, 2))


def open_magvit2(
    checkpoint: str = "", downsample: int = 16, bits: int = 18, channels: int = 128, seed: int = 0
) -> OpenMAGVIT2:
    """The tokenizer of ImageNet at 256 (downsample 16) or 128 pixels (8), from its Lightning checkpoint."""
    multipliers = (1, 1, 2, 2, 4) if downsample == 16 else (1, 2, 2, 4)
    return filled(OpenMAGVIT2(multipliers, 4, bits, channels), checkpoint, seed)
