"""AdamW parameter groups and averaged weights (EMA)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gsq.config.schedule import OptimizerConfig
from gsq.quantizers.base import Quantizer


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW for eager mode, in which the first call does not import torch._dynamo.

    torch decorates these methods for optimizers inside compiled functions; importing what the decorators need takes as
    long as importing torch, in every process that trains. Steps are those of torch.optim.AdamW, bit for bit.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_optimizer(modules: Iterable[nn.Module], config: OptimizerConfig, *, discriminator: bool = False) -> AdamW:
    """AdamW without weight decay for norms, biases and what a quantizer names (``Quantizer.undecayed``, its codebook),
    unless ``config.decay_everything`` is set."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for module in modules:
        undecayed = {
            parameter
            for part in module.modules()
            if isinstance(part, Quantizer)
            for name in part.undecayed
            for parameter in _parameters(part, name)
        }
        for parameter in module.parameters():
            matrix = parameter.ndim >= 2 and parameter not in undecayed
            (decayed if matrix or config.decay_everything else kept).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.discriminator_betas if discriminator else ()) or config.betas,  # type: ignore[arg-type]
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _parameters(quantizer: Quantizer, name: str) -> list[nn.Parameter]:
    """Parameters with this name or below it; none if the name is a buffer's."""
    return [p for full, p in quantizer.named_parameters() if full == name or full.startswith(f"{name}.")]


def learning_rate(config: OptimizerConfig, step: int, cooldown: tuple[int, int] = (0, 0)) -> float:
    """Learning rate of a step, counted from 0: a linear warm-up, then ``config.schedule``.

    cooldown: first step and number of steps of the decay of wsd; other schedules ignore it.
    """
    first, last = config.learning_rate, config.final_learning_rate
    if config.warmup_steps and step + 1 < config.warmup_steps:
        return first * ((step + 1) / config.warmup_steps)
    if config.schedule == "constant" or (config.schedule == "wsd" and step <= cooldown[0]):
        return first
    if config.schedule == "wsd":
        done = (step - cooldown[0]) / cooldown[1]
        return last + (first - last) * (1 - (math.sqrt(done) if config.decay_shape == "one_minus_sqrt" else done))
    done = min(1.0, max(0, step - config.warmup_steps) / config.decay_steps)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "step": float(done < 1)}[config.schedule]
    return last + (first - last) * left


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, cooldown: tuple[int, int] = (0, 0)
) -> None:
    """Set the ``learning_rate`` of a step."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, cooldown)


def averaged_tensors(averaged: nn.Module, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and persistent floating buffers (an EMA codebook) of both, in the same order."""
    ours, theirs = averaged.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    names = [name for name, value in theirs.items() if value.is_floating_point()]
    return [ours[name].detach() for name in names], [theirs[name].detach() for name in names]


@torch.no_grad()
def update_ema(averaged: list[Tensor], current: list[Tensor], decay: float, step: int, *, warmup: bool = True) -> None:
    """averaged += (1 - d) (current - averaged), d = min(decay, (1 + step) / (10 + step)), or decay without warm-up."""
    torch._foreach_lerp_(averaged, current, 1 - (min(decay, (1 + step) / (10 + step)) if warmup else decay))


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients to a joint norm of at most ``largest`` (0: no limit). Returns the norm before."""
    limit = largest if largest > 0 else float("inf")
    return nn.utils.clip_grad_norm_(list(parameters), limit)
