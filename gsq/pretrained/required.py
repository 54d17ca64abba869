"""The weight files that a run trains and evaluates with. Imports no torch."""

from __future__ import annotations

from gsq.config.objective import PROJECTED
from gsq.config.run import EvaluationConfig, RunConfig
from gsq.pretrained.weights import (
    DISTANCE_WEIGHTS,
    FEATURE_WEIGHTS,
    LPIPS_WEIGHTS,
    PERCEPTUAL_WEIGHTS,
    find_weights,
)


def training_weights(config: RunConfig) -> tuple[str, ...]:
    """Registered names of the weights that a run trains with: perceptual loss and discriminator."""
    kind = config.discriminator.kind
    projected = (PROJECTED[kind],) if kind in PROJECTED else ()
    return tuple(dict.fromkeys((*PERCEPTUAL_WEIGHTS.get(config.loss.perceptual, ()), *projected)))


def evaluation_weights(evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Registered names of the weights that an evaluation needs; features given by import path need none."""
    features = FEATURE_WEIGHTS.get(evaluation.features)
    lpips = () if evaluation.lpips == "none" else LPIPS_WEIGHTS[evaluation.lpips]
    distances = (name for one in evaluation.distances for name in DISTANCE_WEIGHTS[one])
    return tuple(dict.fromkeys((*((features,) if features else ()), *lpips, *distances)))


def required_weights(*configs: RunConfig) -> tuple[str, ...]:
    """Registered names of all weights that the runs train and evaluate with."""
    needed = (name for c in configs for name in (*training_weights(c), *evaluation_weights(c.evaluation)))
    return tuple(dict.fromkeys(needed))


def require_weights(*configs: RunConfig) -> None:
    """Raise Missing, which says what to get, if a weight file that the runs need (or its reader) is missing."""
    for name in required_weights(*configs):
        find_weights(name)
