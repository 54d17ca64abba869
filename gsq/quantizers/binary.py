"""Sign quantizers: look-up free (LFQ, arXiv 2310.05737) and binary spherical (BSQ, arXiv 2406.07548).

Shapes: B images, D latent channels, h x w latent positions. Both have D indices of one bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gsq.config.kinds import Kind, two_values
from gsq.quantizers.base import Quantizer, QuantizerOutput, straight_through

KINDS = tuple(
    Kind(name, cls, ("commitment_weight", "entropy_weight"), per_channel=True, check=two_values)
    for name, cls in (("lfq", "LookupFreeQuantizer"), ("bsq", "BinarySphericalQuantizer"))
)
# Inverse temperature of the softmax over negative distances, and the floor of a logarithm's argument: the reference's.
INVERSE_TEMPERATURE = 100.0
SMALLEST = 1e-5


class LookupFreeQuantizer(Quantizer):
    """The sign of each channel, -1 at 0 and below (index 0), +1 above (index 1).

    Loss: commitment_weight times the mean square to the signs, plus entropy_weight times (entropy of an index -
    entropy of the batch's mean) in nats, summed over channels, in training mode only. Checked against
    vector-quantize-pytorch 1.32.0's LFQ. Its softmax over the 2^D codes factors into one sigmoid per channel, so the
    entropy of an index is the same. The entropy of the mean is that of D independent bits (like the BSQ paper's): an
    upper bound that costs D instead of 2^D, and equals the reference's with D codebooks of size 2. The mean is over the
    latents of one forward pass, so this term depends on the micro-batch.
    """

    def __init__(self, latent_dim: int, *, commitment_weight: float = 0.25, entropy_weight: float = 0.0) -> None:
        super().__init__(latent_dim, latent_dim, (2,) * latent_dim)
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        self.scale = 1.0

    def _projected(self, latent: Tensor) -> Tensor:
        return latent

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        vectors = self._projected(latent)
        indices = (vectors > 0).long()
        quantized = self._decode(indices)
        loss = self.commitment_weight * F.mse_loss(vectors, quantized)
        if self.entropy_weight and self.training:
            loss = loss + self.entropy_weight * self._entropy_loss(vectors)
        return QuantizerOutput(straight_through(quantized, vectors), indices, loss)

    def _entropy_loss(self, vectors: Tensor) -> Tensor:
        # Squared distances to -scale and +scale differ by 4 scale z.
        logits = 4 * INVERSE_TEMPERATURE * self.scale * vectors
        probabilities = torch.stack([logits.sigmoid(), (-logits).sigmoid()])
        mean = probabilities.mean((1, 3, 4))
        of_each = -probabilities * probabilities.clamp(min=SMALLEST).log()
        of_mean = -mean * mean.clamp(min=SMALLEST).log()
        return of_each.sum((0, 2)).mean() - of_mean.sum()

    def _decode(self, indices: Tensor) -> Tensor:
        return (2 * indices - 1).float() * self.scale


class BinarySphericalQuantizer(LookupFreeQuantizer):
    """LFQ of the latent vector divided by its l2 norm over all D channels, with values +-1/sqrt(D).

    It differs from the published code in the commitment loss, a mean instead of a sum over channels, and in a
    straight-through gradient that 1/sqrt(D) does not scale. Checked against vector-quantize-pytorch 1.32.0's
    LFQ(spherical=True), which does both too; the entropy term against the published code with groups of one channel.
    """

    def __init__(self, latent_dim: int, *, commitment_weight: float = 0.25, entropy_weight: float = 0.0) -> None:
        super().__init__(latent_dim, commitment_weight=commitment_weight, entropy_weight=entropy_weight)
        self.scale = latent_dim**-0.5

    def _projected(self, latent: Tensor) -> Tensor:
        return F.normalize(latent, dim=1)
