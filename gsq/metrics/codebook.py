"""Codebook use from exact counts of indices.

Shapes: B images, G groups, V codebook rows, h x w latent positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodebookUse:
    usage: float
    """Share of the V rows used at least once, groups pooled."""
    perplexity: float
    """exp(entropy in nats) of the pooled histogram, in rows."""
    usage_per_group: tuple[float, ...]
    perplexity_per_group: tuple[float, ...]
    effective_bits: float
    """Sum over groups of log2 perplexity: bits a token if groups were independent."""
    tokens: int
    """Indices counted."""
    uniform_usage: float
    """Usage that as many independent uniform indices would be expected to give, 1 - (1 - 1/V)^tokens."""


def _perplexity(counts: Tensor) -> float:
    p = counts.double() / counts.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


class IndexHistogram:
    """(G, V) int64 counts of the indices seen."""

    def __init__(self, groups: int, codebook_size: int) -> None:
        self.counts = torch.zeros(groups, codebook_size, dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        """indices: (B, G, h, w) int64 in [0, V)."""
        size = self.counts.shape[1]
        for group, values in enumerate(indices.cpu().transpose(0, 1).flatten(1)):
            self.counts[group] += torch.bincount(values, minlength=size)

    def result(self) -> CodebookUse:
        """Raises ValueError before the first update."""
        pooled = self.counts.sum(0)
        tokens, size = int(pooled.sum()), self.counts.shape[1]
        if not tokens:
            raise ValueError("no indices were counted")
        per_group = tuple(_perplexity(counts) for counts in self.counts)
        return CodebookUse(
            usage=float((pooled > 0).double().mean()),
            perplexity=_perplexity(pooled),
            usage_per_group=tuple(float((counts > 0).double().mean()) for counts in self.counts),
            perplexity_per_group=per_group,
            effective_bits=sum(math.log2(p) for p in per_group),
            tokens=tokens,
            uniform_usage=-math.expm1(tokens * math.log1p(-1 / size)),
        )
