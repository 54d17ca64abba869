"""Finite scalar quantizer (FSQ, arXiv 2309.15505, appendix A.1).

Shapes: B images, D latent channels, h x w latent positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsq.config.kinds import Kind
from gsq.errors import UserError
from gsq.quantizers.base import Quantizer, QuantizerOutput, straight_through

KINDS = (
    Kind(
        "fsq",
        "FiniteScalarQuantizer",
        ("levels",),
        per_channel=True,
        index_sizes=lambda q: q.levels or (q.codebook_size,) * q.groups,
        check=lambda q: (
            ""
            if min((q.codebook_size, *q.levels)) >= 3
            else f"quantizer.{'levels' if q.levels else 'codebook_size'}: fsq rounds a tanh, which leaves nothing to "
            "choose with 2 levels; use at least 3, or kind lfq"
        ),
    ),
)
EPS = 1e-3


class FiniteScalarQuantizer(Quantizer):
    """Bounds each channel by tanh and rounds it to one of its L levels; no codebook, loss zero.

    Values are (i - L // 2) / (L // 2) for index i in [0, L). Checked against vector-quantize-pytorch 1.32.0's FSQ,
    except for L > 1000, where its margin of 0.1 % rounds beyond the last level, which is clamped here. Raises UserError
    for L = 2, which would split a channel at -3.8 (the reference refuses it too).
    """

    half_range: Tensor
    offset: Tensor
    half_width: Tensor
    largest: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__(len(levels), len(levels), levels)
        if min(levels) < 3:
            raise UserError(
                f"quantizer.levels: {min(levels)} is too few for fsq, whose bound needs at least 3; kind lfq has two"
            )
        sizes = torch.tensor(levels).view(-1, 1, 1)
        self.register_buffer("half_range", (sizes - 1) * (1 + EPS) / 2, persistent=False)
        self.register_buffer("offset", torch.where(sizes % 2 == 0, 0.5, 0.0), persistent=False)
        self.register_buffer("half_width", sizes // 2, persistent=False)
        self.register_buffer("largest", (sizes - 1) // 2, persistent=False)

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        shift = torch.atanh(self.offset / self.half_range)
        bounded = torch.tanh(latent + shift) * self.half_range - self.offset
        rounded = bounded.round().clamp(-self.half_width, self.largest)
        quantized = straight_through(rounded, bounded) / self.half_width
        return QuantizerOutput(quantized, rounded.long() + self.half_width, latent.new_zeros(()))

    def _decode(self, indices: Tensor) -> Tensor:
        return (indices - self.half_width).float() / self.half_width
