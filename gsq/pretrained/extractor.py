"""Feature extractors of evaluations: built-in networks, and a user's own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gsq.config.parts import load, source_sha256
from gsq.errors import UserError
from gsq.pretrained.built_in import BuiltIn
from gsq.pretrained.efficientnet import EfficientNetFeatures
from gsq.pretrained.inception import InceptionFeatures
from gsq.pretrained.weights import FEATURE_WEIGHTS


class Extracted(NamedTuple):
    features: Tensor
    """(B, dim), float32."""
    logits: Tensor | None
    """(B, classes); None if the network has none."""
    spatial: Tensor | None
    """Inception's features for sFID, if asked for."""


@dataclass(frozen=True)
class FeatureExtractor:
    """The features of an evaluation protocol: (B, 3, H, W) float32 in [-1, 1] -> (B, dim)."""

    name: str
    sha256: str
    """sha256 of the weight file, or of the state of a user's own module."""
    dim: int
    resize: str
    network: nn.Module
    """Inception returns logits beside the features."""
    source: str = ""
    """First digits of the hash of the source of a user's own."""

    def __call__(self, images: Tensor) -> Extracted:
        """Raises UserError for features of another shape."""
        found = self.network(images)
        features, logits, spatial = (*found, None, None)[:3] if isinstance(found, tuple) else (found, None, None)
        if features.shape != (len(images), self.dim):
            raise UserError(
                f"evaluation.features: '{self.name}' made {tuple(features.shape)} of {tuple(images.shape)} images; "
                f"({len(images)}, {self.dim}) was expected: one row of features an image, as many at every size"
            )
        return Extracted(features.float(), logits, spatial)


def feature_extractor(name: str, image_size: int) -> FeatureExtractor:
    """The extractor that evaluation.features names, frozen.

    "package.module:function" names a function that returns a torch module (B, 3, H, W) in [-1, 1] -> (B, k). The
    protocol records the module's attribute ``sha256`` or, without one, a hash of its parameters and buffers; a module
    whose features depend on anything else should have the attribute. image_size: size of the images that determine k.

    Raises UserError if weights are missing or another network's, or if there is no such function or module.
    """
    if name in FEATURE_WEIGHTS:
        built = EfficientNetFeatures() if name == EfficientNetFeatures.name else InceptionFeatures(name)
        known = BuiltIn(name)
        return FeatureExtractor(name, known.sha256, known.dim, known.resize, built)
    network = load(name, "evaluation.features")()
    if not isinstance(network, nn.Module):
        raise UserError(
            f"evaluation.features: '{name}' returned a {type(network).__name__}; a function that returns a torch "
            "module is needed"
        )
    network.eval().requires_grad_(False)
    with torch.no_grad():
        found = network(torch.zeros(2, 3, image_size, image_size))
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"evaluation.features: '{name}' makes {shape} of two images; a (2, k) tensor is needed")
    sha256 = getattr(network, "sha256", None) or state_sha256(network)
    return FeatureExtractor(name, sha256, found.shape[1], "by the module", network, source_sha256(name)[:12])


def state_sha256(network: nn.Module) -> str:
    """Hash of names, types, shapes and bytes of parameters and buffers."""
    sha256 = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        value = value.detach().cpu().contiguous()
        sha256.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha256.update(value.reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()
