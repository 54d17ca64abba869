"""A trainer of the smallest run, without a perceptual loss."""

from __future__ import annotations

from typing import Any

import torch
from tiny_run import tiny
from torch import Tensor, nn

from gsq.data.batches import ImageSource
from gsq.training.trainer import Trainer


def trainer(**changes: Any) -> Trainer:
    config = tiny(**{"loss__perceptual": "none", **changes})
    return Trainer(config, ImageSource(config.data))


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
