"""Quantizers: latent vectors to codebook indices and back, one interface for all kinds."""

from __future__ import annotations

from gsq.config import RunConfig
from gsq.quantizers.spherical import GroupedSphericalQuantizer, QuantizerOutput

__all__ = ["GroupedSphericalQuantizer", "QuantizerOutput", "build_quantizer"]


def build_quantizer(config: RunConfig) -> GroupedSphericalQuantizer:
    """The quantizer that ``config.quantizer.kind`` names (config checked that it exists)."""
    q = config.quantizer
    return GroupedSphericalQuantizer(
        latent_dim=config.model.latent_dim,
        groups=q.groups,
        codebook_size=q.codebook_size,
        init=q.init,
        lookup_norm=config.lookup_norm,
        decoder_input=q.decoder_input,
        loss_row=q.loss_row,
        commitment_weight=q.commitment_weight,
    )
