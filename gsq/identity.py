"""The signature of a run from its config, and whether this machine has the weights it needs; without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gsq.config import PROJECTED, EvaluationConfig, RunConfig
from gsq.datasets import Manifest, manifest
from gsq.signature import signature
from gsq.weights import FEATURE_WEIGHTS, LPIPS_WEIGHTS, PERCEPTUAL_WEIGHTS, find_weights, weights_sha256


def training_weights(config: RunConfig) -> tuple[str, ...]:
    """Names in gsq.weights.REGISTRY of what the run trains with: perceptual loss, and discriminator's network."""
    kind = config.discriminator.kind
    projected = (PROJECTED[kind],) if kind in PROJECTED else ()
    return tuple(dict.fromkeys((*PERCEPTUAL_WEIGHTS[config.loss.perceptual], *projected)))


def identity(
    config: RunConfig,
    files: Manifest | None = None,
    sign: Callable[[RunConfig, str, Mapping[str, str]], str] = signature,
) -> str:
    """Signature of a run, its data set's manifest read (or given). sign: a gsq.signature.Signer, for many configs.

    Raises UserError where the run trains with weights that no published hash names and that are missing here.
    """
    files = files or manifest(config.data)
    weights = {name: weights_sha256(name) for name in training_weights(config)}
    return sign(config, files.fingerprint, weights)


def evaluation_weights(evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Names in gsq.weights.REGISTRY of what an evaluation measures with; none of features given by import path."""
    features = FEATURE_WEIGHTS.get(evaluation.features)
    lpips = () if evaluation.lpips == "none" else LPIPS_WEIGHTS[evaluation.lpips]
    return (*((features,) if features else ()), *lpips)


def require_weights(*configs: RunConfig) -> None:
    """Raise UserError, saying what to get, where a weight file that the runs need (or its reader) is missing."""
    needed = (name for c in configs for name in (*training_weights(c), *evaluation_weights(c.evaluation)))
    for name in dict.fromkeys(needed):
        find_weights(name)
