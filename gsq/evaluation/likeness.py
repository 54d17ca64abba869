"""Whether a model's reconstructions look like its images, or like the images read otherwise: a check before numbers.

A model of another value range or order of channels gives an rfid, only a wrong one. So a few images are compared under
every usual reading; a model that knows the images under none, such as one with random weights, passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor

from gsq.errors import UserError
from gsq.evaluation.foreign import RANGES, Convention, Foreign

# Another reading is meant if it leaves less than half of the error, and less than half of the images' variance.
LESS = 0.5
# Below this share of the variance a reconstruction is right as it is.
FINE = 0.02


@torch.no_grad()
def check_likeness(model: Foreign, images: Tensor) -> None:
    """Raise UserError if the reconstructions of images (B, 3, H, W) in [-1, 1] are far nearer to them under another
    value range, order of channels or orientation; the message says which, and what to declare."""
    declared = model.convention
    variance = float(images.var(correction=0)) or 1.0

    def error(made: Tensor) -> float:
        return float((made.clamp(-1, 1) - images).square().mean()) / variance

    made = model(images).images
    if (now := error(made)) < FINE:
        return
    readings = [(error(other), words) for other, words in _reread(made, declared)]
    try:
        for convention in _conventions(declared):
            model.convention = convention
            try:
                other = model(images).images
            except UserError:
                continue
            readings.append((error(other), _declare(convention, declared)))
    finally:
        model.convention = declared
    least, words = min(readings, key=lambda one: one[0])
    if least < LESS * min(now, 1.0):
        raise UserError(
            f"{model.name}: its reconstructions are not of the images as declared (range {_range(declared.range)}, "
            f"returned in {_range(declared.returned)}, {declared.channels}): {words} leaves an error of {least:.2g} of "
            f"the images' variance, instead of {now:.2g}"
        )


def _reread(made: Tensor, declared: Convention) -> Iterator[tuple[Tensor, str]]:
    """What the model returned, read otherwise."""
    low, high = declared.returned
    raw = (made + 1) / 2 * (high - low) + low
    for other in RANGES:
        if other != declared.returned:
            read = (raw - other[0]) / (other[1] - other[0]) * 2 - 1
            yield read, f"output_range: {_range(other)}"
    for order in permutations(range(3)):
        if order != (0, 1, 2):
            names = "".join("RGB"[i] for i in sorted(range(3), key=lambda i: order[i]))
            yield made[:, list(order)], f"reading the returned channels as {names}"
    if made.shape[2] == made.shape[3]:
        yield made.transpose(2, 3), "swapping rows and columns of what it returns"
    yield made.flip(3), "mirroring what it returns left to right"
    yield made.flip(2), "turning what it returns upside down"


def _conventions(declared: Convention) -> Iterator[Convention]:
    """Other ways to give images to the model, and to read its answer."""
    for channels in ("rgb", "bgr"):
        for given in RANGES:
            other = Convention(given, None, channels)
            if (other.range, other.channels) != (declared.range, declared.channels):
                yield other
    if declared.output_range:
        yield replace(declared, output_range=None)


def _declare(convention: Convention, declared: Convention) -> str:
    words = []
    if (convention.range, convention.returned) != (declared.range, declared.returned):
        words.append(f"range: {_range(convention.range)}")
    if convention.channels != declared.channels:
        words.append(f"channels: {convention.channels}")
    return ", ".join(words)


def _range(values: tuple[float, float]) -> str:
    return f"[{values[0]:g}, {values[1]:g}]"
