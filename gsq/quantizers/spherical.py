"""Grouped spherical quantizer (GSQ, arXiv 2412.02632, eq. 3-5) and its one-group corner, VQ.

Shapes: B images, D latent channels, G groups, d = D / G, V codebook rows, h x w latent positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsq.config.kinds import CODEBOOK, Kind, grouped_rows, one_group, row_products, several_groups
from gsq.quantizers.base import QuantizerOutput, initial_rows, look_up, straight_through
from gsq.quantizers.codebook import CodebookQuantizer
from gsq.quantizers.gradients import logits_of

KINDS = (
    Kind(
        "gsq",
        "GroupedSphericalQuantizer",
        (*CODEBOOK, "decoder_input", "loss_row", "entropy_weight", "codebooks"),
        init="spherical",
        lookup_norm="l2",
        parameters=grouped_rows,
        lookup_macs=row_products,
        check=several_groups,
    ),
    Kind("vq", "GroupedSphericalQuantizer", (*CODEBOOK, "entropy_weight"), parameters=grouped_rows, check=one_group),
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
    (Euclidean and cosine). ``restart_below`` replaces rows that nothing chooses.

    codebooks "per_group": G codebooks, each of V rows, instead of one that the groups share; checked against
    vector-quantize-pytorch 1.32.0 (separate_codebook_per_head).

    entropy_weight: weight of the auxiliary loss of the paper's table 2, (mean entropy of p - entropy of mean p) in nats
    with p = softmax(-|z - c|^2 / ENTROPY_TEMPERATURE) over the rows, in training mode only.
    """

    loss_of_output = False
    """Whether the loss compares what the decoder gets."""
    product = False
    """Whether vectors are compared with rows by their product instead of their distance."""

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
        gradient: str = "straight_through",
        soft_temperature: float = 1.0,
        soft_decay: float = 1.0,
        restart_below: float = 0.0,
        kmeans_steps: int = 0,
        codebooks: str = "shared",
    ) -> None:
        super().__init__(latent_dim, groups, (codebook_size,) * groups)
        if latent_dim % groups:
            raise ValueError(f"groups must divide latent_dim, got latent_dim {latent_dim} and groups {groups}")
        self.lookup_norm, self.lookup_precision = lookup_norm, lookup_precision
        self.decoder_input, self.loss_row = decoder_input, loss_row
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        self.shared_codebook = codebooks == "shared"
        shape = (codebook_size, latent_dim // groups)
        rows = initial_rows(shape if self.shared_codebook else (groups, *shape), init)
        # The average starts from rows as the look-up compares them.
        rows = self._compared(rows) if codebook_update == "ema" else rows
        self.set_codebook(rows, codebook_update, codebook_decay, restart_below, kmeans_steps)
        self.set_gradient(gradient, soft_temperature, soft_decay)

    @property
    def rows(self) -> Tensor:
        """(V, d), or (G, V, d) with a codebook for each group, before the normalisation of the look-up."""
        return self.codebook

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

    def _by_group(self, result: Callable[..., Tensor], vectors: Tensor, *tables: Tensor) -> Tensor:
        """``result`` of vectors (..., G, d) and tables (V, d), or of each group with its own of tables (G, V, d)."""
        if self.shared_codebook:
            return result(vectors, *tables)
        groups = zip(vectors.unbind(-2), *tables, strict=True)
        return torch.stack([result(*group) for group in groups], vectors.ndim - 2)

    def _places(self, indices: Tensor) -> Tensor:
        """(..., G): indices counted over all codebooks."""
        if self.shared_codebook:
            return indices
        return indices + self.codebook_size * torch.arange(self.groups, device=indices.device)

    def _chosen(self, indices: Tensor, table: Tensor) -> Tensor:
        return F.embedding(self._places(indices), table if self.shared_codebook else table.flatten(0, 1))

    def _nearest(self, given: Tensor, vectors: Tensor, raw: Tensor, rows: Tensor) -> Tensor:
        """(..., G): the row of each vector; ``given`` and ``raw`` are both sides before they are made comparable."""
        if self.lookup_norm == "l2":
            # The look-up normalises in float64, so it takes the vectors before normalisation.
            return self._by_group(lambda z, c: look_up(z, c, self.lookup_precision, normalise=True), given, raw)
        return self._by_group(lambda z, c: look_up(z, c, self.lookup_precision), vectors, rows)

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        given, raw = self._split(latent), self.rows
        vectors, rows = self._compared(given), self._compared(raw)
        indices = self._nearest(given, vectors, raw, rows)
        self.follow(self._places(indices), vectors)
        target = self._chosen(indices, raw if self.loss_row == "raw" else rows)
        values = raw if self.decoder_input == "raw" else rows
        carrier = given if self.lookup_norm == "clip" else vectors
        received = self._chosen(indices, values)
        # Autograd adds up gradients in the order of these lines, so that another order has other last digits.
        if self.loss_of_output:
            received = self._passed(received, carrier, rows, values)
        loss = self._loss(target, vectors, carrier, received)
        if self.entropy_weight and self.training:
            loss = loss + self.entropy_weight * self._entropy(vectors, rows)
        quantized = received if self.loss_of_output else self._passed(received, carrier, rows, values)
        return QuantizerOutput(self._join(quantized), indices.permute(0, 3, 1, 2).contiguous(), loss)

    def _passed(self, received: Tensor, carrier: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        """(..., G, d): the received rows, with their gradient."""
        if self.gradient != "soft" or self.shared_codebook:
            return self.passed(received, carrier, rows, values)
        groups = zip(received.unbind(-2), carrier.unbind(-2), rows, values, strict=True)
        return torch.stack([self.passed(*group) for group in groups], -2)

    def _loss(self, target: Tensor, vectors: Tensor, carrier: Tensor, quantized: Tensor) -> Tensor:
        """Eq. 5; the mean is over batch, positions, groups and channels, so d and G do not change the weight."""
        loss = self.commitment_weight * F.mse_loss(carrier, target.detach())
        return loss if self.average is not None else F.mse_loss(target, vectors.detach()) + loss

    def _entropy(self, vectors: Tensor, rows: Tensor) -> Tensor:
        if self.shared_codebook:
            return _entropy_loss(vectors.flatten(0, -2), rows, product=self.product)
        groups = zip(vectors.flatten(0, -3).unbind(1), rows, strict=True)
        return torch.stack([_entropy_loss(z, c, product=self.product) for z, c in groups]).mean()

    def _decode(self, indices: Tensor) -> Tensor:
        rows = self.rows if self.decoder_input == "raw" else self._compared(self.rows)
        return self._join(self._chosen(indices.permute(0, 2, 3, 1), rows))

    def _renewed(self, means: Tensor) -> Tensor:
        lost = (means.norm(dim=-1, keepdim=True) < SHORTEST) & (self.lookup_norm in ("l2", "l1"))
        return torch.where(lost, self.codebook, self._compared(means))


def _entropy_loss(vectors: Tensor, rows: Tensor, *, product: bool = False) -> Tensor:
    """(N, d) and (V, d) -> scalar. Recomputes probabilities for the gradient, so that no N x V of them are kept."""

    def sums(part: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits_of(part, rows, ENTROPY_TEMPERATURE, product=product).log_softmax(1)
        p = log_p.exp()
        return p.sum(0), -(p * log_p).sum()

    parts = vectors.split(max(1, ENTROPY_VALUES // len(rows)))
    found = [checkpoint(sums, part, use_reentrant=False) for part in parts]
    # The gradient of x log x is not a number at 0, the probability of a row that is far from all vectors.
    mean = (torch.stack([p for p, _ in found]).sum(0) / len(vectors)).clamp(min=torch.finfo(rows.dtype).tiny)
    entropy = torch.stack([h for _, h in found]).sum() / len(vectors)
    return entropy + torch.special.xlogy(mean, mean).sum()
