"""Differentiable vector quantization (DiVeQ, arXiv 2509.26469): gradients through the distance to the row.

Shapes: G groups, V codebook rows, d channels of a row, h x w latent positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsq.config.kinds import ROWS, Kind, Option, grouped_rows, row_products, several_groups
from gsq.quantizers.base import straight_through
from gsq.quantizers.gradients import towards
from gsq.quantizers.spherical import GroupedSphericalQuantizer

KINDS = (
    Kind(
        "diveq",
        "DirectionalQuantizer",
        (*ROWS, "lookup_precision", "codebooks"),
        own=(
            Option(
                "direction_noise",
                0.0,
                lambda value: "" if value >= 0 else "must be at least 0; the authors' code has 0.001",
            ),
        ),
        parameters=grouped_rows,
        lookup_macs=row_products,
        check=several_groups,
        least_group_dim=2,
    ),
)


class DirectionalQuantizer(GroupedSphericalQuantizer):
    """The row is the latent plus its distance to the row along a direction that is constant for the gradient.

    So the decoder's gradient reaches both the latent and the row, and there is no loss of the quantizer's own.
    direction_noise: standard deviation of normal noise that is added to the direction in training, where the decoder
    then receives a point beside the row; 0 is the variant that the authors call detach, whose value is the row. Noise
    is drawn once a step for every position and shared by the images, so that micro-batches and processes change
    nothing. Values and gradients, with and without noise, are checked against the authors' code
    (github.com/AaltoML/DiVeQ at 9b288d0); its replacement of unused rows is here that of ``restart_below``. A group of
    one channel has but one direction, which leaves the latent without a gradient, and is refused.
    """

    def __init__(
        self,
        latent_dim: int,
        groups: int,
        codebook_size: int,
        *,
        init: str = "uniform",
        lookup_precision: str = "exact",
        codebook_decay: float = 0.99,
        restart_below: float = 0.0,
        kmeans_steps: int = 0,
        codebooks: str = "shared",
        direction_noise: float = 0.0,
    ) -> None:
        super().__init__(
            latent_dim,
            groups,
            codebook_size,
            init=init,
            lookup_norm="none",
            lookup_precision=lookup_precision,
            codebook_decay=codebook_decay,
            restart_below=restart_below,
            kmeans_steps=kmeans_steps,
            codebooks=codebooks,
        )
        self.direction_noise = direction_noise
        self.set_gradient("directional", clock=direction_noise > 0)

    def _noise(self, shape: torch.Size) -> Tensor:
        """(h, w, G, d) of this step."""
        assert self.clock is not None
        generator = torch.Generator().manual_seed(int(self.clock))
        return self.direction_noise * torch.randn(shape, generator=generator)

    def _passed(self, received: Tensor, carrier: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        if self.direction_noise and self.training:
            return towards(received, carrier, self._noise(carrier.shape[1:]).to(carrier.device))
        return straight_through(received, towards(received, carrier))

    def _loss(self, target: Tensor, vectors: Tensor, carrier: Tensor, quantized: Tensor) -> Tensor:
        return vectors.new_zeros(())
