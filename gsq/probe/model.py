"""A small autoregressive transformer over the codes of an image: exact code lengths, and samples.

A transformer over positions (raster order) reads the codes of the positions before; a smaller one reads its output and
the codes before within the position. By the chain rule the product of their conditionals is a distribution over whole
images, so that code lengths are exact, while attention costs P^2 + P K^2 and never (P K)^2.

Shapes: N images, P positions, K codes of a position, V_k values of code k and S their sum, w and c the widths of the
two transformers. Codes are int64, everything else float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.config.probe import ProbeSize

# Logits held at a time: 32 MiB.
TILE = 1 << 23


class Cache:
    """Keys and values of the positions so far, for one block."""

    def __init__(self, count: int, heads: int, length: int, width: int, device: torch.device) -> None:
        self.kept = torch.empty(2, count, heads, length, width // heads, device=device)
        self.filled = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(N, heads, 1, w / heads) each -> all so far, (N, heads, filled, w / heads)."""
        self.kept[0, :, :, self.filled] = keys[:, :, 0]
        self.kept[1, :, :, self.filled] = values[:, :, 0]
        self.filled += 1
        return self.kept[0, :, :, : self.filled], self.kept[1, :, :, : self.filled]


class Block(nn.Module):
    """Causal attention and an MLP, each after a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """(N, length, width) -> the same; with a cache, length is 1 and what came before is in the cache."""
        count, length, width = x.shape
        heads = self.qkv(self.norms[0](x)).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, keys, values = heads.unbind(0)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        mixed = F.scaled_dot_product_attention(query, keys, values, is_causal=cache is None and length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(count, length, width))
        y: Tensor = self.down(F.gelu(self.up(self.norms[1](x))))
        return x + y


class TiledCrossEntropy(torch.autograd.Function):
    """Sum of the exact cross-entropies of all codes [nats], with tiles of TILE logits held at a time.

    The forward pass computes the gradients, too, so that each tile of logits is made once and then dropped.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, codes: Tensor, sizes: tuple[int, ...]
    ) -> Tensor:
        """hidden (M, K, c), weight (S, c), bias (S,), codes (M, K) -> scalar, float64."""
        gradients = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for k, rows, start, logits in _tiles(hidden, weight, bias, sizes):
            target = codes[rows, k, None]
            total += _nats_(logits, target).double().sum()
            # The logits are exponentials now; the gradient of a cross-entropy is softmax minus one-hot.
            logits.div_(logits.sum(1, keepdim=True))
            logits.scatter_add_(1, target, logits.new_full((1, 1), -1.0).expand_as(target))
            here = slice(start, start + sizes[k])
            torch.mm(logits, weight[here], out=(part := logits.new_empty(len(logits), weight.shape[1])))
            gradients[0][rows, k] = part
            gradients[1][here].addmm_(logits.T, hidden[rows, k])
            gradients[2][here] += logits.sum(0)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        factor = gradient.float()
        return *(saved * factor for saved in ctx.saved_tensors), None, None


def _tiles(hidden: Tensor, weight: Tensor, bias: Tensor, sizes: tuple[int, ...]) -> Any:
    """Yield k, a slice of rows, the first row of code k in ``weight``, and the logits (rows, V_k)."""
    start = 0
    for k, size in enumerate(sizes):
        step = max(1, TILE // size)
        for first in range(0, len(hidden), step):
            rows = slice(first, min(first + step, len(hidden)))
            yield (
                k,
                rows,
                start,
                torch.addmm(bias[start : start + size], hidden[rows, k], weight[start : start + size].T),
            )
        start += size


def _nats_(logits: Tensor, target: Tensor) -> Tensor:
    """(rows, V) and (rows, 1) -> cross-entropies (rows,); replaces the logits by exponentials."""
    highest = logits.amax(1, keepdim=True)
    chosen = logits.gather(1, target) - highest
    logits.sub_(highest).exp_()
    return (logits.sum(1, keepdim=True).log_() - chosen)[:, 0]


class Prior(nn.Module):
    """A learned distribution over the codes of an image."""

    def __init__(self, size: ProbeSize, sizes: tuple[int, ...], positions: int) -> None:
        """sizes: V_k of each code; positions: P."""
        super().__init__()
        self.size, self.sizes, self.positions = size, sizes, positions
        inner = size.code_width
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.embedding = nn.Embedding(sum(sizes), inner)
        self.place = nn.Parameter(torch.zeros(self.positions, size.width))
        self.read = nn.Linear(len(sizes) * inner, size.width, bias=False)
        self.blocks = nn.ModuleList([Block(size.width, size.heads) for _ in range(size.layers)])
        self.norm = nn.LayerNorm(size.width)
        self.down = nn.Linear(size.width, inner, bias=False)
        self.code_place = nn.Parameter(torch.zeros(len(sizes), inner))
        self.code_blocks = nn.ModuleList([Block(inner, size.code_heads) for _ in range(size.code_layers)])
        self.code_norm = nn.LayerNorm(inner)
        self.weight = nn.Parameter(torch.zeros(sum(sizes), inner))
        self.bias = nn.Parameter(torch.zeros(sum(sizes)))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and name != "weight":
                scale = 1.0 if name in ("embedding.weight", "place", "code_place") else parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=scale)
            if name.endswith(("out.weight", "down.weight")) and "blocks" in name:
                # Each block starts as its skip connection.
                nn.init.zeros_(parameter)

    def start_from_counts(self, codes: Tensor) -> None:
        """Start at the zeroth-order distribution: biases are log frequencies of (N, P, K) codes, half a count added."""
        flat = codes.reshape(-1, len(self.sizes))
        parts = [torch.bincount(flat[:, k], minlength=size).float() + 0.5 for k, size in enumerate(self.sizes)]
        with torch.no_grad():
            self.bias.copy_(torch.cat([(part / part.sum()).log() for part in parts]))

    def hidden(self, codes: Tensor) -> Tensor:
        """Codes (N, P, K) -> (N P, K, c): what the logits of each code follow from, given all codes before it."""
        count, positions, number = codes.shape
        embedded = self.embedding(codes + self.offsets)
        before = self.read(embedded[:, :-1].flatten(2))
        # The first position reads nothing but its place.
        x = F.pad(before, (0, 0, 1, 0)) + self.place[:positions]
        for block in self.blocks:
            x = block(x)
        first = self.down(self.norm(x)).reshape(count * positions, 1, -1)
        y = torch.cat([first, embedded.view(count * positions, number, -1)[:, :-1]], 1) + self.code_place
        for block in self.code_blocks:
            y = block(y)
        found: Tensor = self.code_norm(y)
        return found

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (N, P, K) -> the sum of their code lengths [nats], scalar float64, to be differentiated."""
        flat = codes.reshape(-1, codes.shape[2])
        found: Tensor = TiledCrossEntropy.apply(  # type: ignore[no-untyped-call]
            self.hidden(codes), self.weight, self.bias, flat, self.sizes
        )
        return found

    @torch.no_grad()
    def bits(self, codes: Tensor) -> Tensor:
        """Codes (N, P, K) -> the exact code length of each image [bits], (N,) float64."""
        flat = codes.reshape(-1, codes.shape[2])
        nats = torch.zeros(len(flat), dtype=torch.float64, device=codes.device)
        for k, rows, _, logits in _tiles(self.hidden(codes), self.weight, self.bias, self.sizes):
            nats[rows] += _nats_(logits, flat[rows, k, None])
        return nats.view(codes.shape[:2]).sum(1) / math.log(2)

    @torch.no_grad()
    def sample(self, uniform: Tensor) -> Tensor:
        """Draw images at temperature 1. uniform (N, P, K): numbers in [0, 1), float64 -> codes (N, P, K)."""
        count, positions, number = uniform.shape
        device, size = self.weight.device, self.size
        caches = [Cache(count, size.heads, positions, size.width, device) for _ in self.blocks]
        codes = torch.zeros(count, positions, number, dtype=torch.int64, device=device)
        x = self.place[0].expand(count, 1, -1)
        for p in range(positions):
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache)
            y = self.down(self.norm(x)) + self.code_place[0]
            inner = [Cache(count, size.code_heads, number, size.code_width, device) for _ in self.code_blocks]
            embedded = []
            for k in range(number):
                for block, cache in zip(self.code_blocks, inner, strict=True):
                    y = block(y, cache)
                codes[:, p, k] = self._draw(self.code_norm(y)[:, 0], k, uniform[:, p, k])
                embedded.append(self.embedding(codes[:, p, k] + self.offsets[k]))
                if k + 1 < number:
                    y = embedded[-1][:, None] + self.code_place[k + 1]
            if p + 1 < positions:
                x = (self.read(torch.cat(embedded, 1)) + self.place[p + 1])[:, None]
        return codes

    def _draw(self, hidden: Tensor, k: int, uniform: Tensor) -> Tensor:
        """Hidden (N, c) and numbers (N,) -> values of code k, (N,), by the inverse of the cumulative distribution."""
        found = torch.empty(len(hidden), dtype=torch.int64, device=hidden.device)
        start = sum(self.sizes[:k])
        step = max(1, TILE // self.sizes[k])
        here = slice(start, start + self.sizes[k])
        for first in range(0, len(hidden), step):
            rows = slice(first, first + step)
            logits = torch.addmm(self.bias[here], hidden[rows], self.weight[here].T)
            summed = logits.double().softmax(1).cumsum(1)
            at = torch.searchsorted(summed, (uniform[rows, None] * summed[:, -1:]).contiguous(), right=True)
            found[rows] = at[:, 0].clamp_(max=self.sizes[k] - 1)
        return found
