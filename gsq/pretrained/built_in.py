"""The facts about built-in feature extractors that a protocol records. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from gsq.config.run import FEATURE_DIMS
from gsq.pretrained.weights import FEATURE_WEIGHTS, REGISTRY

# How an image is resized for each built-in evaluation.features.
FEATURE_RESIZES = {
    "efficientnet_lite0": "none",
    "inception": "to 299 pixels, bilinear as TensorFlow 1 (torch-fidelity)",
    "inception_pytorch_fid": "to 299 pixels, bilinear with half-pixel centres (pytorch-fid)",
    "inception_clean_fid": "to 299 pixels, bicubic, antialiased (clean-fid)",
}


@dataclass(frozen=True)
class BuiltIn:
    """Built-in features without their network."""

    name: str
    source: str = ""

    @property
    def sha256(self) -> str:
        """sha256 of the weight file."""
        return REGISTRY[FEATURE_WEIGHTS[self.name]].sha256

    @property
    def dim(self) -> int:
        return FEATURE_DIMS[self.name]

    @property
    def resize(self) -> str:
        return FEATURE_RESIZES[self.name]
