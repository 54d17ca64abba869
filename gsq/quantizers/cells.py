"""What a codebook's cells (the latents that chose each row) hold: k-means initialisation, and restarts of dead rows.

Shapes: (..., V, d) rows, with leading axes for the codebooks of a quantizer that has several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Variances that are a smaller share of the squared mean count as none.
NARROWEST = 1e-10


class Renewal(NamedTuple):
    """Rows to be replaced after a step."""

    replaced: Tensor
    """(..., V), bool."""
    rows: Tensor
    """(..., V, d), float32; those that are not replaced mean nothing."""
    counts: Tensor
    """(..., V), float32: what a moving average starts these rows with."""


class Cells(nn.Module):
    """Counts, sums and squares of a step's latents by row, and what follows from them.

    For the first ``kmeans_steps`` steps every row becomes the mean of its cell: one iteration of k-means over the batch
    of each step. An empty cell, and after those steps a row that fewer than ``restart_below`` latents a step choose (a
    moving average with ``decay``, which starts at 1), gets a new place inside another cell, drawn in proportion to the
    cells' counts: that cell's mean plus normal noise of its standard deviation. Published restarts draw a latent of the
    batch instead (vector-quantize-pytorch, whose rule for which rows are dead is this one); means and deviations can be
    summed over micro-batches and processes, so that neither changes a result. The draws depend on the number of
    updates alone.
    """

    usage: Tensor
    updates: Tensor
    pending_counts: Tensor
    pending_sums: Tensor
    pending_squares: Tensor

    def __init__(self, shape: torch.Size, decay: float, restart_below: float, kmeans_steps: int) -> None:
        super().__init__()
        self.decay, self.restart_below, self.kmeans_steps = decay, restart_below, kmeans_steps
        self.register_buffer("usage", torch.ones(shape[:-1]))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # In float64, as a deviation is the small difference of squares.
        for name, size in (("counts", shape[:-1]), ("sums", shape), ("squares", shape)):
            self.register_buffer(f"pending_{name}", torch.zeros(size, dtype=torch.float64), persistent=False)

    @property
    def needed(self) -> bool:
        """Whether a further update can replace a row."""
        return self.restart_below > 0 or int(self.updates) < self.kmeans_steps

    @torch.no_grad()
    def add(self, places: Tensor, vectors: Tensor) -> None:
        """Add vectors (N, d) with the places (N,) of the rows that they chose, counted over all codebooks."""
        vectors = vectors.double()
        self.pending_counts.view(-1).index_add_(0, places, torch.ones_like(vectors[:, 0]))
        for total, values in ((self.pending_sums, vectors), (self.pending_squares, vectors.square())):
            total.view(-1, total.shape[-1]).index_add_(0, places, values)

    def discard(self) -> None:
        for pending in (self.pending_counts, self.pending_sums, self.pending_squares):
            pending.zero_()

    @torch.no_grad()
    def update(self, all_reduce: Callable[[Tensor], None]) -> Renewal | None:
        """Take in pending latents and return the rows to replace; None if nothing was pending."""
        pending = self.pending_counts, self.pending_sums, self.pending_squares
        for total in pending:
            all_reduce(total)
        if not self.pending_counts.any():
            return None
        counts, sums, squares = (total.clone() for total in pending)
        self.discard()
        step = int(self.updates)
        self.updates += 1
        self.usage.lerp_(counts.float(), 1 - self.decay)
        means = sums / counts.clamp(min=1)[..., None]
        if step < self.kmeans_steps:
            moved, replaced = counts == 0, torch.ones_like(counts, dtype=torch.bool)
            starting = counts.clamp(min=1).float()
            self.usage.copy_(starting)
        else:
            moved = replaced = self.usage < self.restart_below
            starting = torch.full_like(self.usage, self.restart_below)
            self.usage.masked_fill_(moved, self.restart_below)
        if moved.any():
            squared = means.square()
            variances = squares / counts.clamp(min=1)[..., None] - squared
            # Equal latents make equal rows, of which the first is chosen: rounding must not tell them apart.
            deviations = torch.where(variances > NARROWEST * squared, variances, 0.0).sqrt()
            means = torch.where(moved[..., None], _drawn(counts, means, deviations, step), means)
        return Renewal(replaced, means.float(), starting)


def _drawn(counts: Tensor, means: Tensor, deviations: Tensor, seed: int) -> Tensor:
    """(..., V, d): a place for every row, inside a cell drawn in proportion to the counts of its own codebook."""
    generator = torch.Generator().manual_seed(seed)
    flat = counts.flatten(0, -2) if counts.ndim > 1 else counts[None]
    donors = torch.multinomial(flat.cpu(), flat.shape[-1], replacement=True, generator=generator).to(counts.device)
    donors = donors.view(counts.shape)[..., None].expand(means.shape)
    noise = torch.randn(means.shape, generator=generator, dtype=torch.float64).to(means.device)
    return means.gather(-2, donors) + deviations.gather(-2, donors) * noise
