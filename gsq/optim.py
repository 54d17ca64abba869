"""AdamW parameter groups and averaged weights (EMA)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gsq.config import OptimizerConfig


def build_optimizer(modules: Iterable[nn.Module], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; codebook, norms and biases keep no weight decay unless ``config.decay_everything``."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            matrix = parameter.ndim >= 2 and not name.endswith("codebook")
            (decayed if matrix or config.decay_everything else kept).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int) -> None:
    """Linear warm-up over ``warmup_steps``, then constant; ``step`` counts from 0."""
    scale = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * scale


@torch.no_grad()
def update_ema(averaged: list[Tensor], current: list[Tensor], decay: float, step: int) -> None:
    """averaged += (1 - d) (current - averaged), d = min(decay, (1 + step) / (10 + step))."""
    torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + step) / (10 + step)))


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients so that their joint norm is at most ``largest`` (0: leave them); returns the norm before."""
    limit = largest if largest > 0 else float("inf")
    return nn.utils.clip_grad_norm_(list(parameters), limit)
