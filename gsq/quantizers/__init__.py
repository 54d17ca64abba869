"""Quantizers: latent vectors to codebook indices and back, one interface for all kinds."""

from __future__ import annotations

from gsq.config.run import RunConfig
from gsq.quantizers.base import NonFiniteLatent, Quantizer, QuantizerOutput
from gsq.quantizers.binary import BinarySphericalQuantizer, LookupFreeQuantizer
from gsq.quantizers.finite_scalar import FiniteScalarQuantizer
from gsq.quantizers.residual import ResidualQuantizer
from gsq.quantizers.spherical import GroupedSphericalQuantizer

__all__ = [
    "BinarySphericalQuantizer",
    "FiniteScalarQuantizer",
    "GroupedSphericalQuantizer",
    "LookupFreeQuantizer",
    "NonFiniteLatent",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "build_quantizer",
]


def build_quantizer(config: RunConfig) -> Quantizer:
    """The quantizer that ``config.quantizer.kind`` names (config checked that it exists)."""
    q, latent_dim = config.quantizer, config.model.latent_dim
    if q.kind == "fsq":
        return FiniteScalarQuantizer(config.index_sizes)
    if q.kind in ("lfq", "bsq"):
        binary = LookupFreeQuantizer if q.kind == "lfq" else BinarySphericalQuantizer
        return binary(latent_dim, commitment_weight=q.commitment_weight, entropy_weight=q.entropy_weight)
    if q.kind == "rvq":
        return ResidualQuantizer(
            latent_dim,
            q.depth,
            q.codebook_size,
            init=config.codebook_init,
            lookup_precision=q.lookup_precision,
            commitment_weight=q.commitment_weight,
            codebook_update=q.codebook_update,
            codebook_decay=q.codebook_decay,
        )
    return GroupedSphericalQuantizer(
        latent_dim,
        q.groups,
        q.codebook_size,
        init=config.codebook_init,
        lookup_norm=config.lookup_norm,
        lookup_precision=q.lookup_precision,
        decoder_input=q.decoder_input,
        loss_row=q.loss_row,
        commitment_weight=q.commitment_weight,
        codebook_update=q.codebook_update,
        codebook_decay=q.codebook_decay,
        entropy_weight=q.entropy_weight,
    )
