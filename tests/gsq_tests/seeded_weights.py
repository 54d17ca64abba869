"""Weights that a seed and the names of tensors decide, for comparing networks without a published weight file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def seeded_weights(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """A state dict in float32 that keeps activations near one.

    Each tensor has a generator of its own, seeded by the CRC-32 of "SEED:NAME". Matrices and kernels are normal with
    variance 2 / fan-in; scales and variances of norms uniform in [0.5, 1.5]; means and biases normal, deviation 0.1.
    """
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
        elif len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(*shape, generator=generator) * (2 / fan_in) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = torch.rand(*shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(*shape, generator=generator) * 0.1
    return state


def seeded_images(count: int, height: int, width: int, seed: int) -> Tensor:
    """(count, 3, height, width) uint8, smooth with noise on top."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noise = torch.randn(count, 3, height, width, generator=generator) * 20
    return (smooth + noise).round().clamp(0, 255).to(torch.uint8)
