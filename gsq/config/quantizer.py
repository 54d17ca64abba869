"""The quantizer's part of a config: kinds, options, and the combinations that are refused."""

from __future__ import annotations

from dataclasses import dataclass

from gsq.errors import UserError, choose, positive

QUANTIZER_KINDS = ("gsq", "vq", "rvq", "fsq", "lfq", "bsq")
# Those with a learned codebook that a look-up searches.
CODEBOOK_KINDS = ("gsq", "vq", "rvq")


@dataclass(frozen=True)
class QuantizerConfig:
    """The quantizer: grouped spherical (paper eq. 3-5) or one that it is compared with (paper table 15)."""

    kind: str = "gsq"
    """gsq; vq (one group, no normalisation); rvq (residual VQ); fsq (finite scalar); lfq (look-up free); bsq (binary
    spherical). fsq, lfq and bsq quantize each channel: groups = latent_dim, and codebook_size 2 for lfq and bsq."""
    groups: int = 1
    """G; the latent's channels are split into G groups of d = D / G, which share one codebook."""
    codebook_size: int = 8192
    """V, rows of the codebook (fsq: levels of each channel)."""
    depth: int = 1
    """rvq: codebooks, each of V rows, of which each quantizes what the ones before it left over."""
    levels: tuple[int, ...] = ()
    """fsq: levels of each latent channel, the largest of them codebook_size; empty takes codebook_size for all."""
    init: str = "auto"
    """spherical (uniform on the unit sphere; uniform in [-1, 1] at d = 1), uniform (in [-1/V, 1/V]; in [-1, 1] at
    d = 1) or auto: spherical for gsq, uniform for vq and rvq."""
    lookup_norm: str = "auto"
    """l2 or l1 (both sides normalised), clip (both clamped to [-1, 1]), none, or auto: l2 for gsq, but none at d = 1,
    where the sphere is two points, and none for vq and rvq."""
    lookup_precision: str = "exact"
    """exact, or float32 or bfloat16: |z|^2 + |c|^2 - 2 z.c in that type, which returns wrong rows; to study that."""
    decoder_input: str = "normalised"
    """What the decoder receives: the row as the look-up compared it (normalised), or raw (the authors' code)."""
    loss_row: str = "normalised"
    """The row in the quantizer loss: as the look-up compared it, or raw (the authors' code)."""
    commitment_weight: float = 0.25
    codebook_update: str = "gradient"
    """gradient (through the quantizer loss) or ema (each row an average of the latents that chose it)."""
    codebook_decay: float = 0.99
    """ema: decay of the averages."""
    entropy_weight: float = 0.0
    """gsq, vq, lfq, bsq: weight of (entropy of an index - entropy of the batch's mean), which spreads use of codes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        choose("quantizer.kind", self.kind, QUANTIZER_KINDS)
        choose("quantizer.init", self.init, ("auto", "spherical", "uniform"))
        choose("quantizer.lookup_norm", self.lookup_norm, ("auto", "l2", "l1", "clip", "none"))
        choose("quantizer.lookup_precision", self.lookup_precision, ("exact", "float32", "bfloat16"))
        choose("quantizer.decoder_input", self.decoder_input, ("normalised", "raw"))
        choose("quantizer.loss_row", self.loss_row, ("normalised", "raw"))
        choose("quantizer.codebook_update", self.codebook_update, ("gradient", "ema"))
        positive("quantizer.groups", self.groups)
        positive("quantizer.depth", self.depth)
        for key, size in (("codebook_size", self.codebook_size), *(("levels", level) for level in self.levels)):
            if size < 2:
                raise UserError(f"quantizer.{key}: {size} carries no information; it must be at least 2")
        positive("quantizer.commitment_weight", self.commitment_weight, 0)
        positive("quantizer.entropy_weight", self.entropy_weight, 0)
        if not 0 <= self.codebook_decay < 1:
            raise UserError(f"quantizer.codebook_decay: {self.codebook_decay} must be in [0, 1)")
        for key, default, kinds in (
            ("depth", 1, ("rvq",)),
            ("levels", (), ("fsq",)),
            ("entropy_weight", 0.0, ("gsq", "vq", "lfq", "bsq")),
            ("init", "auto", CODEBOOK_KINDS),
            ("lookup_norm", "auto", CODEBOOK_KINDS),
            ("lookup_precision", "exact", CODEBOOK_KINDS),
            ("codebook_update", "gradient", CODEBOOK_KINDS),
        ):
            value = getattr(self, key)
            if value != default and self.kind not in kinds:
                raise UserError(
                    f"quantizer.{key}: {value!r} has no meaning for quantizer.kind {self.kind}, only for "
                    f"{', '.join(kinds)}; leave it out"
                )
        if self.kind in ("vq", "rvq"):
            if self.groups != 1:
                raise UserError(f"quantizer.groups: {self.groups}, but {self.kind} has one group; use 1, or kind gsq")
            if self.lookup_norm not in ("auto", "none"):
                raise UserError(
                    f"quantizer.lookup_norm: '{self.lookup_norm}', but {self.kind} does not normalise; use auto, or "
                    "kind gsq"
                )
        if self.kind in ("lfq", "bsq") and self.codebook_size != 2:
            raise UserError(
                f"quantizer.codebook_size: {self.codebook_size}, but {self.kind} takes the sign of each channel: 2"
            )
        if self.kind == "fsq" and min((self.codebook_size, *self.levels)) < 3:
            raise UserError(
                f"quantizer.{'levels' if self.levels else 'codebook_size'}: fsq rounds a tanh, which leaves nothing to "
                f"choose with 2 levels; use at least 3, or kind lfq"
            )
        if self.levels and max(self.levels) != self.codebook_size:
            raise UserError(
                f"quantizer.codebook_size: {self.codebook_size}, but the largest of quantizer.levels is "
                f"{max(self.levels)}; they must be equal"
            )
