"""Sizes of the generation probe, a small transformer trained on a tokenizer's indices, and its cost. No torch.

Shapes: P latent positions of an image, K codes of a position, V_k values of code k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gsq.errors import UserError, at_least, choose_each

# Small indices of a position are packed into one code of at most so many values: 16 signs become two codes of 256.
PACKED = 1024
# Points of the learning curve, at equal distances in steps. Each is a checkpoint, too.
CURVE = 8
# Share of the training images that choose the step whose weights are kept, which no step trains on.
SELECTION = 0.1
# Fewest training images: fewer would leave fewer than ten to choose the step by.
FEWEST = 100
# Most samples of a gfid, and images that one pass of sampling makes together.
MOST_SAMPLES, SAMPLE_BATCH = 10_000, 128
# Cost of a sample in forward passes: one position at a time is slower than all at once.
SAMPLING = 3
# Training crops of photos, and most training images of any data, where evaluation.probe_images is 0.
PHOTO_CROPS, MOST_IMAGES = 1024, 50_000


@dataclass(frozen=True)
class ProbeSize:
    """A probe: a transformer over positions and a smaller one over the codes of a position, and its training."""

    width: int
    layers: int
    heads: int
    code_width: int
    code_layers: int
    code_heads: int
    positions: int
    """Latent positions of a step's batch, of whole images."""
    steps: int
    learning_rate: float
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises; it then falls to a tenth along a cosine."""
    weight_decay: float = 0.1

    def batch(self, positions: int) -> int:
        """Return the number of images in a batch, given the positions of an image."""
        return max(1, self.positions // positions)


SIZES: dict[str, ProbeSize] = {
    "tiny": ProbeSize(64, 2, 2, 32, 1, 1, positions=512, steps=200, learning_rate=4e-3),
    "small": ProbeSize(128, 4, 4, 64, 2, 1, positions=1024, steps=2000, learning_rate=2e-3),
    "base": ProbeSize(512, 12, 8, 256, 3, 4, positions=16_384, steps=20_000, learning_rate=6e-4),
}
NAMES = ("none", *SIZES)


def check_probe(evaluation: object) -> None:
    """Raise UserError for an unknown probe of a section ``evaluation``, and for keys that it would ignore."""
    keys = ("probe_steps", "probe_images", "probe_seed")
    choose_each("evaluation", evaluation, probe=NAMES)
    at_least("evaluation", evaluation, 0, *keys)
    for key in keys:
        if getattr(evaluation, "probe") == "none" and (value := getattr(evaluation, key)):  # noqa: B009
            raise UserError(
                f"evaluation.{key}: {value} has no meaning for evaluation.probe none; name a probe "
                f"({', '.join(NAMES[1:])}), or use 0"
            )


def packs(index_sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The indices of a position, by the sizes of those that share a code, in order. A code has at most PACKED values,
    unless one index alone has more."""
    found: list[list[int]] = []
    for size in index_sizes:
        if found and math.prod(found[-1]) * size <= PACKED:
            found[-1].append(size)
        else:
            found.append([size])
    return tuple(map(tuple, found))


def probe_images(asked: int, photos: bool, there: int) -> int:
    """Training images of a probe. asked: evaluation.probe_images; there: images of the data set, 0 if not known."""
    return asked or PHOTO_CROPS if photos else min(asked or MOST_IMAGES, there or MOST_IMAGES)


def code_sizes(index_sizes: Sequence[int]) -> tuple[int, ...]:
    """V_k of each code, (K,)."""
    return tuple(map(math.prod, packs(index_sizes)))


def probe_macs(size: ProbeSize, positions: int, codes: Sequence[int]) -> float:
    """Multiply-adds of the probe's forward pass over one image: blocks, attention, look-up of the logits."""
    blocks = 12 * size.layers * size.width**2 + size.layers * positions * size.width
    inner = len(codes) * size.code_layers * (12 * size.code_width**2 + len(codes) * size.code_width)
    joints = (len(codes) + 1) * size.code_width * size.width
    return float(positions * (blocks + inner + joints + size.code_width * sum(codes)))


def probe_parameters(size: ProbeSize, positions: int, codes: Sequence[int]) -> int:
    """Learned parameters of the probe, as gsq.probe.model builds it; a test compares."""
    shapes = ((size.layers, size.width), (size.code_layers, size.code_width))
    # The weights of a block, and its two norms.
    total = sum(count * (12 * width**2 + 4 * width) for count, width in shapes)
    total += positions * size.width + (len(codes)) * size.code_width * (size.width + 1)
    total += size.width * size.code_width + 2 * size.width + 2 * size.code_width
    return total + sum(codes) * (2 * size.code_width + 1)
