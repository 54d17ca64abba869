"""The signature of a run from its config, and whether this machine has the weights it needs; without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gsq.config import PROJECTED, EvaluationConfig, RunConfig
from gsq.datasets import Manifest, manifest
from gsq.errors import Missing
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
    absent: list[str] | None = None,
) -> str:
    """Signature of a run, its data set's manifest read (or given). sign: a gsq.signature.Signer, for many configs.

    Raises Missing where the run trains with weights that no published hash names and that are not here; or names them
    in ``absent``, if that is given: the signature is then a provisional one.
    """
    files = files or manifest(config.data)
    weights = {}
    for name in training_weights(config):
        try:
            weights[name] = weights_sha256(name)
        except Missing:
            if absent is None:
                raise
            weights[name] = "absent"
            absent.append(name)
    return sign(config, files.fingerprint, weights)


def evaluation_weights(evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Names in gsq.weights.REGISTRY of what an evaluation measures with; none of features given by import path."""
    features = FEATURE_WEIGHTS.get(evaluation.features)
    lpips = () if evaluation.lpips == "none" else LPIPS_WEIGHTS[evaluation.lpips]
    return (*((features,) if features else ()), *lpips)


def required_weights(*configs: RunConfig) -> tuple[str, ...]:
    """Names in gsq.weights.REGISTRY of all that the runs train and evaluate with."""
    needed = (name for c in configs for name in (*training_weights(c), *evaluation_weights(c.evaluation)))
    return tuple(dict.fromkeys(needed))


def require_weights(*configs: RunConfig) -> None:
    """Raise Missing, saying what to get, where a weight file that the runs need (or its reader) is missing."""
    for name in required_weights(*configs):
        find_weights(name)
