"""The signature of a run from its config, and whether this machine has the weights it needs; without torch."""

from __future__ import annotations

from gsq.config import RunConfig
from gsq.datasets import Manifest, manifest
from gsq.signature import signature
from gsq.weights import PERCEPTUAL_WEIGHTS, REGISTRY, find_weights


def identity(config: RunConfig, files: Manifest | None = None) -> str:
    """Signature of a run, its data set's manifest read (or given)."""
    files = files or manifest(config.data)
    weights = {name: REGISTRY[name].sha256 for name in PERCEPTUAL_WEIGHTS[config.loss.perceptual]}
    return signature(config, files.fingerprint, weights)


def require_weights(config: RunConfig) -> None:
    """Raise UserError, saying what to get, where a weight file that the run needs is missing."""
    for name in (*PERCEPTUAL_WEIGHTS[config.loss.perceptual], config.evaluation.features):
        find_weights(name)
