"""Features of your own for rfid and kid: means and spreads of colours over a grid.

Use it in a sweep with   set: {evaluation.features: "gsq.templates.features:mine"}
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Grid(nn.Module):
    """(B, 3, H, W) float32 in [-1, 1] -> (B, k), the same k at every size; nothing may depend on other images."""

    def forward(self, images: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(images, 4)
        spreads = (F.adaptive_avg_pool2d(images.square(), 4) - means.square()).clamp_min(0).sqrt()
        return torch.cat([means, spreads], 1).flatten(1)


def mine() -> nn.Module:
    """The network, which is kept frozen. Its parameters, or its attribute ``sha256``, identify it in the protocol."""
    return Grid()
