"""TiTok of 1d-tokenizer (Yu et al., arXiv 2406.07550): an image as a few tokens without places.

The state dict has the names of the published second stage, whose decoder predicts codes of MaskGIT's VQGAN for that
decoder. Shapes: B images, N tokens, g x g patches of 16 pixels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.errors import choose
from gsq.peers.checkpoints import filled, nearest
from gsq.peers.vqgan import Residual, conv, norm

PATCH = 16
# (width, layers, heads) of the published sizes.
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
# Codes of MaskGIT's VQGAN, and their width.
PIXEL_CODES, PIXEL_WIDTH = 1024, 256


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    """Shared by encoder and decoder: class token, positions of patches and of tokens, blocks between two norms."""

    def __init__(self, size: str, grid: int, tokens: int) -> None:
        super().__init__()
        self.width, layers, heads = SIZES[size]
        self.class_embedding = nn.Parameter(torch.zeros(1, self.width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid**2 + 1, self.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(tokens, self.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(self.width), nn.LayerNorm(self.width)
        self.transformer = nn.Sequential(*(_Block(self.width, heads) for _ in range(layers)))

    def run(self, patches: Tensor, tokens: Tensor) -> Tensor:
        """(B, g^2, C) and (B, N, C) -> all tokens (B, 1 + g^2 + N, C), not yet normed."""
        first = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches], 1) + self.positional_embedding
        return self.transformer(self.ln_pre(torch.cat([x, tokens + self.latent_token_positional_embedding], 1)))


class _Encoder(_Transformer):
    def __init__(self, size: str, grid: int, tokens: int, token_width: int) -> None:
        super().__init__(size, grid, tokens)
        self.patch_embed = nn.Conv2d(3, self.width, PATCH, PATCH)
        self.conv_out = nn.Conv2d(self.width, token_width, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        """(B, token_width, 1, N)."""
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        count = len(latent_tokens)
        x = self.ln_post(self.run(patches, latent_tokens.expand(len(images), -1, -1))[:, -count:])
        # The published models reshape here without a transposition.
        x = self.conv_out(x.reshape(len(images), self.width, count, 1))
        return x.reshape(len(images), -1, 1, count)


class _Decoder(_Transformer):
    def __init__(self, size: str, grid: int, tokens: int, token_width: int) -> None:
        super().__init__(size, grid, tokens)
        self.grid = grid
        self.decoder_embed = nn.Linear(token_width, self.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.width))
        self.ffn = nn.Sequential(
            nn.Conv2d(self.width, 2 * self.width, 1), nn.Tanh(), nn.Conv2d(2 * self.width, PIXEL_CODES, 1)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, token_width) -> logits of the codes of each patch, (B, PIXEL_CODES, g, g)."""
        patches = self.mask_token.expand(len(tokens), self.grid**2, -1)
        x = self.run(patches, self.decoder_embed(tokens))[:, 1 : 1 + self.grid**2]
        return self.ffn(self.ln_post(x).transpose(1, 2).unflatten(2, (self.grid, self.grid)))


class _Residual(Residual):
    """MaskGIT's, whose shortcut is a map of the block's own output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        if inputs != outputs:
            self.nin_shortcut = conv(outputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.added(x)
        return y + (self.nin_shortcut(y) if hasattr(self, "nin_shortcut") else x)


class _Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, grows: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(_Residual(inputs, outputs), _Residual(outputs, outputs))
        if grows:
            self.upsample_conv = conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0)) if hasattr(self, "upsample_conv") else x


class _PixelDecoder(nn.Module):
    """MaskGIT's VQGAN decoder, (B, PIXEL_WIDTH, g, g) -> (B, 3, 16 g, 16 g)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = tuple(channels * m for m in (1, 1, 2, 2, 4))
        self.conv_in = conv(PIXEL_WIDTH, widths[-1])
        self.mid = nn.Sequential(*(_Residual(widths[-1], widths[-1]) for _ in range(2)))
        above = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(_Level(above[i], width, i > 0) for i, width in enumerate(widths))
        self.norm_out, self.conv_out = norm(widths[0]), conv(widths[0], 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Codes(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, width)


class TiTok(nn.Module):
    """Images (B, 3, image_size, image_size) in [0, 1] to indices (B, N), and back."""

    range = (0.0, 1.0)
    quantizer = "vq"

    def __init__(
        self, sizes: tuple[str, str], tokens: int, codebook_size: int, token_width: int, image_size: int, channels: int
    ) -> None:
        """sizes: of encoder and decoder."""
        super().__init__()
        grid = image_size // PATCH
        self.image_size, self.codebook_size, self.latent_dim = image_size, codebook_size, token_width
        self.encoder = _Encoder(sizes[0], grid, tokens, token_width)
        self.decoder = _Decoder(sizes[1], grid, tokens, token_width)
        self.latent_tokens = nn.Parameter(torch.zeros(tokens, self.encoder.width))
        self.quantize, self.pixel_quantize = _Codes(codebook_size, token_width), _Codes(PIXEL_CODES, PIXEL_WIDTH)
        self.pixel_decoder = _PixelDecoder(channels)

    def encode(self, images: Tensor) -> Tensor:
        latent = F.normalize(self.encoder(images, self.latent_tokens), dim=1)
        return nearest(latent, F.normalize(self.quantize.embedding.weight, dim=1), inner=True)[:, 0]

    def decode(self, indices: Tensor) -> Tensor:
        tokens = F.normalize(self.quantize.embedding.weight, dim=1)[indices]
        codes = self.decoder(tokens).softmax(1)
        return self.pixel_decoder(torch.einsum("nchw,cd->ndhw", codes, self.pixel_quantize.embedding.weight))


# Encoder, decoder and tokens of the published models; all have 4,096 codes of 12 channels.
MODELS = {"l32": ("large", "large", 32), "b64": ("base", "base", 64), "s128": ("small", "small", 128)}


def titok(checkpoint: str = "", model: str = "l32", image_size: int = 256, channels: int = 128, seed: int = 0) -> TiTok:
    """TiTok-L-32, -B-64 or -S-128 (model l32, b64, s128), from model.safetensors of its Hugging Face repository."""
    choose("model", model, MODELS)
    encoder, decoder, tokens = MODELS[model]
    return filled(TiTok((encoder, decoder), tokens, 4096, 12, image_size, channels), checkpoint, seed)
