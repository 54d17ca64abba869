"""Parameters, FLOPs and memory of a run from its config, without torch. One multiply-add is 2 FLOPs.

This module repeats the layers of ``gsq.models`` as numbers, and a test compares the two. FLOPs count convolutions,
linear maps, attention and the look-up, but neither norms nor activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gsq.config.model import ModelConfig
from gsq.config.objective import DiscriminatorConfig
from gsq.config.parts import Options, is_path, load
from gsq.config.probe import CURVE, MOST_SAMPLES, SAMPLING, SIZES, code_sizes, probe_images, probe_macs
from gsq.config.program import ProgramConfig
from gsq.config.run import RunConfig


@dataclass
class Count:
    """Parameters, multiply-adds and stored activations (float values) of a stack of layers, for one image."""

    parameters: int = 0
    macs: int = 0
    frozen_macs: int = 0
    """Multiply-adds of a frozen network, which has no gradients of its own."""
    activations: int = 0

    @classmethod
    def own(cls, key: str, section: Any, first: tuple[Any, ...], shape: tuple[int, ...], function: str = "") -> Count:
        """A part of a user's own, which is run for it."""
        from gsq.config.own_flops import measured

        name = getattr(section, key.split(".")[1])
        parameters, macs, activations = measured(load(name, key), name, key, section.options, first, (shape,), function)
        return cls(parameters, macs, 0, activations)

    def conv(self, inputs: int, outputs: int, kernel: int, pixels: int, *, bias: bool = True) -> None:
        """``pixels``: number of output pixels."""
        self.parameters += inputs * outputs * kernel**2 + outputs * bias
        self.macs += inputs * outputs * kernel**2 * pixels
        self.activations += outputs * pixels

    def norm(self, channels: int, pixels: int) -> None:
        """GroupNorm; its output and that of the activation after it are stored."""
        self.parameters += 2 * channels
        self.activations += 2 * channels * pixels

    def res_block(self, inputs: int, outputs: int, pixels: int) -> None:
        self.norm(inputs, pixels)
        self.conv(inputs, outputs, 3, pixels)
        self.norm(outputs, pixels)
        self.conv(outputs, outputs, 3, pixels)
        if inputs != outputs:
            self.conv(inputs, outputs, 1, pixels)

    def attention(self, channels: int, pixels: int) -> None:
        self.norm(channels, pixels)
        self.conv(channels, 3 * channels, 1, pixels)
        self.conv(channels, channels, 1, pixels)
        self.macs += 2 * pixels**2 * channels
        self.activations += channels * pixels

    def head(self, channels: int, tokens: int) -> None:
        """Head of a projected discriminator; its one-dimensional convolution of nine weights counts as 3 x 3."""
        for kernel in (1, 3):
            self.conv(channels, channels, kernel, tokens)
            self.norm(channels, tokens)
        self.conv(channels, 1, 1, tokens)

    def middle(self, config: ModelConfig, width: int, blocks: int, pixels: int) -> None:
        for i in range(blocks):
            self.res_block(width, width, pixels)
            if config.attention and i < blocks - 1:
                self.attention(width, pixels)


@lru_cache(4096)
def encoder(config: ModelConfig, image_size: int) -> Count:
    if is_path(config.kind):
        return Count.own("model.kind", config, (config,), (1, 3, image_size, image_size), "encoder")
    count, width, size = Count(), config.channels, image_size
    *depths, middle = config.encoder_depths
    count.conv(3, width, 3, size**2)
    for level, (outputs, blocks) in enumerate(zip(config.widths, depths, strict=True)):
        if outputs != width:
            count.res_block(width, outputs, size**2)
            width = outputs
        for _ in range(blocks):
            count.res_block(width, width, size**2)
        if level < len(depths) - 1:
            size //= 2
            count.conv(width, width, 3, size**2)
    count.middle(config, width, middle, size**2)
    count.norm(width, size**2)
    count.conv(width, config.latent_dim, 1, size**2)
    return count


@lru_cache(4096)
def decoder(config: ModelConfig, image_size: int) -> Count:
    if is_path(config.kind):
        latent = (1, config.latent_dim, *[image_size // config.downsample] * 2)
        return Count.own("model.kind", config, (config,), latent, "decoder")
    count, width, size = Count(), config.widths[-1], image_size // config.downsample
    *depths, middle = config.decoder_depths

    def adaptive(channels: int, pixels: int) -> None:
        if config.adaptive_norm:
            count.parameters += 2 * (config.latent_dim + 1) * channels
            count.macs += 2 * config.latent_dim * channels
            count.activations += 2 * channels * pixels

    count.conv(config.latent_dim, width, 3, size**2)
    count.middle(config, width, middle, size**2)
    adaptive(width, size**2)
    for level in reversed(range(len(depths))):
        outputs = config.widths[level]
        if outputs != width:
            count.res_block(width, outputs, size**2)
            width = outputs
        for _ in range(depths[level]):
            count.res_block(width, width, size**2)
        if level:
            if config.upsample == "nearest":
                count.conv(width, width, 3, (2 * size) ** 2)
            else:
                count.conv(width, 4 * width, 3, size**2)
            size *= 2
            adaptive(width, size**2)
    count.norm(width, size**2)
    count.conv(width, 3, 3, size**2)
    return count


# Multiply-adds of EfficientNet-Lite0 for each 32 x 32 pixels: stem and first four stages, and all seven.
EFFICIENTNET_FOUR, EFFICIENTNET_SEVEN = 3_209_408, 7_425_248
# DINOv2 ViT-S/14 at 518 pixels: 37 x 37 patches of 14 x 14, a class token and four registers.
DINO_WIDTH, DINO_BLOCKS, DINO_PATCHES = 384, 12, 37**2
DINO_TOKENS = DINO_PATCHES + 5
DINO_MACS = 3 * 14**2 * DINO_WIDTH * DINO_PATCHES + DINO_BLOCKS * (
    12 * DINO_WIDTH**2 * DINO_TOKENS + 2 * DINO_TOKENS**2 * DINO_WIDTH
)


def discriminator(config: RunConfig) -> Count:
    """Count of the discriminator. A frozen network adds multiply-adds but no parameters."""
    return _discriminator(config.discriminator, config.data.image_size)


@lru_cache(4096)
def _discriminator(d: DiscriminatorConfig, size: int) -> Count:
    if is_path(d.kind):
        return Count.own("discriminator.kind", d, (d, size), (1, 3, size, size))
    count, width = Count(), d.channels
    if d.kind == "patchgan":
        size //= 2
        count.conv(3, width, 4, size**2)
        for layer in range(1, d.layers + 1):
            outputs = d.channels * min(2**layer, 8)
            size = size // 2 if layer < d.layers else size - 1
            count.conv(width, outputs, 4, size**2, bias=False)
            count.norm(outputs, size**2)
            width = outputs
        count.conv(width, 1, 4, (size - 1) ** 2, bias=d.init == "default")
    elif d.kind == "stylegan":
        count.conv(3, width, 3, size**2)
        for multiplier in d.channel_multipliers:
            outputs = d.channels * multiplier
            count.conv(width, outputs, 3, size**2)
            # Blurs of both branches.
            count.macs += 9 * (width + outputs) * size**2
            size //= 2
            count.conv(outputs, outputs, 3, size**2)
            count.conv(width, outputs, 1, size**2)
            width = outputs
        count.conv(width, width, 3, size**2)
        count.conv(width, width, 1, 1)
        count.conv(width, 1, 1, 1)
    elif d.kind == "dino":
        count.frozen_macs += DINO_MACS
        # About 18 values of each token's width in a block, kept in the generator's of the three passes alone.
        count.activations += 18 * DINO_BLOCKS * DINO_TOKENS * DINO_WIDTH // 3
        for _ in range(5):
            count.head(DINO_WIDTH, DINO_TOKENS)
    elif d.kind == "efficientnet_lite0":
        size = max(size, 64)
        count.frozen_macs += EFFICIENTNET_SEVEN * (size // -32) ** 2
        count.activations += 2 * 136_224 * (size // -32) ** 2 // 3
        for channels, scale in ((24, 4), (40, 8), (112, 16), (320, 32)):
            count.head(channels, (size // -scale) ** 2)
    return count


def perceptual_macs(config: RunConfig) -> int:
    """Multiply-adds of one forward pass of the perceptual network, for one image."""
    pixels = config.data.image_size**2
    fixed = {
        # At 224 x 224; VGG16's convolutions, then its classifier.
        "efficientnet_lite0_logits": 385_187_552,
        "vgg16_logits": 15_346_630_656 + 123_633_664,
        "resnet50_logits": 4_089_184_256,
        "dinov2_logits": DINO_MACS,
    }
    scaled = {"efficientnet_lite0": EFFICIENTNET_FOUR / 32**2, "lpips_vgg": 15_346_630_656 / 224**2}
    kind = config.loss.perceptual
    if is_path(kind):
        from gsq.config.own_flops import measured

        image = (1, 3, config.data.image_size, config.data.image_size)
        # Two images are compared; one forward pass is of one.
        return (
            measured(
                load(kind, "loss.perceptual"), kind, "loss.perceptual", Options(config.loss.options), (), (image, image)
            )[1]
            // 2
        )
    return fixed[kind] if kind in fixed else round(scaled.get(kind, 0) * pixels)


# Pool features at 299 x 299, and the classifier of the inception score.
INCEPTION_MACS = 5_713_232_480


def _vit_l(side: int) -> int:
    """Multiply-adds of ViT-L/14 (24 blocks of 1,024 channels) for side x side patches and a class token."""
    tokens, width = side**2 + 1, 1024
    return side**2 * 3 * 14**2 * width + 24 * (12 * tokens * width**2 + 2 * tokens**2 * width)


# Multiply-adds of each of evaluation.distances, at the size that it is defined for.
DISTANCE_MACS = {"fd_dinov2": _vit_l(224 // 14), "cmmd": _vit_l(336 // 14) + 1024 * 768, "precision_recall": 0}
# Convolutions of AlexNet at 224 x 224.
ALEXNET_MACS = 655_566_528


def evaluation_macs(config: RunConfig) -> int:
    """Multiply-adds to evaluate one validation image at every size of evaluation.resolutions: tokenizer, features of
    the reconstruction and LPIPS of the pair. Features given by import path count as EfficientNet-Lite0's."""
    if config.program:
        return 0
    e, total = config.evaluation, 0
    for size in e.resolutions or (config.data.image_size,):
        total += encoder(config.model, size).macs + decoder(config.model, size).macs
        inception = e.features.startswith("inception")
        total += INCEPTION_MACS if inception else EFFICIENTNET_SEVEN * (size // -32) ** 2
        for name in e.distances:
            total += DISTANCE_MACS.get(name, 0 if inception else INCEPTION_MACS)
        total += 2 * {"none": 0, "vgg": 15_346_630_656, "alex": ALEXNET_MACS}[e.lpips] * size**2 // 224**2
    return total


def probe_flops(config: RunConfig, train_images: int) -> float:
    """FLOPs of the generation probe that the evaluation asks for, at every size of evaluation.resolutions: tokens,
    training, code lengths, samples and their features; 0 without one. train_images: of the data set."""
    e, total = config.evaluation, 0.0
    if config.program or e.probe == "none":
        return total
    size, codes = SIZES[e.probe], code_sizes(config.index_sizes)
    steps, samples = e.probe_steps or size.steps, min(e.num_images, MOST_SAMPLES)
    for pixels in e.resolutions or (config.data.image_size,):
        positions = (pixels // config.model.downsample) ** 2
        seen = probe_images(e.probe_images, config.data.kind == "photos", train_images)
        encoded = seen * (1 + config.data.flip) + e.num_images
        macs = probe_macs(size, positions, codes)
        # A step is three forward passes; each point of the curve looks at 64 images.
        passes = 3 * steps * size.batch(positions) + 64 * CURVE + e.num_images + SAMPLING * samples
        total += 2.0 * (macs * passes + encoder(config.model, pixels).macs * encoded)
    return total + 2.0 * samples * evaluation_macs(config)


@dataclass(frozen=True)
class Cost:
    """Computed cost of a run. FLOPs are for the whole run."""

    parameters: int
    """Encoder, codebook and decoder: the tokenizer that a user keeps."""
    discriminator_parameters: int
    generator_flops: float
    discriminator_flops: float
    perceptual_flops: float
    lookup_flops: float
    images: int
    memory_bytes: int
    """Estimated peak for one device that holds the whole batch, or a micro-batch, without the framework itself."""

    @property
    def train_flops(self) -> float:
        return self.generator_flops + self.discriminator_flops + self.perceptual_flops + self.lookup_flops


def _lookup_macs(config: RunConfig) -> int:
    """Multiply-adds of the look-up of one latent position."""
    quantizer, latent_dim = config.quantizer, config.model.latent_dim
    kind = quantizer.declared
    if is_path(quantizer.kind) and kind.lookup_macs is None:
        return 0 if latent_dim == quantizer.groups else quantizer.groups * config.codebook_parameters
    return kind.position_macs(quantizer, latent_dim)


def cost(config: RunConfig) -> Cost:
    """Cost of a run. A backward pass counts as two forward passes. A program declares its own cost."""
    if isinstance(config, ProgramConfig):
        found = config.values.get("parameters")
        parameters = int(found) if isinstance(found, int | float) else 0
        return Cost(parameters, 0, config.flops, 0.0, 0.0, 0.0, 0, 16 * parameters)
    size, batch, model = config.data.image_size, config.train.batch_size, config.model
    e, d, disc = encoder(model, size), decoder(model, size), discriminator(config)
    positions = (size // model.downsample) ** 2
    codebook = config.codebook_parameters
    images = config.train.steps * batch
    adversarial_images = max(0, config.train.steps - config.loss.discriminator_start) * batch
    # The discriminator's own batch takes one more forward pass of the generator, and averages that LeCAM updates before
    # its regulariser one more of the discriminator.
    own = adversarial_images if config.discriminator.batch == "new" else 0
    passes = 2 if config.loss.lecam_update == "before" else 0
    parameters = e.parameters + d.parameters + codebook
    # Weights, gradients, two AdamW moments; averaged weights for the generator.
    stored = 4 * (5 * parameters + 4 * disc.parameters)
    activation_bytes = 2 if config.train.precision == "bfloat16" else 4
    held = config.execution.micro_batch or batch
    activations = activation_bytes * held * (e.activations + d.activations + 3 * disc.activations)
    return Cost(
        parameters=parameters,
        discriminator_parameters=disc.parameters,
        generator_flops=2.0 * (images * 3 + own) * (e.macs + d.macs),
        # Its own step: forward and backward on real and fake (a frozen network has no backward pass there). The
        # generator's step: forward, and backward to the images.
        discriminator_flops=2.0
        * adversarial_images
        * ((6 + 2 + passes) * disc.macs + (2 + 2 + passes) * disc.frozen_macs),
        # Both images forward, one backward to the image.
        perceptual_flops=2.0 * images * 3 * perceptual_macs(config),
        lookup_flops=2.0 * (images + own) * positions * _lookup_macs(config),
        images=images,
        memory_bytes=stored + activations,
    )
