"""Index backpropagation quantization (IBQ, arXiv 2412.02692, section 3.2).

Shapes: G groups, V codebook rows, d channels of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gsq.config.kinds import ROWS, Kind, Option, grouped_rows, several_groups
from gsq.quantizers.gradients import SOFTMAX_VALUES, soft_rows
from gsq.quantizers.spherical import GroupedSphericalQuantizer

KINDS = (
    Kind(
        "ibq",
        "IndexBackpropagationQuantizer",
        (*ROWS, "entropy_weight", "codebooks"),
        own=(Option("codebook_weight", 0.25, lambda value: "" if value >= 0 else "must be at least 0, such as 0.25"),),
        parameters=grouped_rows,
        lookup_macs=lambda q, latent_dim: q.codebook_size * latent_dim,
        check=several_groups,
    ),
)


class IndexBackpropagationQuantizer(GroupedSphericalQuantizer):
    """Each latent takes the row of the largest product z.c; the gradient of its index is that of a softmax over them.

    The decoder's gradient reaches the latent and all rows through p = softmax(z.c), and the chosen row directly. The
    loss is |q - z|^2 with those gradients, plus |sg(c) - z|^2, plus ``codebook_weight`` |c - sg(z)|^2, each a mean over
    channels. Products are computed in float64 and ties go to the lowest index. Values, loss, entropy term and gradients
    are checked against the authors' code (github.com/TencentARC/SEED-Voken at b9a17ea). The largest product is always
    that of a row on the convex hull of the codebook: groups of few channels leave most rows unused, also restarted
    ones, and the authors train with the entropy term (weight 0.05). A step costs V products of each
    latent three times: forward, again for the gradient, and the gradient.
    """

    loss_of_output = True
    product = True

    def __init__(
        self,
        latent_dim: int,
        groups: int,
        codebook_size: int,
        *,
        init: str = "uniform",
        codebook_decay: float = 0.99,
        restart_below: float = 0.0,
        kmeans_steps: int = 0,
        codebooks: str = "shared",
        entropy_weight: float = 0.0,
        codebook_weight: float = 0.25,
    ) -> None:
        super().__init__(
            latent_dim,
            groups,
            codebook_size,
            init=init,
            lookup_norm="none",
            codebook_decay=codebook_decay,
            restart_below=restart_below,
            kmeans_steps=kmeans_steps,
            codebooks=codebooks,
            entropy_weight=entropy_weight,
        )
        self.codebook_weight = codebook_weight

    def _nearest(self, given: Tensor, vectors: Tensor, raw: Tensor, rows: Tensor) -> Tensor:
        return self._by_group(_largest_product, vectors.detach(), rows.detach())

    def _passed(self, received: Tensor, carrier: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return received
        soft = self._by_group(lambda z, c: soft_rows(z, c, c.detach(), 1.0, product=True), carrier, rows)
        return received + (soft - soft.detach())

    def _loss(self, target: Tensor, vectors: Tensor, carrier: Tensor, quantized: Tensor) -> Tensor:
        both = F.mse_loss(quantized, vectors) + F.mse_loss(target.detach(), vectors)
        return both + self.codebook_weight * F.mse_loss(target, vectors.detach())


def _largest_product(vectors: Tensor, rows: Tensor) -> Tensor:
    """(..., d) and (V, d) -> (...) int64: the row of the largest z.c in float64, the lowest of such."""
    parts = vectors.reshape(-1, vectors.shape[-1]).double().split(max(1, SOFTMAX_VALUES // len(rows)))
    columns = rows.double().T
    found = []
    for part in parts:
        products = part @ columns
        found.append((products == products.amax(1, keepdim=True)).byte().argmax(1))
    return torch.cat(found).view(vectors.shape[:-1])
