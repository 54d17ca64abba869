"""Which weight files a run trains and evaluates with, and whether they are here; without torch."""

from __future__ import annotations

from gsq.config.objective import PROJECTED
from gsq.config.run import EvaluationConfig, RunConfig
from gsq.pretrained.weights import FEATURE_WEIGHTS, LPIPS_WEIGHTS, PERCEPTUAL_WEIGHTS, find_weights


def training_weights(config: RunConfig) -> tuple[str, ...]:
    """Names in gsq.pretrained.weights.REGISTRY of what the run trains with: perceptual loss, and discriminator's
    network."""
    kind = config.discriminator.kind
    projected = (PROJECTED[kind],) if kind in PROJECTED else ()
    return tuple(dict.fromkeys((*PERCEPTUAL_WEIGHTS.get(config.loss.perceptual, ()), *projected)))


def evaluation_weights(evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Names in gsq.pretrained.weights.REGISTRY of what an evaluation measures with; none of features given by import
    path."""
    features = FEATURE_WEIGHTS.get(evaluation.features)
    lpips = () if evaluation.lpips == "none" else LPIPS_WEIGHTS[evaluation.lpips]
    return (*((features,) if features else ()), *lpips)


def required_weights(*configs: RunConfig) -> tuple[str, ...]:
    """Names in gsq.pretrained.weights.REGISTRY of all that the runs train and evaluate with."""
    needed = (name for c in configs for name in (*training_weights(c), *evaluation_weights(c.evaluation)))
    return tuple(dict.fromkeys(needed))


def require_weights(*configs: RunConfig) -> None:
    """Raise Missing, saying what to get, where a weight file that the runs need (or its reader) is missing."""
    for name in required_weights(*configs):
        find_weights(name)
