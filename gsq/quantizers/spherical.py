"""Grouped spherical quantizer (GSQ, arXiv 2412.02632, eq. 3-5) and its one-group corner, VQ.

Shapes: B images, D latent channels, G groups, d = D / G, V codebook rows, h x w latent positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsq.config.kinds import CODEBOOK, Kind, one_codebook, one_group
from gsq.quantizers.base import CodebookQuantizer, QuantizerOutput, initial_rows, look_up, straight_through

KINDS = (
    Kind(
        "gsq",
        "GroupedSphericalQuantizer",
        (*CODEBOOK, "decoder_input", "loss_row", "entropy_weight"),
        init="spherical",
        lookup_norm="l2",
        parameters=one_codebook,
    ),
    Kind("vq", "GroupedSphericalQuantizer", (*CODEBOOK, "entropy_weight"), parameters=one_codebook, check=one_group),
)
# Temperature of the softmax in the entropy loss, from MaskGIT's code (the GSQ paper gives none).
ENTROPY_TEMPERATURE = 0.01
# Probabilities that it holds at a time.
ENTROPY_VALUES = 1 << 24
# Rows whose average is shorter keep their place, since rounding loses its direction.
SHORTEST = 1e-12


class GroupedSphericalQuantizer(CodebookQuantizer):
    """Splits each latent vector into G groups and replaces each by its nearest row of one shared codebook.

    init: see ``initial_rows``. lookup_norm: applied to both sides before the Euclidean comparison; "l2" and "l1" divide
    by that norm, "clip" clamps to [-1, 1], "none" changes nothing. decoder_input and loss_row choose between the row as
    compared ("normalised") and the "raw" parameter (the authors' code). Ties go to the lowest index. With groups = 1
    and lookup_norm "none" this is VQ (VQ-VAE).

    clip: clamps only the comparison, the row and the codebook's target. The clamp passes gradients on, and commitment
    loss and straight-through gradient belong to the unclamped latent. The authors' code differentiates torch.clamp on
    the latent, so a latent outside [-1, 1] gets no gradient and never returns; inside, the two are the same.

    codebook_update "ema": ``update_codebook`` moves each row to the decayed average of the (compared) latents that
    chose it, normalised like them, and the loss is the commitment alone; checked against vector-quantize-pytorch 1.32.0
    (Euclidean and cosine). Rows that nothing chooses are not replaced.

    entropy_weight: weight of the auxiliary loss of the paper's table 2, (mean entropy of p - entropy of mean p) in nats
    with p = softmax(-|z - c|^2 / ENTROPY_TEMPERATURE) over the rows, in training mode only.
    """

    shared_codebook = True

    def __init__(
        self,
        latent_dim: int,
        groups: int,
        codebook_size: int,
        *,
        init: str = "spherical",
        lookup_norm: str = "l2",
        lookup_precision: str = "exact",
        decoder_input: str = "normalised",
        loss_row: str = "normalised",
        commitment_weight: float = 0.25,
        codebook_update: str = "gradient",
        codebook_decay: float = 0.99,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__(latent_dim, groups, (codebook_size,) * groups)
        if latent_dim % groups:
            raise ValueError(f"groups must divide latent_dim, got latent_dim {latent_dim} and groups {groups}")
        self.lookup_norm, self.lookup_precision = lookup_norm, lookup_precision
        self.decoder_input, self.loss_row = decoder_input, loss_row
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        rows = initial_rows((codebook_size, latent_dim // groups), init)
        # The average starts from rows as the look-up compares them.
        rows = self._compared(rows) if codebook_update == "ema" else rows
        self.set_codebook(rows, codebook_update, codebook_decay)

    def _compared(self, vectors: Tensor) -> Tensor:
        if self.lookup_norm == "clip":
            return straight_through(vectors.clamp(-1, 1), vectors)
        if self.lookup_norm == "none":
            return vectors
        return F.normalize(vectors, p=1 if self.lookup_norm == "l1" else 2, dim=-1)

    def _split(self, latent: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, h, w, G, d)."""
        return latent.unflatten(1, (self.groups, -1)).permute(0, 3, 4, 1, 2)

    def _join(self, grouped: Tensor) -> Tensor:
        """(B, h, w, G, d) -> (B, D, h, w)."""
        return grouped.permute(0, 3, 4, 1, 2).flatten(1, 2).contiguous()

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        given = self._split(latent)
        vectors, rows = self._compared(given), self._compared(self.codebook)
        if self.lookup_norm == "l2":
            # The look-up normalises in float64, so it takes the vectors before normalisation.
            indices = look_up(given, self.codebook, self.lookup_precision, normalise=True)
        else:
            indices = look_up(vectors, rows, self.lookup_precision)
        target = F.embedding(indices, self.codebook if self.loss_row == "raw" else rows)
        received = F.embedding(indices, self.codebook if self.decoder_input == "raw" else rows)
        carrier = given if self.lookup_norm == "clip" else vectors
        # Eq. 5; the mean is over batch, positions, groups and channels, so d and G do not change the weight.
        loss = self.commitment_weight * F.mse_loss(carrier, target.detach())
        if self.average is None:
            loss = F.mse_loss(target, vectors.detach()) + loss
        elif self.training:
            self.average.add(indices, vectors)
        if self.entropy_weight and self.training:
            loss = loss + self.entropy_weight * _entropy_loss(vectors.flatten(0, -2), rows)
        quantized = self._join(straight_through(received, carrier))
        return QuantizerOutput(quantized, indices.permute(0, 3, 1, 2).contiguous(), loss)

    def _decode(self, indices: Tensor) -> Tensor:
        rows = self.codebook if self.decoder_input == "raw" else self._compared(self.codebook)
        return self._join(F.embedding(indices.permute(0, 2, 3, 1), rows))

    def _renewed(self, means: Tensor) -> Tensor:
        lost = (means.norm(dim=1, keepdim=True) < SHORTEST) & (self.lookup_norm in ("l2", "l1"))
        return torch.where(lost, self.codebook, self._compared(means))


def _entropy_loss(vectors: Tensor, rows: Tensor) -> Tensor:
    """(N, d) and (V, d) -> scalar. Recomputes probabilities for the gradient, so that no N x V of them are kept."""

    def sums(part: Tensor) -> tuple[Tensor, Tensor]:
        # |z|^2 is the same for all rows.
        logits = (2 * part @ rows.T - rows.square().sum(1)) / ENTROPY_TEMPERATURE
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        return p.sum(0), -(p * log_p).sum()

    parts = vectors.split(max(1, ENTROPY_VALUES // len(rows)))
    found = [checkpoint(sums, part, use_reentrant=False) for part in parts]
    mean = torch.stack([p for p, _ in found]).sum(0) / len(vectors)
    entropy = torch.stack([h for _, h in found]).sum() / len(vectors)
    return entropy + torch.special.xlogy(mean, mean).sum()
