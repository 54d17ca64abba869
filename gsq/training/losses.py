"""Adversarial losses (GSQ paper, eq. 17-24), regularisers of the discriminator, and perceptual losses.

Shapes: logits (B, ...), in the discriminator's number per image; images (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.config.parts import is_path, load, options_of
from gsq.errors import UserError
from gsq.pretrained.efficientnet import EfficientNetLite0, ImageNetInput, resized
from gsq.pretrained.features import VGG16, AlexNetFeatures, DINOv2, ResNet50, VGG16Features
from gsq.pretrained.state import Frozen
from gsq.pretrained.weights import LPIPS_WEIGHTS, verified_weights


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


class LeCAM(nn.Module):
    """LeCAM regulariser (Tseng et al. 2021), which holds real logits near the average of generated ones and vice versa.

    Like the GSQ authors' code, averages start at 0 and decay by 0.999, and the penalty is the square of the excess over
    the average. LeCAM's own code uses the same squares (its paper's equation plain squares), but starts at 1000, decays
    by 0.9 or 0.99 (by version), and can wait for a first step. Buffers, float64 scalars: real, fake.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.real: Tensor
        self.fake: Tensor
        self.register_buffer("real", torch.zeros((), dtype=torch.float64))
        self.register_buffer("fake", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Take in the mean logits of the whole batch, once per step."""
        self.real.lerp_(real_mean.to(self.real), 1 - self.decay)
        self.fake.lerp_(fake_mean.to(self.fake), 1 - self.decay)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar."""
        over = F.relu(real - self.fake.to(real.dtype))
        under = F.relu(self.real.to(fake.dtype) - fake)
        return over.square().mean() + under.square().mean()


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018): squared norm of the gradient of an image's summed logits, the mean over images.

    images: the inputs of ``logits``, with requires_grad. The result is differentiable. Under autocast the gradient has
    the types of the forward pass.
    """
    with torch.autocast(images.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
        return gradient.float().square().flatten(1).sum(1).mean()


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """Ratio of the norms of two losses' gradients at the last layer, at most 1e4 (VQ-GAN, Esser et al. 2021, eq. 7).

    Adds 1e-4 to the denominator, like the published code; the GSQ authors' code clamps it at 1e-3, and the ratio at 1e3
    unless its config says 1e4. Scalar, detached; NaN if a gradient is NaN.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(0, 1e4).detach()


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


class UnitRange(nn.Module):
    """Passes images in [-1, 1] on to a perceptual loss in [0, 1]."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Scalar."""
        return self.loss((images + 1) / 2, (targets + 1) / 2)


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018, version 0.1) on VGG16 or AlexNet, images in [-1, 1].

    Checked against the lpips package with the same backbone weights. Raises UserError if a weight file is missing or
    another network's.
    """

    def __init__(self, net: str = "vgg") -> None:
        """net: vgg or alex."""
        super().__init__()
        build: type[VGG16Features] | type[AlexNetFeatures] = VGG16Features if net == "vgg" else AlexNetFeatures
        backbone, linear = (verified_weights(name) for name in LPIPS_WEIGHTS[net])
        self.backbone = build(torch.load(backbone, weights_only=True, map_location="cpu"))
        linear_state = torch.load(linear, weights_only=True, map_location="cpu")
        for level, channels in enumerate(build.channels):
            weight = linear_state.get(f"lin{level}.model.1.weight")
            if weight is None or weight.shape != (1, channels, 1, 1):
                raise UserError(f"lpips_{net} weights: lin{level}.model.1.weight should be (1, {channels}, 1, 1)")
            self.register_buffer(f"weight{level}", weight)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def maps(self, images: Tensor) -> list[Tensor]:
        """The network's maps of images, (B, C, h, w) for each level, each position of length 1."""
        shift, scale = cast(Tensor, self.shift), cast(Tensor, self.scale)
        return [F.normalize(level, dim=1, eps=1e-10) for level in self.backbone((images - shift) / scale)]

    def _apart(self, images: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
        """Distances at the positions of each level, (B, 1, h, w), to the ``maps`` of the targets."""
        weights = (cast(Tensor, getattr(self, f"weight{level}")) for level in range(len(targets)))
        return [
            F.conv2d((a - b).square(), weight) for a, b, weight in zip(self.maps(images), targets, weights, strict=True)
        ]

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Scalar, the mean over the batch; no gradient to ``targets``."""
        with torch.no_grad():
            wanted = self.maps(targets)
        distance = images.new_zeros(())
        for level in self._apart(images, wanted):
            distance = distance + level.mean()
        return distance

    def distances(self, images: Tensor, targets: Tensor | Sequence[Tensor]) -> Tensor:
        """(B,): the distance of each image to its target, (B, 3, H, W), or the ``maps`` of the targets."""
        if isinstance(targets, Tensor):
            with torch.no_grad():
                targets = self.maps(targets)
        return torch.stack([level.mean((1, 2, 3)) for level in self._apart(images, targets)]).sum(0)


class LogitLoss(Frozen):
    """Mean squared difference of a frozen network's outputs (the logit losses of the paper's table 4).

    Like the GSQ authors' code, ``prepare`` resizes images by area to the network's size (224, DINOv2 518) and brings
    them from [0, 1] to ImageNet's mean and deviation. DINOv2 has no classifier, so its output is its class token.
    """

    def __init__(
        self,
        network: nn.Module,
        prepare: Callable[[Tensor], Tensor] = lambda images: images,
        outputs: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """outputs: a method of the network that returns its outputs (default: its forward)."""
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.prepare, self.outputs = prepare, outputs or network

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Scalar; no gradient to ``targets``."""
        with torch.no_grad():
            wanted = self.outputs(self.prepare(targets))
        return F.mse_loss(self.outputs(self.prepare(images)).float(), wanted.float())


def build_perceptual_loss(
    kind: str,
    image_range: str = "signed",
    options: Mapping[str, Any] = {},
) -> nn.Module | None:
    """The frozen loss that ``loss.perceptual`` names, (images, targets) in [-1, 1] -> scalar; None for "none".

    options: loss.options, for one of a user's own. image_range: loss.perceptual_range; ``unit`` gives LPIPS images in
    [0, 1], like the GSQ authors' code. Raises UserError if a weight file, or the package that reads it, is missing or
    not the published one.
    """
    if is_path(kind):
        own: nn.Module = load(kind, "loss.perceptual")(**options_of(kind, "loss.perceptual", options))
        return own.requires_grad_(False).eval()
    if kind == "efficientnet_lite0":
        return EfficientNetPerceptualLoss()
    if kind == "lpips_vgg":
        return UnitRange(LPIPS()) if image_range == "unit" else LPIPS()
    if kind == "efficientnet_lite0_logits":
        return LogitLoss(EfficientNetLite0.pretrained(), partial(resized, size=224))
    if kind == "vgg16_logits":
        vgg = VGG16(torch.load(verified_weights("vgg16"), weights_only=True, map_location="cpu"))
        return LogitLoss(vgg, ImageNetInput(224), vgg.logits)
    if kind == "resnet50_logits":
        return LogitLoss(ResNet50.pretrained(), ImageNetInput(224))
    if kind == "dinov2_logits":
        return LogitLoss(DINOv2())
    return None
