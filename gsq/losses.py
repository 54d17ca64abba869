"""Adversarial losses (GSQ paper, eq. 17-24) and perceptual losses.

Shapes: logits (B, 1, h, w); images (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.errors import UserError
from gsq.features import EfficientNetLite0, VGG16Features
from gsq.weights import verified_weights


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """Scalar loss of the generator from the logits of its images."""
    if kind == "hinge":
        return -fake.mean()
    if kind == "non_saturating":
        # Logistic on the per-image mean logit (eq. 19).
        fake = fake.flatten(1).mean(1)
    return F.softplus(-fake).mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """Scalar loss of the discriminator."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    if kind == "non_saturating":
        real, fake = real.flatten(1).mean(1), fake.flatten(1).mean(1)
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


class EfficientNetPerceptualLoss(nn.Module):
    """Mean squared difference of channel-normalised feature maps, averaged over the first four stages.

    LPIPS's form with equal channel weights, on EfficientNet-Lite0's stages of 16 to 80 channels.
    """

    stages = 4

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0.pretrained()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Scalar; no gradient to ``targets``."""
        with torch.no_grad():
            wanted = self.network.stages(targets, self.stages)
        found = self.network.stages(images, self.stages)
        parts = [
            (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
            for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(parts).mean()


class LPIPS(nn.Module):
    """Learned perceptual distance on VGG16 (Zhang et al. 2018, version 0.1), images in [-1, 1].

    Raises UserError where a weight file is missing or of another network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = VGG16Features(torch.load(verified_weights("vgg16"), weights_only=True, map_location="cpu"))
        linear = torch.load(verified_weights("lpips_vgg"), weights_only=True, map_location="cpu")
        for level, channels in enumerate((64, 128, 256, 512, 512)):
            weight = linear.get(f"lin{level}.model.1.weight")
            if weight is None or weight.shape != (1, channels, 1, 1):
                raise UserError(f"lpips_vgg weights: lin{level}.model.1.weight should be (1, {channels}, 1, 1)")
            self.register_buffer(f"weight{level}", weight)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Scalar, the mean over the batch."""
        shift, scale = cast(Tensor, self.shift), cast(Tensor, self.scale)
        found = self.backbone((images - shift) / scale)
        with torch.no_grad():
            wanted = self.backbone((targets - shift) / scale)
        distance = images.new_zeros(())
        for level, (a, b) in enumerate(zip(found, wanted, strict=True)):
            difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
            distance = distance + F.conv2d(difference, cast(Tensor, getattr(self, f"weight{level}"))).mean()
        return distance


def build_perceptual_loss(kind: str) -> nn.Module | None:
    if kind == "efficientnet_lite0":
        return EfficientNetPerceptualLoss()
    return LPIPS() if kind == "lpips_vgg" else None
