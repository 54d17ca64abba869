"""Gradients through a choice of rows, for a value that stays the chosen row bit for bit.

Shapes: d channels of a row, V rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsq.quantizers.base import straight_through

# Probabilities that a softmax over rows holds at a time.
SOFTMAX_VALUES = 1 << 24
# Smallest length that a rotation divides by: that of vector-quantize-pytorch.
SHORTEST = 1e-6


def rotated(value: Tensor, latent: Tensor) -> Tensor:
    """``value`` (..., d), with the gradient of the rotation and scaling that take ``latent`` to it.

    The rotation trick (arXiv 2410.06424, section 4.2): both are constants for the gradient, which keeps its angle to
    the latent. Checked against vector-quantize-pytorch 1.32.0. A latent or value shorter than 1e-6 is divided by that.
    """
    with torch.no_grad():
        lengths = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (latent, value)]
        u, q = (x / length.clamp(min=SHORTEST) for x, length in zip((latent, value), lengths, strict=True))
        w = F.normalize(u + q, dim=-1, eps=SHORTEST)
        scale = lengths[1] / lengths[0].clamp(min=SHORTEST)
    turned = latent - 2 * (latent * w).sum(-1, keepdim=True) * w + 2 * (latent * u).sum(-1, keepdim=True) * q
    return straight_through(value, turned * scale)


def towards(row: Tensor, latent: Tensor, noise: Tensor | None = None) -> Tensor:
    """(..., d): ``latent`` plus its distance to ``row`` along the direction between them, which is a constant.

    DiVeQ (arXiv 2509.26469): the gradient reaches both, as the distance depends on both. With ``noise``, which is added
    to the direction, the result lies off the row; without, it is the row up to rounding.
    """
    gap = row - latent
    direction = F.normalize((gap if noise is None else gap + noise).detach(), dim=-1)
    return latent + torch.linalg.vector_norm(gap, dim=-1, keepdim=True) * direction


def soft_rows(vectors: Tensor, rows: Tensor, values: Tensor, temperature: float, *, product: bool = False) -> Tensor:
    """(..., d), (V, d) and (V, d) -> (..., d): means of ``values``, weighted by the softmax of ``logits_of``.

    The probabilities are computed again for the gradient, so that no N x V of them are kept.
    """

    def means(part: Tensor) -> Tensor:
        return logits_of(part, rows, temperature, product=product).softmax(1) @ values

    parts = vectors.reshape(-1, vectors.shape[-1]).split(max(1, SOFTMAX_VALUES // len(rows)))
    found = [checkpoint(means, part, use_reentrant=False) for part in parts]
    return torch.cat(found).view(vectors.shape)


def logits_of(vectors: Tensor, rows: Tensor, temperature: float, *, product: bool = False) -> Tensor:
    """(N, d) and (V, d) -> (N, V): (|z|^2 - |z - c|^2) / temperature, whose first term is the same for all rows; or z.c
    / temperature as ``product``."""
    if product:
        return vectors @ rows.T / temperature
    return (2 * vectors @ rows.T - rows.square().sum(1)) / temperature
