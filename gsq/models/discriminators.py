"""Discriminators: images (B, 3, H, W) to logits (B, 1, h, w) or (B, n).

discriminator.image_range names the range of images: [-1, 1] (signed) or [0, 1] (unit). Structures are those of the GSQ
authors' code, compared at equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gsq.config.objective import PROJECTED, DiscriminatorConfig
from gsq.config.parts import is_path, load, options_of
from gsq.errors import UserError
from gsq.pretrained.efficientnet import EfficientNetLite0
from gsq.pretrained.features import DINOv2


class PatchDiscriminator(nn.Sequential):
    """N-layer PatchGAN (pix2pix), (B, 1, h, w).

    norm ``group`` is independent of the batch and its split over devices; ``batch`` is the published norm.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer in range(1, config.layers + 1):
            outputs = config.channels * min(2**layer, 8)
            stride = 2 if layer < config.layers else 1
            batch = config.norm == "batch"
            layers += [
                nn.Conv2d(width, outputs, 4, stride, 1, bias=False),
                nn.BatchNorm2d(outputs) if batch else nn.GroupNorm(config.norm_groups, outputs),
                nn.LeakyReLU(0.2),
            ]
            width = outputs
        layers.append(nn.Conv2d(width, 1, 4, 1, 1, bias=config.init == "default"))
        super().__init__(*layers)
        if config.init == "kaiming":
            self._init_kaiming()

    def _init_kaiming(self) -> None:
        """Convolutions normal with variance 1 / fan-in, the last one a tenth of that (the GSQ authors' code)."""
        convolutions = [module for module in self if isinstance(module, nn.Conv2d)]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
        with torch.no_grad():
            convolutions[-1].weight.mul_(0.1)


class Blur(nn.Module):
    """Binomial filter [1, 2, 1] along both axes, edges repeated."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", weight[:, None] * weight, persistent=False)
        self.kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, groups=x.shape[1])


class DownBlock(nn.Module):
    """Residual block that halves the resolution, blurred first; (B, C, H, W) -> (B, C', H // 2, W // 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # The authors' leaky ReLUs have torch's default slope, 0.01, and no gain.
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.LeakyReLU(),
            Blur(),
            nn.AvgPool2d(2),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(),
        )
        self.skip = nn.Sequential(Blur(), nn.AvgPool2d(2), nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.skip(x)


class StyleGANDiscriminator(nn.Sequential):
    """Residual discriminator after StyleGAN, one logit an image, (B, 1).

    Like the authors' code, it has no minibatch statistics, and pools the remaining map before its two linear layers.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU()]
        for multiplier in config.channel_multipliers:
            outputs = config.channels * multiplier
            layers.append(DownBlock(width, outputs))
            width = outputs
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        layers += [nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 1)]
        super().__init__(*layers)


class Head(nn.Module):
    """Small convolutional head of one feature, tokens (B, C, N) -> logits (B, N)."""

    def __init__(self, channels: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        # Circular convolutions along the tokens (StyleGAN-T). The authors dropped its spectral norms, and replaced its
        # norm over parts of a batch by batch norm; group norm is independent of the batch.
        self.first = self._block(channels, 1, config)
        self.second = self._block(channels, 9, config)
        self.last = nn.Conv1d(channels, 1, 1)

    @staticmethod
    def _block(channels: int, kernel: int, config: DiscriminatorConfig) -> nn.Sequential:
        groups = math.gcd(config.norm_groups, channels)
        return nn.Sequential(
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular"),
            nn.BatchNorm1d(channels) if config.norm == "batch" else nn.GroupNorm(groups, channels),
            nn.LeakyReLU(0.2),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(tokens)
        return self.last((self.second(x) + x) / math.sqrt(2)).flatten(1)


class ProjectedDiscriminator(nn.Module):
    """Heads on features of a frozen network (Sauer et al. 2021, 2023), (B, n): the logits of all heads.

    The frozen network is not a submodule, so its weights are in neither parameters nor state dict, and train and
    requires_grad_ do not affect it. It follows the heads to their device.
    """

    def __init__(self, backbone: DINOv2 | EfficientNetLite0, config: DiscriminatorConfig) -> None:
        super().__init__()
        self._frozen = (backbone.eval().requires_grad_(False),)
        self.image_range = config.image_range
        self.heads = nn.ModuleList(Head(channels, config) for channels in backbone.token_channels)

    @property
    def backbone(self) -> DINOv2 | EfficientNetLite0:
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # to, cuda and float call this.
        self.backbone._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        # Only a gradient penalty wants gradients of both images and heads, and only the plain attention kernel can be
        # differentiated twice.
        twice = images.requires_grad and next(self.heads.parameters()).requires_grad
        if self.image_range == "unit":
            # The frozen networks take images in [-1, 1].
            images = 2 * images - 1
        with sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
            features = self.backbone.tokens(images)
        return torch.cat([head(tokens) for head, tokens in zip(self.heads, features, strict=True)], 1)


def build_discriminator(config: DiscriminatorConfig, image_size: int) -> nn.Module | None:
    """The discriminator that ``config.kind`` names, for images of image_size x image_size; None for "none".

    One of a user's own is called with config, image_size and its options. Raises UserError if the images are too small,
    or weights or the package that reads them are missing.
    """
    if is_path(config.kind):
        key = "discriminator.kind"
        own: nn.Module = load(config.kind, key)(config, image_size, **options_of(config.kind, key, config.options))
        return own
    if config.kind == "patchgan":
        return PatchDiscriminator(config)
    if config.kind == "stylegan":
        halvings = len(config.channel_multipliers)
        if image_size < 2**halvings:
            raise UserError(
                f"discriminator.channel_multipliers: {list(config.channel_multipliers)} halve the image {halvings} "
                f"times, which data.image_size {image_size} does not allow; give at most {image_size.bit_length() - 1}"
            )
        return StyleGANDiscriminator(config)
    if config.kind in PROJECTED:
        backbone = DINOv2() if config.kind == "dino" else EfficientNetLite0.pretrained()
        return ProjectedDiscriminator(backbone, config)
    return None
