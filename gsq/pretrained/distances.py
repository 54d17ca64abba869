"""The networks of evaluation.distances, and how a protocol describes each distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gsq.pretrained.extractor import FeatureExtractor
from gsq.pretrained.inception import SPATIAL_DIM, InceptionFeatures
from gsq.pretrained.vit import clip_features, dinov2_features

# Features of an image in each of evaluation.distances that has a network of its own.
DIMS: dict[str, int] = {"fd_dinov2": 1024, "sfid": SPATIAL_DIM, "cmmd": 768}


class Extractors:
    """Everything that an evaluation asks of an image: features, logits, and features for each distance."""

    def __init__(self, features: FeatureExtractor, distances: Sequence[str], device: torch.device) -> None:
        """distances: evaluation.distances. Raises UserError if weights are missing or another network's."""
        self.features = features
        self.networks: dict[str, nn.Module] = {}
        # Inception sees an image once for rfid and sfid.
        self.shared = "sfid" in distances and isinstance(features.network, InceptionFeatures)
        if isinstance(features.network, InceptionFeatures):
            features.network.spatial = self.shared
        for name in distances:
            if name == "sfid" and not self.shared:
                self.networks[name] = InceptionFeatures(spatial=True)
            elif name in ("fd_dinov2", "cmmd"):
                self.networks[name] = dinov2_features() if name == "fd_dinov2" else clip_features()
        for network in (features.network, *self.networks.values()):
            network.to(device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None, Mapping[str, Tensor]]:
        """images: (B, 3, H, W) float32 in [-1, 1]. Features (B, dim), logits if any, features (B, DIMS[name]) by
        distance."""
        found = self.features(images)
        more = {"sfid": found.spatial} if self.shared and found.spatial is not None else {}
        for name, network in self.networks.items():
            made = network(images)
            more[name] = (made[2] if isinstance(made, tuple) else made).float()
        return found.features, found.logits, more
