"""Codebook use from exact counts of indices.

Shapes: B images, K indices of a latent position, L_k values of index k, h x w latent positions. Indices that share one
codebook of V rows (GSQ) are pooled. Without a shared codebook (rvq, fsq, lfq, bsq, codebooks per_group), pairs of
index and value count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodebookUse:
    usage: float
    """Share of the V rows used at least once, groups pooled; without a shared codebook, out of the sum over groups."""
    perplexity: float
    """exp(entropy in nats) of the pooled histogram [rows]; geometric mean over indices without a shared codebook."""
    usage_per_group: tuple[float, ...]
    """Usage of each index; perplexity_per_group likewise."""
    perplexity_per_group: tuple[float, ...]
    effective_bits: float
    """Sum over indices of log2 perplexity: bits per token if indices were independent."""
    tokens: int
    """Indices counted in each histogram: all if they share one, else those of one index."""
    dead_rows: int
    """Unused rows of the V, groups pooled; without a shared codebook, out of the sum over groups."""
    few_tokens: bool
    """Fewer than 10 tokens per row, so that their number limits usage and perplexity."""
    uniform_usage: float
    """Expected usage of equally many independent uniform indices, 1 - (1 - 1/V)^tokens; the mean over pairs without a
    shared codebook."""


def _entropy(counts: Tensor) -> float:
    p = counts.double() / counts.sum()
    return -float(torch.special.xlogy(p, p).sum())


def _share(counts: Tensor) -> float:
    return float((counts > 0).double().mean())


class IndexHistogram:
    """Counts of the indices seen: int64, the L_k of index 0 first, 8 bytes each (D = 64 of 2^18 values: 134 MB)."""

    def __init__(self, index_sizes: tuple[int, ...], shared: bool) -> None:
        """shared: all indices select from the same rows, so that all of index_sizes are equal."""
        self.index_sizes, self.shared = index_sizes, shared
        self.counts = torch.zeros(sum(index_sizes), dtype=torch.int64)

    def update(self, indices: Tensor) -> None:
        """indices: (B, K, h, w) int64, index k in [0, L_k)."""
        values = indices.detach().cpu().transpose(0, 1).flatten(1)
        for counts, found in zip(self.per_index(), values, strict=True):
            counts.index_add_(0, found, torch.ones_like(found))

    def merge(self, other: IndexHistogram) -> None:
        """Add the counts of other images."""
        self.counts += other.counts

    def per_index(self) -> tuple[Tensor, ...]:
        """Counts of each index, (L_k,) int64 each."""
        return self.counts.split(list(self.index_sizes))

    def result(self) -> CodebookUse:
        """Raises ValueError before the first update."""
        each = self.per_index()
        if not each[0].sum():
            raise ValueError("no indices were counted")
        entropies = [_entropy(counts) for counts in each]
        if self.shared:
            pooled = self.counts.view(len(each), -1).sum(0)
            tokens, entropy = int(pooled.sum()), _entropy(pooled)
        else:
            pooled = self.counts
            tokens, entropy = int(each[0].sum()), sum(entropies) / len(entropies)
        uniform = sum(-size * math.expm1(tokens * math.log1p(-1 / size)) for size in self.index_sizes)
        return CodebookUse(
            usage=_share(pooled),
            perplexity=math.exp(entropy),
            usage_per_group=tuple(_share(counts) for counts in each),
            perplexity_per_group=tuple(math.exp(value) for value in entropies),
            effective_bits=sum(entropies) / math.log(2),
            tokens=tokens,
            dead_rows=int((pooled == 0).sum()),
            few_tokens=tokens < 10 * max(self.index_sizes),
            uniform_usage=uniform / sum(self.index_sizes),
        )
