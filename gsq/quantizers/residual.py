"""Residual vector quantizer (RVQ; SoundStream, arXiv 2107.03312, algorithm 1).

Shapes: B images, D latent channels, K levels, V codebook rows, h x w latent positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gsq.config.kinds import CODEBOOK, Kind, one_group
from gsq.quantizers.base import QuantizerOutput, initial_rows, look_up, straight_through
from gsq.quantizers.codebook import CodebookQuantizer

KINDS = (
    Kind(
        "rvq",
        "ResidualQuantizer",
        (*CODEBOOK, "depth"),
        index_sizes=lambda q: (q.codebook_size,) * q.depth,
        parameters=lambda q, latent_dim: q.depth * q.codebook_size * latent_dim,
        check=one_group,
    ),
)


class ResidualQuantizer(CodebookQuantizer):
    """Each of K codebooks quantizes the residual of those before it; the latent is the sum of the rows.

    Indices, rows, losses of the levels and the EMA update equal those of vector-quantize-pytorch 1.32.0's ResidualVQ
    (no gradient flows from a level's residual to the rows before it). The loss is the mean over levels, like in EnCodec
    and the GSQ authors' code, so that depth does not change its weight; ResidualVQ returns one loss per level. The
    straight-through gradient reaches the latent once; ResidualVQ's sum of straight-through levels multiplies it by K.
    The rotation trick turns the latent to the sum of the rows; with ``gradient`` "soft", a level's gradient passes
    through the residuals.
    """

    codebook: Tensor
    """(K, V, D)."""

    def __init__(
        self,
        latent_dim: int,
        depth: int,
        codebook_size: int,
        *,
        init: str = "uniform",
        lookup_precision: str = "exact",
        commitment_weight: float = 0.25,
        codebook_update: str = "gradient",
        codebook_decay: float = 0.99,
        gradient: str = "straight_through",
        soft_temperature: float = 1.0,
        soft_decay: float = 1.0,
        restart_below: float = 0.0,
        kmeans_steps: int = 0,
    ) -> None:
        super().__init__(latent_dim, 1, (codebook_size,) * depth)
        self.lookup_precision, self.commitment_weight = lookup_precision, commitment_weight
        rows = initial_rows((depth, codebook_size, latent_dim), init)
        self.set_codebook(rows, codebook_update, codebook_decay, restart_below, kmeans_steps)
        self.set_gradient(gradient, soft_temperature, soft_decay)

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        vectors = latent.permute(0, 2, 3, 1)
        total, residual = torch.zeros_like(vectors), vectors
        soft, carrier = torch.zeros_like(vectors), vectors
        levels, losses = [], []
        for level, rows in enumerate(self.codebook):
            indices = look_up(residual, rows, self.lookup_precision)
            chosen = F.embedding(indices, rows)
            loss = self.commitment_weight * F.mse_loss(residual, chosen.detach())
            if self.average is None:
                loss = F.mse_loss(chosen, residual.detach()) + loss
            self.follow(indices + level * self.codebook_size, residual)
            if self.gradient == "soft":
                level_soft = self.passed(chosen, carrier, rows, rows)
                soft, carrier = soft + level_soft, carrier - level_soft
            levels.append(indices)
            losses.append(loss)
            total, residual = total + chosen.detach(), residual - chosen.detach()
        if self.gradient == "soft":
            quantized = straight_through(total, soft)
        else:
            quantized = self.passed(total, vectors, rows, rows)
        quantized = quantized.permute(0, 3, 1, 2).contiguous()
        return QuantizerOutput(quantized, torch.stack(levels, 1), torch.stack(losses).mean())

    def _decode(self, indices: Tensor) -> Tensor:
        total = torch.zeros(1, device=indices.device)
        # The order of forward gives the same rounding.
        for chosen, rows in zip(indices.unbind(1), self.codebook, strict=True):
            total = total + F.embedding(chosen, rows)
        return total.permute(0, 3, 1, 2).contiguous()
