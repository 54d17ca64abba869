"""Codebooks: rows that the optimizer or their latents move, how they start and restart, and the gradient through them.

Shapes: V codebook rows of d channels; leading axes where a quantizer has several codebooks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gsq.quantizers.base import Quantizer, straight_through
from gsq.quantizers.cells import Cells
from gsq.quantizers.gradients import rotated, soft_rows

# Lowest temperature of a softmax: below it, logits overflow.
COLDEST = 1e-6


class MovingAverage(nn.Module):
    """Decayed count and sum of the vectors that chose each row of (..., V, d) rows: the codebook's EMA update.

    Like vector-quantize-pytorch's Codebook (checked against 1.32.0), but with one update per step instead of per
    forward pass, so that micro-batches and processes only change the order of summation.
    """

    counts: Tensor
    sums: Tensor
    pending_counts: Tensor
    pending_sums: Tensor

    EPS = 1e-5
    """Constant of the Laplace smoothing."""

    def __init__(self, rows: Tensor, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("counts", torch.ones(rows.shape[:-1]))
        self.register_buffer("sums", rows.clone())
        self.register_buffer("pending_counts", torch.zeros(rows.shape[:-1]), persistent=False)
        self.register_buffer("pending_sums", torch.zeros_like(rows), persistent=False)

    @torch.no_grad()
    def add(self, places: Tensor, vectors: Tensor) -> None:
        """Add vectors (N, d) with the places (N,) of the rows that they chose, counted over all codebooks."""
        self.pending_counts.view(-1).index_add_(0, places, torch.ones_like(places, dtype=torch.float32))
        self.pending_sums.view(-1, self.sums.shape[-1]).index_add_(0, places, vectors)

    @torch.no_grad()
    def restart(self, replaced: Tensor, rows: Tensor, counts: Tensor) -> None:
        """Let the averages of some rows (a mask (..., V)) begin anew at ``rows``, as if ``counts`` chose them."""
        self.counts.copy_(torch.where(replaced, counts, self.counts))
        self.sums.copy_(torch.where(replaced[..., None], rows * counts[..., None], self.sums))

    def discard(self) -> None:
        self.pending_counts.zero_()
        self.pending_sums.zero_()

    @torch.no_grad()
    def update(self, all_reduce: Callable[[Tensor], None]) -> Tensor | None:
        """Take in pending vectors and return the mean of each row, (..., V, d); None if nothing was pending."""
        all_reduce(self.pending_counts)
        all_reduce(self.pending_sums)
        if not self.pending_counts.any():
            return None
        self.counts.lerp_(self.pending_counts, 1 - self.decay)
        self.sums.lerp_(self.pending_sums, 1 - self.decay)
        self.discard()
        total = self.counts.sum(-1, keepdim=True)
        # Laplace smoothing: no row is divided by zero, and the counts keep their total.
        smoothed = (self.counts + self.EPS) / (total + self.counts.shape[-1] * self.EPS) * total
        return self.sums / smoothed[..., None]


class CodebookQuantizer(Quantizer):
    """A quantizer with a ``codebook`` that either the optimizer or a moving average of the latents updates.

    gradient: what reaches the latent through the chosen row. "straight_through" copies it; "rotation" is the rotation
    trick (``gradients.rotated``); "soft" is that of a softmax over the rows' negative squared distances divided by a
    temperature, which also reaches the rows (arXiv 1801.04260, eq. 3 and 4), while the value stays the chosen row. The
    temperature is multiplied by ``soft_decay`` after every step (soft to hard, arXiv 1704.00648, section 3.2).
    restart_below, kmeans_steps: see ``Cells``. The optimizer's moments of a replaced row stay.
    """

    codebook: Tensor
    average: MovingAverage | None
    cells: Cells | None
    clock: Tensor | None
    """Steps so far, where something depends on them."""

    def set_codebook(
        self, rows: Tensor, update: str, decay: float = 0.99, restart_below: float = 0.0, kmeans_steps: int = 0
    ) -> None:
        """Make ``rows`` a parameter (update "gradient"), a buffer with a moving average ("ema"), or one that stays as
        it is ("frozen")."""
        self.average = MovingAverage(rows, decay) if update == "ema" else None
        self.cells = Cells(rows.shape, decay, restart_below, kmeans_steps) if restart_below or kmeans_steps else None
        if update == "gradient":
            self.codebook = nn.Parameter(rows)
        else:
            self.register_buffer("codebook", rows)

    def set_gradient(
        self, gradient: str, soft_temperature: float = 1.0, soft_decay: float = 1.0, *, clock: bool = False
    ) -> None:
        self.gradient, self.soft_temperature, self.soft_decay = gradient, soft_temperature, soft_decay
        clock = clock or soft_decay != 1
        self.pending = False
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64) if clock else None)

    def follow(self, places: Tensor, vectors: Tensor) -> None:
        """Note vectors (..., d) and the places (...) of their rows for the update of the step, in training alone."""
        if self.training:
            self.pending = True
            for part in (self.average, self.cells if self.cells is not None and self.cells.needed else None):
                if part is not None:
                    part.add(places.flatten(), vectors.detach().reshape(-1, vectors.shape[-1]))

    def passed(self, received: Tensor, carrier: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        """The row ``received`` (..., d) bit for bit, with the gradient that ``gradient`` names to the latent
        ``carrier`` (..., d) and, if that is "soft", to the ``rows`` (V, d) that it compares and the ``values`` (V, d)
        that are received."""
        if not torch.is_grad_enabled():
            return received
        if self.gradient == "rotation":
            return rotated(received, carrier)
        if self.gradient == "soft":
            steps = 0 if self.clock is None else int(self.clock)
            temperature = max(self.soft_temperature * self.soft_decay**steps, COLDEST)
            return straight_through(received, soft_rows(carrier, rows, values, temperature))
        return straight_through(received, carrier)

    def _renewed(self, means: Tensor) -> Tensor:
        """The rows that the means of the latents stand for."""
        return means

    @torch.no_grad()
    def update_codebook(self, all_reduce: Callable[[Tensor], None] = lambda tensor: None) -> None:
        means = None if self.average is None else self.average.update(all_reduce)
        if means is not None:
            self.codebook.copy_(self._renewed(means))
        renewal = self.cells.update(all_reduce) if self.cells is not None and self.cells.needed else None
        if renewal is not None:
            rows = self._renewed(renewal.rows)
            self.codebook.copy_(torch.where(renewal.replaced[..., None], rows, self.codebook))
            if self.average is not None:
                self.average.restart(renewal.replaced, rows, renewal.counts)
        if self.clock is not None:
            self.clock += int(self.pending)
        self.pending = False

    def discard_pending(self) -> None:
        self.pending = False
        for part in (self.average, self.cells):
            if part is not None:
                part.discard()
