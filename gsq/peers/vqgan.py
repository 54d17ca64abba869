"""VQGAN's autoencoder (Esser et al. 2021) and those built on it: LlamaGen's, IBQ's and Stable Diffusion's.

The state dict has the names of taming-transformers. Shapes: B images of H x W pixels, h = H / f, w = W / f.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gsq.peers.checkpoints import filled, nearest


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv(inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), conv(inputs, outputs, bias=bias)
        self.norm2, self.conv2 = norm(outputs), conv(outputs, outputs, bias=bias)
        if inputs != outputs:
            self.nin_shortcut = conv(inputs, outputs, 1, bias)

    def added(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x) + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (conv(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return x + self.proj_out(y.unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one width, with attention after each of them at the levels that have it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.block = nn.ModuleList(Residual(outputs if i else inputs, outputs, bias) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = (Residual(channels, channels) for _ in range(2))
        self.attn_1 = Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, outputs, h, w)."""

    def __init__(self, widths: tuple[int, ...], blocks: int, attention: bool, outputs: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = conv(3, widths[0])
        self.down = nn.ModuleList(
            Level(widths[max(i - 1, 0)], width, blocks, attention and i == last) for i, width in enumerate(widths)
        )
        for i, level in enumerate(self.down):
            if i < last:
                level.downsample = Downsample(widths[i])
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), conv(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.get_submodule("downsample")(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, inputs, h, w) -> (B, 3, H, W)."""

    def __init__(self, widths: tuple[int, ...], blocks: int, attention: bool, inputs: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in, self.mid = conv(inputs, widths[-1]), Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[min(i + 1, last)], width, blocks + 1, attention and i == last)
            for i, width in enumerate(widths)
        )
        for i, level in enumerate(self.up):
            if i:
                level.upsample = Upsample(widths[i])
        self.norm_out, self.conv_out = norm(widths[0]), conv(widths[0], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.get_submodule("upsample")(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """Base class of the tokenizers below; its codes are latents (B, latent_dim, h, w)."""

    quantizer: str

    def __init__(
        self,
        multipliers: tuple[int, ...],
        blocks: int,
        *,
        latent_dim: int,
        inner: int,
        channels: int,
        attention: bool = True,
        moments: int = 1,
    ) -> None:
        """inner: z_channels. moments: 2 if the encoder returns mean and log-variance."""
        super().__init__()
        widths = tuple(channels * m for m in multipliers)
        self.latent_dim, self.moments = latent_dim, moments
        self.encoder = Encoder(widths, blocks, attention, moments * inner)
        self.decoder = Decoder(widths, blocks, attention, inner)
        self.quant_conv = conv(moments * inner, moments * latent_dim, 1)
        self.post_quant_conv = conv(latent_dim, inner, 1)

    def latent(self, images: Tensor) -> Tensor:
        """Return the mean of the two moments."""
        return self.quant_conv(self.encoder(images)).chunk(self.moments, 1)[0]

    encode = latent

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(codes))


class VQGAN(Autoencoder):
    """Codes are indices (B, h, w) of the ``codebook_size`` rows of ``quantize.embedding``."""

    def __init__(
        self,
        multipliers: tuple[int, ...],
        blocks: int,
        *,
        codebook_size: int,
        latent_dim: int,
        inner: int,
        channels: int,
        lookup: str,
    ) -> None:
        """lookup: nearest, sphere (rows and latents of length 1) or inner (the largest inner product)."""
        super().__init__(multipliers, blocks, latent_dim=latent_dim, inner=inner, channels=channels)
        self.codebook_size, self.lookup = codebook_size, lookup
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codebook_size, latent_dim)

    @property
    def rows(self) -> Tensor:
        rows: Tensor = self.quantize.embedding.weight  # type: ignore[union-attr, assignment]
        return F.normalize(rows, dim=1) if self.lookup == "sphere" else rows

    def encode(self, images: Tensor) -> Tensor:
        latent = self.latent(images)
        latent = F.normalize(latent, dim=1) if self.lookup == "sphere" else latent
        return nearest(latent, self.rows, inner=self.lookup != "nearest")

    def decode(self, codes: Tensor) -> Tensor:
        return super().decode(self.rows[codes].permute(0, 3, 1, 2))


# LlamaGen's names of the same layers.
_LLAMAGEN = (
    (r"\.conv_blocks\.(\d+)\.res\.", r".down.\1.block."),
    (r"\.conv_blocks\.(\d+)\.", r".down.\1."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)


def llamagen(
    checkpoint: str = "", downsample: int = 16, codebook_size: int = 16384, channels: int = 128, seed: int = 0
) -> VQGAN:
    """LlamaGen's VQ-16 or VQ-8 (Sun et al., arXiv 2406.06525), whose files are vq_ds16_c2i.pt and vq_ds8_c2i.pt."""
    multipliers = (1, 1, 2, 2, 4) if downsample == 16 else (1, 2, 2, 4)
    model = VQGAN(
        multipliers, 2, codebook_size=codebook_size, latent_dim=8, inner=256, channels=channels, lookup="sphere"
    )
    model.quantizer = "vq"
    last = len(multipliers) - 1
    # Its decoder counts the levels from the smallest map on.
    turned = [(rf"^decoder\.down\.{i}\.", f"decoder.level.{last - i}.") for i in range(last + 1)]
    return filled(model, checkpoint, seed, (*_LLAMAGEN, *turned, (r"^decoder\.level\.", "decoder.up.")))


def ibq(checkpoint: str = "", codebook_size: int = 16384, channels: int = 128, seed: int = 0) -> VQGAN:
    """IBQ's tokenizer (Shi et al., arXiv 2412.02692) of 1,024 to 262,144 codes, from its Lightning checkpoint."""
    return _of_16("ibq", 4, "inner", checkpoint, codebook_size, channels, seed)


def vqgan(checkpoint: str = "", codebook_size: int = 16384, channels: int = 128, seed: int = 0) -> VQGAN:
    """VQGAN f = 16 of taming-transformers (vqgan_imagenet_f16_16384, or _1024)."""
    return _of_16("vq", 2, "nearest", checkpoint, codebook_size, channels, seed)


def _of_16(kind: str, blocks: int, lookup: str, checkpoint: str, codebook_size: int, channels: int, seed: int) -> VQGAN:
    widths = {"codebook_size": codebook_size, "latent_dim": 256, "inner": 256, "channels": channels}
    model = VQGAN((1, 1, 2, 2, 4), blocks, **widths, lookup=lookup)
    model.quantizer = kind
    return filled(model, checkpoint, seed)


def kl_vae(checkpoint: str = "", channels: int = 128, seed: int = 0) -> Autoencoder:
    """Stable Diffusion's f = 8 autoencoder (Rombach et al. 2022) in latent-diffusion's layout; codes are the mean."""
    model = Autoencoder((1, 2, 4, 4), 2, latent_dim=4, inner=4, channels=channels, attention=False, moments=2)
    model.quantizer = "none"
    return filled(model, checkpoint, seed)
