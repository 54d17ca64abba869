"""Frozen networks for benchmarks, with random weights in place of published files: they cost the same time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gsq.pretrained.features
import gsq.pretrained.inception
import gsq.training.losses

TESTS = Path(__file__).resolve().parents[1] / "gsq_tests"
sys.path.insert(0, str(TESTS))
from seeded_weights import seeded_weights  # noqa: E402


def seeded_networks() -> None:
    """From now on, VGG16 and Inception have seeded random weights in this process."""

    def vgg_state() -> dict[str, Tensor]:
        shapes: dict[str, list[int]] = {}
        index, inputs = 0, 3
        for level in gsq.pretrained.features.VGG16Features.LAYERS:
            for outputs in level:
                shapes |= {f"features.{index}.weight": [outputs, inputs, 3, 3], f"features.{index}.bias": [outputs]}
                index, inputs = index + 2, outputs
            index += 1
        return seeded_weights(shapes)

    original = gsq.training.losses.verified_weights
    gsq.training.losses.verified_weights = lambda name: name if name == "vgg16" else original(name)
    load = torch.load
    gsq.training.losses.torch.load = lambda path, **more: vgg_state() if path == "vgg16" else load(path, **more)
    with np.load(TESTS / "fixtures/inception.npz") as arrays:
        shapes = json.loads(str(arrays["shapes"]))
    gsq.pretrained.inception.InceptionV3.pretrained = classmethod(lambda cls: cls(seeded_weights(shapes)))
