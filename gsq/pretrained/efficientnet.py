"""EfficientNet-Lite0, whose ImageNet weights come with the installation.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.pretrained.state import Frozen
from gsq.pretrained.weights import verified_weights

# (kernel, stride, expansion, output channels, repeats) of the stages of EfficientNet-B0; Lite0 drops
# squeeze-and-excitation, uses ReLU6 and keeps stem and head unscaled.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def resized(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size), the mean over each new pixel's area, like the GSQ authors' losses."""
    return images if images.shape[-2:] == (size, size) else F.interpolate(images, (size, size), mode="area")


class ImageNetInput(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, 3, size, size), resized, with ImageNet's channel means 0 and deviations 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return ((resized(images, self.size) + 1) / 2 - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output size ceil(input / stride), odd padding on the far side."""

    def forward(self, input: Tensor) -> Tensor:
        padding = []
        for size, kernel, stride in zip(
            reversed(input.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max((-(size // -stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, padding), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """MobileNet block; attribute names are those of the published weight file."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skip else y


@cache
def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of the file, read once a process: a run's perceptual loss and its evaluation both take them."""
    return dict(torch.load(path, weights_only=True))


class EfficientNetLite0(Frozen):
    """EfficientNet-Lite0, frozen, in evaluation mode.

    Input: (B, 3, H, W) in [-1, 1], H and W at least 32. Checked against the reference implementation
    (efficientnet_lite_pytorch 0.1.0) on a fixture; preprocessing (x - 127) / 128 as in the TensorFlow original.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        inputs = 32
        self.stage_ends: list[int] = []
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
            self.stage_ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(320, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)
        self.eval().requires_grad_(False)

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """The network with the ImageNet weights. Raises UserError if the file is missing or not the published one."""
        network = cls()
        network.load_state_dict(_read(verified_weights("efficientnet_lite0")))
        return network.eval().requires_grad_(False)

    def stages(self, images: Tensor, last: int = len(STAGES)) -> list[Tensor]:
        """Feature maps at the end of the first ``last`` stages, (B, C_i, H_i, W_i)."""
        # Grey levels 127.5 (x + 1), centred and scaled like the TensorFlow original.
        x = (images * 127.5 + 0.5) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        maps = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.stage_ends:
                maps.append(x)
                if len(maps) == last:
                    break
        return maps

    # ProjectedGAN's levels (Sauer et al. 2021), at 1/4, 1/8, 1/16 and 1/32 of the image.
    token_channels = (24, 40, 112, 320)

    @staticmethod
    def token_size(image_size: int) -> int:
        """Side at which ``tokens`` takes an image: its own, but enlarged if 1/32 of it would be below 2 x 2."""
        return max(image_size, 64)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Feature maps of four stages with their positions in rows, (B, C_i, N_i) for C_i in token_channels."""
        maps = self.stages(resized(images, self.token_size(images.shape[-1])))
        return [maps[i].flatten(2) for i in (1, 2, 4, 6)]

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, 1000)."""
        x = F.relu6(self._bn1(self._conv_head(self.stages(images)[-1])))
        return self._fc(x.mean((2, 3)))


class EfficientNetFeatures(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, 320): spatial mean of the last stage, before the 1280-channel head.

    320 features rather than 1280, so that the covariance of a few hundred validation images has full rank.
    """

    name = "efficientnet_lite0"
    dim = 320

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0.pretrained()

    def forward(self, images: Tensor) -> Tensor:
        return self.network.stages(images)[-1].mean((2, 3))
