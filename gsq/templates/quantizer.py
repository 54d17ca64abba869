"""A quantizer of your own: the nearest row of a codebook, with a temperature on its commitment loss.

Use it in a sweep with   set: {quantizer.kind: "gsq.templates.quantizer:Mine"}
and an option as an axis    axes: {quantizer.options.temperature: [0.5, 1, 2]}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.quantizers.base import Quantizer, QuantizerOutput, look_up, straight_through


@dataclass(frozen=True)
class Options:
    """The keys of quantizer.options. A default is left out of the run's signature."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} must be above 0")


class Mine(Quantizer):
    """B images, D latent channels in G groups of d = D / G, V rows, h x w latent positions."""

    Options = Options

    def __init__(self, latent_dim: int, groups: int, codebook_size: int, temperature: float = 1.0) -> None:
        # The last argument says how many values each index can take. Plans and bits per pixel take (V,) * G; if yours
        # differ, declare them beside the class: KINDS = (Kind("mine", "Mine", (), index_sizes=lambda q: ...),) with
        # Kind of gsq.config.kinds; q is the section quantizer of a config, with q.groups and q.options.
        super().__init__(latent_dim, groups, (codebook_size,) * groups)
        self.codebook = nn.Parameter(torch.randn(codebook_size, latent_dim // groups))
        self.temperature = temperature

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        """(B, D, h, w) float32 -> latent of the same shape, indices (B, G, h, w) int64, and a loss (a scalar)."""
        vectors = latent.unflatten(1, (self.groups, -1)).permute(0, 3, 4, 1, 2)  # (B, h, w, G, d)
        indices = look_up(vectors, self.codebook, "exact")
        rows = self.codebook[indices]
        loss = F.mse_loss(rows, vectors.detach()) + self.temperature * F.mse_loss(vectors, rows.detach())
        # Its value is that of the rows; its gradient goes to the encoder as if nothing had been quantized.
        return QuantizerOutput(self._joined(straight_through(rows, vectors)), indices.permute(0, 3, 1, 2), loss)

    def _decode(self, indices: Tensor) -> Tensor:
        """(B, G, h, w) -> (B, D, h, w): what ``_quantize`` returned for these indices, bit for bit."""
        return self._joined(self.codebook[indices.permute(0, 2, 3, 1)])

    def _joined(self, vectors: Tensor) -> Tensor:
        return vectors.permute(0, 3, 4, 1, 2).flatten(1, 2)
