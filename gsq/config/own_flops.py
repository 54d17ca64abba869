"""Parameters, multiply-adds and activations of a part of a user's own, counted by running it once.

On torch's meta device, without memory or arithmetic, where the part allows it; else on the CPU. This loads torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from gsq.config.parts import TAKEN, Options, blamed, options_of
from gsq.errors import UserError


@cache
def measured(
    part: Any,
    name: str,
    key: str,
    options: Options,
    section: Any,
    shapes: tuple[tuple[int, ...], ...],
    function: str = "",
) -> tuple[int, int, int]:
    """(parameters, multiply-adds, activations in float values) of one forward pass of the module that a part returns.

    part: what ``name`` names. section: what it is built with before its options, a tuple. shapes: of its inputs, for
    one image. function: the part's function that builds the module, such as encoder. Raises UserError where it cannot
    be built or run.
    """
    import torch

    build = getattr(part, function, None) if function else part
    if build is None:
        raise UserError(f"{key}: '{name}' has no function '{function}'; needed is {TAKEN[key]}")
    chosen = options_of(name, key, options)
    error: Exception | None = None
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                return _run(lambda: build(*section, **chosen), shapes, device)
        except Exception as caught:
            error = caught
    what = f"{name}.{function}" if function else name
    raise UserError(
        f"{key}: '{what}' cannot be run on {', '.join(map(str, shapes))}: {type(error).__name__}: "
        f"{str(error).splitlines()[0] if str(error) else ''}"
    ) from error


def _run(build: Callable[[], Any], shapes: tuple[tuple[int, ...], ...], device: str) -> tuple[int, int, int]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = build()
    activations = 0

    def seen(_module: Any, _inputs: Any, output: Any) -> None:
        nonlocal activations
        if isinstance(output, torch.Tensor):
            activations += output.numel()

    if isinstance(module, torch.nn.Module):
        module.eval()
        for part in module.modules():
            if not any(part.children()):
                part.register_forward_hook(seen)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*(torch.zeros(shape, device=device) for shape in shapes))
    parameters = sum(p.numel() for p in module.parameters()) if isinstance(module, torch.nn.Module) else 0
    return parameters, counter.get_total_flops() // 2, activations


@cache
def _quantizer_parameters(part: Any, model: Any, quantizer: Any, config: Held) -> int:
    import torch

    with blamed("quantizer.kind", quantizer.kind), torch.device("meta"), torch.random.fork_rng(devices=[]):
        if not (isinstance(part, type) and issubclass(part, torch.nn.Module) and hasattr(part, "build")):
            raise UserError(f"quantizer.kind: '{quantizer.kind}' is not {TAKEN['quantizer.kind']}, which is needed")
        return sum(p.numel() for p in part.build(config.value).parameters())


@dataclass(frozen=True)
class Held:
    """A config that a cache does not look at."""

    value: Any = field(compare=False)


def quantizer_parameters(part: Any, config: Any) -> int:
    """Parameters of a quantizer of a user's own, ``part``, which is built without memory for it."""
    return _quantizer_parameters(part, config.model, config.quantizer, Held(config))
