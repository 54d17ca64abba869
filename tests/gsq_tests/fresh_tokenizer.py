"""A tokenizer without training."""

from __future__ import annotations

import torch

from gsq import RunConfig, Tokenizer
from gsq.models.autoencoder import Autoencoder


def fresh(config: RunConfig, seed: int = 0) -> Tokenizer:
    torch.manual_seed(seed)
    return Tokenizer(config, Autoencoder(config), "cpu", "fresh")
