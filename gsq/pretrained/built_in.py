"""The facts about feature extractors that a protocol records. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from gsq.config.run import FEATURE_DIMS
from gsq.errors import UserError
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


def own_features(name: str) -> Callable[[], Any]:
    """Import the function that evaluation.features names as package.module:function.

    Raises UserError if the module cannot be imported, for any reason, or has no such function.
    """
    module_name, _, function = name.partition(":")
    try:
        build = getattr(importlib.import_module(module_name), function, None)
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
        raise UserError(
            f"evaluation.features: '{name}' cannot be imported ({reason}); write package.module:function, of a module "
            "that Python finds (PYTHONPATH), or one of " + ", ".join(FEATURE_WEIGHTS)
        ) from error
    if not callable(build):
        raise UserError(
            f"evaluation.features: '{name}' is not a function there; a function that returns a torch module is needed"
        )
    return cast(Callable[[], Any], build)
