"""An evaluation that costs nothing and counts the images that it sees."""

from __future__ import annotations

from typing import Any

import counting_features
import torch
from tiny_run import tiny

from gsq.data.batches import ImageSource
from gsq.models.autoencoder import Autoencoder

MEANS = "counting_features:means"


def setting(**changes: Any) -> tuple[Autoencoder, ImageSource, Any]:
    """A tokenizer without training, images and an evaluation with features that cost nothing and count."""
    config = tiny(**{"evaluation__features": MEANS, "evaluation__batch_size": 3, **changes})
    torch.manual_seed(0)
    counting_features.images_seen = 0
    return Autoencoder(config), ImageSource(config.data), config.evaluation
