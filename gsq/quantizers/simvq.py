"""SimVQ (arXiv 2411.02038, eq. 6): frozen random rows, of which a linear map is learned.

Shapes: G groups, V codebook rows, d channels of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsq.config.kinds import GRADIENT, Kind, row_products, several_groups
from gsq.quantizers.spherical import GroupedSphericalQuantizer

KINDS = (
    Kind(
        "simvq",
        "MappedQuantizer",
        (*GRADIENT, "lookup_precision", "commitment_weight", "codebooks"),
        parameters=lambda q, latent_dim: (
            (latent_dim // q.groups) ** 2 * (q.groups if q.codebooks == "per_group" else 1)
        ),
        lookup_macs=row_products,
        check=several_groups,
    ),
)


class MappedQuantizer(GroupedSphericalQuantizer):
    """A row is W c, where the rows c are drawn from a normal distribution of variance 1/d and never change.

    Every step moves all rows through W (d, d), so that none dies: restarts, k-means and averages do not apply. Loss and
    gradients are those of VQ. Checked against vector-quantize-pytorch 1.32.0's SimVQ, without and with its rotation
    trick. The authors' code gives the map a bias, which neither the paper's formula nor that package has. With
    ``codebooks`` "per_group", each group has rows and a map of its own.
    """

    undecayed = ("map",)

    def __init__(
        self,
        latent_dim: int,
        groups: int,
        codebook_size: int,
        *,
        lookup_precision: str = "exact",
        commitment_weight: float = 0.25,
        gradient: str = "straight_through",
        soft_temperature: float = 1.0,
        soft_decay: float = 1.0,
        codebooks: str = "shared",
    ) -> None:
        super().__init__(
            latent_dim,
            groups,
            codebook_size,
            lookup_norm="none",
            lookup_precision=lookup_precision,
            commitment_weight=commitment_weight,
            gradient=gradient,
            soft_temperature=soft_temperature,
            soft_decay=soft_decay,
            codebooks=codebooks,
        )
        rows, dim = self.codebook.detach(), latent_dim // groups
        del self.codebook
        self.set_codebook(torch.randn_like(rows) * dim**-0.5, "frozen")
        # The same initialization as torch.nn.Linear.
        self.map = nn.Parameter(torch.empty(*rows.shape[:-2], dim, dim).uniform_(-(dim**-0.5), dim**-0.5))

    @property
    def rows(self) -> Tensor:
        return self.codebook @ self.map.transpose(-1, -2)
