"""Grouped spherical quantizer (GSQ, arXiv 2412.02632, eq. 3-5).

Shapes: B images, D latent channels, G groups, d = D / G, V codebook rows, h x w latent positions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.quantizers.lookup import nearest_rows


class QuantizerOutput(NamedTuple):
    latent: Tensor
    """(B, D, h, w), float32: the quantized latent, with a straight-through gradient to the input."""
    indices: Tensor
    """(B, G, h, w), int64."""
    loss: Tensor
    """Scalar: codebook loss plus commitment_weight times commitment loss."""


class GroupedSphericalQuantizer(nn.Module):
    """Splits each latent vector into G groups and replaces each by its nearest row of one shared codebook.

    init: "spherical" draws rows uniformly on the unit sphere (in [-1, 1] at d = 1, where the sphere is two
    points); "uniform" draws each entry in [-1/V, 1/V], as VQ-GAN does. lookup_norm: "l2" normalises both sides
    before the look-up, "none" compares as they are. decoder_input and loss_row choose between the row as the
    look-up compared it ("normalised") and the "raw" parameter (the authors' code). The look-up is exact and ties
    go to the lowest index.
    """

    def __init__(
        self,
        latent_dim: int,
        groups: int,
        codebook_size: int,
        *,
        init: str = "spherical",
        lookup_norm: str = "l2",
        decoder_input: str = "normalised",
        loss_row: str = "normalised",
        commitment_weight: float = 0.25,
    ) -> None:
        super().__init__()
        if latent_dim % groups:
            raise ValueError(f"groups must divide latent_dim, got latent_dim {latent_dim} and groups {groups}")
        self.latent_dim, self.groups, self.codebook_size = latent_dim, groups, codebook_size
        self.lookup_norm, self.decoder_input, self.loss_row = lookup_norm, decoder_input, loss_row
        self.commitment_weight = commitment_weight
        shape = (codebook_size, latent_dim // groups)
        if init == "uniform":
            rows = torch.empty(shape).uniform_(-1 / codebook_size, 1 / codebook_size)
        elif shape[1] == 1:
            rows = torch.empty(shape).uniform_(-1, 1)
        else:
            rows = F.normalize(torch.randn(shape), dim=1)
        self.codebook = nn.Parameter(rows)

    @property
    def bits_per_token(self) -> float:
        """Bits of one latent position, G log2 V."""
        return self.groups * math.log2(self.codebook_size)

    def _compared(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.lookup_norm == "l2" else vectors

    def _split(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h, w, G, d)."""
        return latent.unflatten(1, (self.groups, -1)).permute(0, 3, 4, 1, 2)

    def _join(self, grouped: Tensor) -> Tensor:
        """(B, h, w, G, d) -> (B, D, h, w)."""
        return grouped.permute(0, 3, 4, 1, 2).flatten(1, 2).contiguous()

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """latent: (B, D, h, w), any floating dtype; computed in float32 under any autocast."""
        if latent.ndim != 4 or latent.shape[1] != self.latent_dim:
            raise ValueError(f"latent must be (B, {self.latent_dim}, h, w), got {tuple(latent.shape)}")
        with torch.autocast(latent.device.type, enabled=False):
            vectors = self._compared(self._split(latent.float()))
            rows = self._compared(self.codebook)
            indices = nearest_rows(vectors.reshape(-1, vectors.shape[-1]), rows).view(vectors.shape[:-1])
            chosen = F.embedding(indices, rows)
            raw = F.embedding(indices, self.codebook)
            target = raw if self.loss_row == "raw" else chosen
            # Eq. 5; the mean is over batch, positions, groups and channels, so that d and G leave the weight alone.
            loss = F.mse_loss(target, vectors.detach())
            loss = loss + self.commitment_weight * F.mse_loss(vectors, target.detach())
            received = raw if self.decoder_input == "raw" else chosen
            # The added difference is exactly zero: the value is the row, bit for bit, the gradient the latent's.
            quantized = received.detach() + (vectors - vectors.detach())
        return QuantizerOutput(self._join(quantized), indices.permute(0, 3, 1, 2).contiguous(), loss)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """(B, G, h, w) int64 -> (B, D, h, w) float32: the latent that ``forward`` handed to the decoder."""
        rows = self.codebook if self.decoder_input == "raw" else self._compared(self.codebook)
        return self._join(F.embedding(indices.permute(0, 2, 3, 1), rows.float()))
