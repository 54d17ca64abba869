"""Inception score from logits, streamed.

Shapes: N images, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gsq.metrics.parts import SPLITS


class InceptionScore:
    """exp of the mean KL divergence of each image's classes from all images', the mean over splits (Salimans 2016).

    Part i of the ``splits`` holds the images from floor(i N / splits) to floor((i + 1) N / splits), like the code of
    Salimans et al. and torch-fidelity's isc_features_to_metric, which shuffles first; here images stay in order.
    torchmetrics differs if ``splits`` does not divide N: its chunks of ceil(N / splits) images leave a short last one,
    or fewer of them. The state is float64 sums (splits, C), whatever the number of images.
    """

    def __init__(self, images: int, classes: int, splits: int = SPLITS) -> None:
        """images: total number of images."""
        self.images, self.splits = images, min(splits, images)
        self.counts = torch.zeros(self.splits, dtype=torch.int64)
        self.probabilities = torch.zeros(self.splits, classes, dtype=torch.float64)
        self.negative_entropy = torch.zeros(self.splits, dtype=torch.float64)

    def update(self, logits: Tensor, first: int) -> None:
        """logits: (B, C) of the images first, first + 1, ..."""
        log = logits.detach().cpu().double().log_softmax(1)
        p = log.exp()
        split = (torch.arange(first + 1, first + len(log) + 1) * self.splits - 1) // self.images
        self.counts.index_add_(0, split, torch.ones_like(split))
        self.probabilities.index_add_(0, split, p)
        self.negative_entropy.index_add_(0, split, (p * log).sum(1))

    def merge(self, other: InceptionScore) -> None:
        """Add other images of the same set."""
        self.counts += other.counts
        self.probabilities += other.probabilities
        self.negative_entropy += other.negative_entropy

    def result(self) -> float:
        """Raises ValueError unless every image was given."""
        if int(self.counts.sum()) != self.images:
            raise ValueError(f"{int(self.counts.sum())} images were given of {self.images}")
        marginal = self.probabilities / self.counts[:, None]
        entropy = -torch.special.xlogy(marginal, marginal).sum(1)
        divergence = self.negative_entropy / self.counts + entropy
        return math.fsum(divergence.exp().tolist()) / self.splits
