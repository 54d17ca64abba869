"""RunConfig: everything that defines one run, as frozen dataclasses without torch.

The *science* sections (model to data) decide the result and enter the signature; ``evaluation`` and
``execution`` do not. A field added later carries ``metadata={"legacy": value}``: the value that reproduces
the earlier behaviour, left out of the signature while it holds; ``metadata={"signed": False}`` keeps one out for good.
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


# Of the images that a network sees: [-1, 1] or [0, 1].
IMAGE_RANGES = ("signed", "unit")
PERCEPTUAL_LOSSES = (
    "efficientnet_lite0",
    "efficientnet_lite0_logits",
    "lpips_vgg",
    "vgg16_logits",
    "resnet50_logits",
    "dinov2_logits",
    "none",
)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator loss: MSE + perceptual + adversarial + quantizer (paper section 3)."""

    mse_weight: float = 1.0
    perceptual: str = "efficientnet_lite0"
    """efficientnet_lite0 (weights in a PyPI wheel), lpips_vgg (the paper's; weights to be provided), the squared
    difference of a classifier's outputs (paper table 4: vgg16_logits, resnet50_logits, dinov2_logits; offline:
    efficientnet_lite0_logits), or none."""
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
    """When LeCAM's averages take in a step's logits: after the regulariser of this step has used them, or before (the
    authors' code)."""
    gradient_penalty_weight: float = 0.0
    """Squared norm of the discriminator's gradient at real images (R1), in the range that it sees them in."""

    def __post_init__(self) -> None:
        choose("loss.perceptual", self.perceptual, PERCEPTUAL_LOSSES)
        choose("loss.perceptual_range", self.perceptual_range, IMAGE_RANGES)
        choose("loss.lecam_update", self.lecam_update, ("after", "before"))
        choose("loss.generator_loss", self.generator_loss, ("vanilla", "hinge", "non_saturating"))
        choose("loss.discriminator_loss", self.discriminator_loss, ("vanilla", "hinge", "non_saturating"))
        for key in (
            "mse_weight",
            "perceptual_weight",
            "adversarial_weight",
            "discriminator_start",
            "lecam_weight",
            "gradient_penalty_weight",
        ):
            positive(f"loss.{key}", getattr(self, key), 0)
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
    efficientnet_lite0 (heads on the frozen network whose weights a PyPI wheel holds) or none."""
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
    """Range in which discriminator, augmentation and R1 see images: signed ([-1, 1]) or unit ([0, 1], as the authors;
    there brightness changes twice as much, and pixels that augmentation fills are black rather than grey)."""
    batch: str = field(default="same", metadata={"legacy": "same"})
    """What the discriminator's step is taken on: same (the generator's batch, with the images that it made before its
    own step) or new (another batch, with the images of the generator after its step; the authors' code)."""
    init: str = field(default="default", metadata={"legacy": "default"})
    """patchgan: default (torch's) or kaiming (the authors' code: convolutions normal with variance 1 / fan-in, the last
    one scaled by 0.1 and without bias, so that the first logits are small)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        object.__setattr__(self, "augment", tuple(self.augment))
        choose("discriminator.kind", self.kind, ("patchgan", "stylegan", *PROJECTED, "none"))
        choose("discriminator.norm", self.norm, ("group", "batch"))
        choose("discriminator.image_range", self.image_range, IMAGE_RANGES)
        choose("discriminator.batch", self.batch, ("same", "new"))
        choose("discriminator.init", self.init, ("default", "kaiming"))
        for key, plain, kinds in (
            ("image_range", "signed", ("patchgan", "stylegan", *PROJECTED)),
            ("batch", "same", ("patchgan", "stylegan", *PROJECTED)),
            ("init", "default", ("patchgan",)),
        ):
            value = getattr(self, key)
            if value != plain and self.kind not in kinds:
                raise UserError(
                    f"discriminator.{key}: '{value}' has no meaning for discriminator.kind {self.kind}, only for "
                    f"{', '.join(kinds)}; use {plain}"
                )
        for key in ("channels", "layers", "norm_groups"):
            positive(f"discriminator.{key}", getattr(self, key))
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


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, the same for generator and discriminator but for discriminator_betas (paper tables 5-12)."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    discriminator_betas: tuple[float, ...] = field(default=(), metadata={"legacy": ()})
    """Those of the discriminator's optimiser, where they are others (paper tables 7 to 9)."""
    weight_decay: float = 0.05
    decay_everything: bool = False
    """Decay codebook, norms and biases too, as the paper does."""
    eps: float = 1e-8
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly."""
    schedule: str = field(default="constant", metadata={"legacy": "constant"})
    """After the warm-up: constant; linear or cosine (from learning_rate to final_learning_rate over decay_steps steps,
    where it stays); step (final_learning_rate after decay_steps steps)."""
    decay_steps: int = field(default=0, metadata={"legacy": 0})
    final_learning_rate: float = field(default=0.0, metadata={"legacy": 0.0})
    gradient_clip: float = 2.0
    """Largest gradient norm, generator and discriminator separately; 0 for none."""
    ema_decay: float = 0.999
    """Decay of the averaged weights used for evaluation."""
    ema_warmup: bool = field(default=True, metadata={"legacy": True})
    """Decay by min(ema_decay, (1 + t) / (10 + t)) at step t, which short runs need; false: by ema_decay at every step
    (the authors' code)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "discriminator_betas", tuple(self.discriminator_betas))
        choose("optimizer.schedule", self.schedule, ("constant", "linear", "cosine", "step"))
        if not 0 < self.learning_rate <= 1:
            raise UserError(f"optimizer.learning_rate: {self.learning_rate} must be above 0 and at most 1")
        for key in ("betas", "discriminator_betas"):
            betas = getattr(self, key)
            if (betas or key == "betas") and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
                raise UserError(f"optimizer.{key}: {list(betas)} must be two numbers in [0, 1)")
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise UserError(
                f"optimizer.final_learning_rate: {self.final_learning_rate} must be from 0 to optimizer.learning_rate "
                f"{self.learning_rate}"
            )
        if (self.schedule == "constant") != (self.decay_steps == 0):
            raise UserError(
                f"optimizer.decay_steps: {self.decay_steps} does not go with optimizer.schedule '{self.schedule}'; "
                "linear, cosine and step need a number above 0, constant has 0"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optimizer.ema_decay: {self.ema_decay} must be in [0, 1)")
        for key in ("weight_decay", "eps", "warmup_steps", "gradient_clip", "decay_steps"):
            positive(f"optimizer.{key}", getattr(self, key), 0)


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 50_000
    batch_size: int = 256
    """Images a step over all devices."""
    precision: str = "float32"
    """float32 or bfloat16 (autocast; the quantizer always runs in float32)."""
    seed: int = 0
    repeat: int = field(default=0, metadata={"legacy": 0})
    """Changes nothing but the signature: 1, 2, ... train the same run once more, to compare codes or devices."""

    def __post_init__(self) -> None:
        choose("train.precision", self.precision, ("float32", "bfloat16"))
        positive("train.steps", self.steps)
        positive("train.batch_size", self.batch_size)
        positive("train.seed", self.seed, 0)
        positive("train.repeat", self.repeat, 0)


@dataclass(frozen=True)
class DataConfig:
    """Images; what they are enters the signature as a fingerprint, where they lie does not."""

    kind: str = "photos"
    """photos (the colour photographs in scikit-image's wheel), image_folder, webdataset (.tar shards) or huggingface
    (.parquet or .arrow shards, such as a downloaded data set, what save_to_disk wrote, or a cache folder)."""
    path: str = field(default="", metadata={"signed": False})
    """A folder of images or of shards; `train` and `val` in the names of its subfolders (or shards) are the split,
    where it has both. `$NAME` and `${NAME}` are variables of the shell."""
    image_size: int = 256
    """Height and width of a training image, pixels."""
    min_crop: float = 1.0
    """Smallest side of a random crop over image_size (before it is resized to image_size)."""
    max_crop: float = 4.0
    """Largest side of a random crop over image_size, where the image is that large."""
    flip: bool = True
    """Random horizontal flips."""
    validation_share: float = 0.1
    """Without train and val: share of images held out, by a hash of their content."""
    image_column: str = field(default="", metadata={"signed": False})
    """huggingface: column of the images ({bytes, path}, or binary), where a shard has several."""
    max_broken: float = field(default=0.1, metadata={"signed": False})
    """Largest share of broken images, which are named and left out; more are an error."""

    def __post_init__(self) -> None:
        choose("data.kind", self.kind, ("photos", "image_folder", "webdataset", "huggingface"))
        positive("data.image_size", self.image_size, 8)
        if not 0 < self.min_crop <= self.max_crop < float("inf"):
            raise UserError(f"data.min_crop: {self.min_crop} must be above 0 and at most data.max_crop {self.max_crop}")
        if not 0 < self.validation_share < 1:
            raise UserError(f"data.validation_share: {self.validation_share} must be between 0 and 1")
        if not 0 <= self.max_broken <= 1:
            raise UserError(f"data.max_broken: {self.max_broken} must be between 0 and 1")
        if self.kind != "photos" and not self.path:
            what = "images" if self.kind == "image_folder" else "shards"
            raise UserError(f"data.path: missing; data.kind {self.kind} needs the folder of {what}")


# Features of an image under each built-in evaluation.features.
FEATURE_DIMS = {
    "efficientnet_lite0": 320,
    "inception": 2048,
    "inception_pytorch_fid": 2048,
    "inception_clean_fid": 2048,
}


# Fewer held-out images than these say next to nothing of a model, whatever the metric.
FEWEST_IMAGES = 50


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation protocol, less the data set (see gsq.protocol.Protocol)."""

    features: str = "efficientnet_lite0"
    """efficientnet_lite0 (works offline); inception (2015-12-05, images resized as torch-fidelity does),
    inception_pytorch_fid or inception_clean_fid (their resizes), weights to be provided; or package.module:function,
    which returns a torch module: (B, 3, H, W) in [-1, 1] -> (B, k)."""
    num_images: int = 512
    """Validation images; photos: fixed crops, else at most as many as there are."""
    resolutions: tuple[int, ...] = ()
    """Sizes at which images are encoded and compared, pixels, each a protocol with a row of its own; empty takes
    data.image_size."""
    lpips: str = "none"
    """Measure LPIPS too: vgg or alex (weights to be provided), or none."""
    reconstruction_dtype: str = "float32"
    """float32, or bfloat16: reconstruct under autocast."""
    allow_small: bool = False
    """Allow an rfid over too few images: Inception features on fewer than 2,049 (their covariance is singular, and rfid
    biased upwards), or a data set that holds out fewer than 50 (which a num_images below 50 allows, too)."""
    batch_size: int = 16
    every: int = 0
    """Evaluate every so many steps too; 0 only at the end."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(self.resolutions))
        module, colon, function = self.features.partition(":")
        if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            choose("evaluation.features", self.features, (*FEATURE_DIMS, "package.module:function"))
        choose("evaluation.lpips", self.lpips, ("none", "vgg", "alex"))
        choose("evaluation.reconstruction_dtype", self.reconstruction_dtype, ("float32", "bfloat16"))
        positive("evaluation.num_images", self.num_images, 2)
        positive("evaluation.batch_size", self.batch_size)
        positive("evaluation.every", self.every, 0)
        for size in self.resolutions:
            positive("evaluation.resolutions", size, 8)
        if len(set(self.resolutions)) != len(self.resolutions):
            raise UserError(f"evaluation.resolutions: {list(self.resolutions)} names a size twice")
        self.check_images(self.num_images)

    def images(self, data: DataConfig, held_out: int) -> int:
        """Images that are compared: num_images, but of a data set other than photos, of which any number of crops can
        be cut, at most the ``held_out`` that there are."""
        return self.num_images if data.kind == "photos" else min(self.num_images, held_out)

    def check_images(self, count: int) -> None:
        """Raise UserError where ``count`` images, those that there are of num_images, are too few for an rfid: fewer
        than FEWEST_IMAGES, though more were asked for, or no more than Inception has features."""
        if self.allow_small:
            return
        dim = FEATURE_DIMS.get(self.features, 0)
        if self.features.startswith("inception") and count < dim + 1:
            raise UserError(
                f"evaluation.num_images: {count} images are fewer than the {dim} features of '{self.features}' + 1, so "
                f"that rfid would be biased upwards; use at least {dim + 1}, or allow it with evaluation.allow_small "
                "(gsq evaluate --allow-small) and look at kid"
            )
        if count < FEWEST_IMAGES <= self.num_images:
            raise UserError(
                f"evaluation.num_images: {self.num_images} asked for, but the data set holds out {count}, too few to "
                f"compare models by: an rfid over {count} images is mostly noise. Hold out at least {FEWEST_IMAGES} "
                "(more images, a larger data.validation_share or val folder), or allow it with evaluation.allow_small: "
                "true (gsq evaluate --allow-small)"
            )


@dataclass(frozen=True)
class ExecutionConfig:
    """How a run is carried out; none of it may change the science."""

    device: str = "auto"
    """auto (cuda where there is one), cpu or cuda."""
    threads: int = 1
    """CPU threads."""
    micro_batch: int = 0
    """Images of one forward and backward pass on one device (gradient accumulation); 0: a device's whole share."""
    channels_last: bool = False
    """Channels-last memory layout of images and weights: faster convolutions on most GPUs. On a CPU, GroupNorm is
    less exact in it (1e-4 where a mean is ten times its spread)."""
    compile: bool = False
    """torch.compile the model and the discriminator: faster after a slow start (needs a C++ compiler on a CPU)."""
    data_workers: int = 0
    """Threads that prepare batches ahead; 0: none on a CPU, on a GPU one for each core (at most 16)."""
    stage_data: str = ""
    """Folder on the node's own disk, such as $TMPDIR or $SLURM_TMPDIR (variables are those of the job), to which the
    images are copied once for all processes and jobs of the node; empty: none."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint of a finished run, from which one that differs only by more steps can go on."""
    log_every: int = 10
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        choose("execution.device", self.device, ("auto", "cpu", "cuda"))
        positive("execution.micro_batch", self.micro_batch, 0)
        positive("execution.data_workers", self.data_workers, 0)
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
        quantizer = self.quantizer
        if quantizer.lookup_norm in ("l2", "l1") and self.group_dim == 1:
            raise UserError(
                f"quantizer.lookup_norm: '{quantizer.lookup_norm}' at group dimension 1 leaves two points, whatever "
                "the codebook_size; use auto, none or clip"
            )
        if quantizer.kind in ("fsq", "lfq", "bsq") and groups != latent_dim:
            raise UserError(
                f"quantizer.groups: {groups}, but {quantizer.kind} quantizes each channel: use model.latent_dim "
                f"{latent_dim}"
            )
        if quantizer.levels and len(quantizer.levels) != latent_dim:
            raise UserError(
                f"quantizer.levels: {list(quantizer.levels)} has {len(quantizer.levels)} entries, one for each of "
                f"model.latent_dim {latent_dim} is needed; leave it empty for codebook_size everywhere"
            )
        micro, batch = self.execution.micro_batch, self.train.batch_size
        if micro and quantizer.entropy_weight:
            raise UserError(
                f"quantizer.entropy_weight: {quantizer.entropy_weight} takes the entropy of a whole batch's mean, "
                f"which would depend on execution.micro_batch {micro}; use micro_batch 0, or entropy_weight 0"
            )
        if micro and batch % micro:
            near = max(m for m in range(1, min(micro, batch) + 1) if batch % m == 0)
            raise UserError(f"execution.micro_batch: {micro} does not divide train.batch_size {batch}; {near} would")
        if micro and self.discriminator.normalises_batches:
            raise UserError(
                "discriminator.norm: 'batch' sees only a part of the batch under execution.micro_batch "
                f"{micro}, so that the result would depend on it; use group, or micro_batch 0"
            )
        size, downsample = self.data.image_size, self.model.downsample
        if size % downsample:
            near = max(downsample, round(size / downsample) * downsample)
            raise UserError(
                f"data.image_size: {size} is not divisible by model.downsample {downsample}; {near} would be"
            )
        for resolution in self.evaluation.resolutions:
            if resolution % downsample:
                near = max(downsample, round(resolution / downsample) * downsample)
                raise UserError(
                    f"evaluation.resolutions: {resolution} is not divisible by model.downsample {downsample}; {near} "
                    "would be"
                )
        layers = self.discriminator.layers
        if self.discriminator.kind == "patchgan" and size < 3 * 2**layers:
            raise UserError(
                f"discriminator.layers: {layers} need a data.image_size of at least {3 * 2**layers}, found {size}"
            )
        halvings = len(self.discriminator.channel_multipliers)
        if self.discriminator.kind == "stylegan" and size < 2**halvings:
            raise UserError(
                f"discriminator.channel_multipliers: {halvings} of them halve the image as often, which needs a "
                f"data.image_size of at least {2**halvings}, found {size}"
            )

    @property
    def group_dim(self) -> int:
        """d = D / G."""
        return self.model.latent_dim // self.quantizer.groups

    @property
    def lookup_norm(self) -> str:
        """quantizer.lookup_norm, auto resolved."""
        if self.quantizer.lookup_norm == "auto":
            return "l2" if self.quantizer.kind == "gsq" and self.group_dim > 1 else "none"
        return self.quantizer.lookup_norm

    @property
    def codebook_init(self) -> str:
        """quantizer.init, auto resolved."""
        if self.quantizer.init == "auto":
            return "spherical" if self.quantizer.kind == "gsq" else "uniform"
        return self.quantizer.init

    @property
    def index_sizes(self) -> tuple[int, ...]:
        """Values that each index of a latent position can take: (V,) * G, rvq (V,) * depth, fsq its levels."""
        q = self.quantizer
        return q.levels or (q.codebook_size,) * (q.depth if q.kind == "rvq" else q.groups)

    @property
    def bits_per_token(self) -> float:
        """Bits of a latent position: the sum of log2 over its indices."""
        return sum(math.log2(size) for size in self.index_sizes)

    @property
    def codebook_parameters(self) -> int:
        """Entries of the learned codebooks."""
        q = self.quantizer
        return q.depth * q.codebook_size * self.group_dim if q.kind in CODEBOOK_KINDS else 0


SECTIONS: dict[str, type] = {f.name: f.default_factory for f in fields(RunConfig)}  # type: ignore[misc]


def check_processes(config: RunConfig, processes: int) -> None:
    """Raise UserError where so many processes cannot share the run's batches."""
    batch, micro = config.train.batch_size, config.execution.micro_batch
    if batch % processes:
        raise UserError(f"train.batch_size: {batch} images cannot be shared equally by {processes} processes")
    share = batch // processes
    if micro and share % micro:
        raise UserError(
            f"execution.micro_batch: {micro} does not divide {share}, the images that each of {processes} processes "
            f"takes of train.batch_size {batch}"
        )
    if processes > 1 and config.quantizer.entropy_weight:
        raise UserError(
            f"quantizer.entropy_weight: {config.quantizer.entropy_weight} takes the entropy of a whole batch's mean, "
            f"of which each of {processes} processes sees a part; use one process, or entropy_weight 0"
        )
    if processes > 1 and config.discriminator.normalises_batches:
        raise UserError(
            f"discriminator.norm: 'batch' sees only a part of the batch in each of {processes} processes; use group"
        )
