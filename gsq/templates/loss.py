"""A perceptual loss of your own: absolute differences at several scales.

Use it in a sweep with   set: {loss.perceptual: "gsq.templates.loss:Mine"}
and an option as an axis    axes: {loss.options.scales: [1, 2, 3]}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Options:
    """The keys of loss.options. A default is left out of the run's signature."""

    scales: int = 3


class Mine(nn.Module):
    """(images, targets), (B, 3, S, S) in [-1, 1] each -> a scalar, the mean over the images. It is kept frozen."""

    Options = Options

    def __init__(self, scales: int = 3) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), device=images.device)
        for scale in range(self.scales):
            total = total + (F.avg_pool2d(images, 2**scale) - F.avg_pool2d(targets, 2**scale)).abs().mean()
        return total
