"""What an evaluation accumulates over the images, and the numbers that follow from it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsq.evaluation.foreign import Model
from gsq.evaluation.originals import Collected, Originals, collected
from gsq.evaluation.protocol import Protocol
from gsq.files import whole
from gsq.metrics.cmmd import Rows, cmmd
from gsq.metrics.codebook import IndexHistogram
from gsq.metrics.frechet import FeatureStatistics, frechet_distance
from gsq.metrics.inception_score import InceptionScore
from gsq.metrics.kid import kid
from gsq.metrics.manifold import precision_recall
from gsq.metrics.parts import IMAGES
from gsq.pretrained.distances import DIMS


class SmallEvaluationWarning(UserWarning):
    """Fewer images than features + 1."""


def write_histogram(
    path: Path,
    counts: Mapping[str, NDArray[np.int64]],
    index_sizes: tuple[int, ...],
    shared: bool,
    step: int | None,
) -> None:
    arrays: dict[str, Any] = {
        "index_sizes": np.array(index_sizes),
        "shared": np.array(shared),
        "step": np.array(-1 if step is None else step),
        **{f"counts_{name}": values for name, values in counts.items()},
    }
    with whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_histogram(path: Path) -> dict[str, IndexHistogram]:
    """Counts of indices by protocol, from the index_histogram.npz of an attempt (its last evaluation)."""
    found = {}
    with np.load(path) as arrays:
        for name in arrays.files:
            if name.startswith("counts_"):
                histogram = IndexHistogram(tuple(arrays["index_sizes"].tolist()), bool(arrays["shared"]))
                histogram.counts = torch.from_numpy(arrays[name])
                found[name.removeprefix("counts_")] = histogram
    return found


class Tally:
    """Sums over the images seen so far. Tallies of different images can be merged."""

    def __init__(self, rules: Protocol, model: Model, distances: Sequence[str] = ()) -> None:
        """distances: evaluation.distances."""
        self.count = 0
        # A model that was trained elsewhere may have no indices.
        sizes = model.quantizer.index_sizes
        self.histogram = IndexHistogram(sizes, model.quantizer.shared_codebook) if sizes else None
        self.sums: dict[str, float] = {}
        self.statistics = {kind: FeatureStatistics(rules.feature_dim) for kind in ("originals", "reconstructions")}
        # Features of the first images, for the kernel distance.
        self.features: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in self.statistics}
        self.score: InceptionScore | None = None
        self.precision_recall = "precision_recall" in distances
        self.distances: dict[str, dict[str, Collected]] = {
            kind: {n: Rows() if collected(n) is Rows else FeatureStatistics(DIMS[n]) for n in distances if n in DIMS}
            for kind in self.statistics
        }

    def add(self, name: str, values: Tensor) -> None:
        """Add one value for each image."""
        self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())

    def add_features(self, kind: str, features: Tensor, first: int) -> None:
        """Features (B, k) of the images first, first + 1, ..."""
        self.statistics[kind].update(features)
        if first < IMAGES:
            self.features[kind].append(features[: IMAGES - first].cpu().numpy())

    def add_distances(self, kind: str, features: Mapping[str, Tensor]) -> None:
        """Add the features (B, k) of each distance."""
        for name, values in features.items():
            self.distances[kind][name].update(values)

    def merge(self, other: Tally) -> None:
        """Add the images that come after these."""
        self.count += other.count
        if self.histogram and other.histogram:
            self.histogram.merge(other.histogram)
        for kind, kept in self.distances.items():
            for distance, values in kept.items():
                values.merge(other.distances[kind][distance])  # type: ignore[arg-type]
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for kind, statistics in self.statistics.items():
            statistics.merge(other.statistics[kind])
            self.features[kind] += other.features[kind]
        if self.score and other.score:
            self.score.merge(other.score)
        self.score = self.score or other.score

    def first_features(self, kind: str) -> NDArray[np.float32]:
        return np.concatenate(self.features[kind])

    def originals(self) -> Originals:
        return Originals(self.statistics["originals"], self.first_features("originals"), self.distances["originals"])


def _distances(total: Tally, known: Originals) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, made in total.distances["reconstructions"].items():
        originals = known.distances[name]
        if isinstance(made, Rows):
            assert isinstance(originals, Rows)
            found[name] = cmmd(originals.array, made.array)
        else:
            assert isinstance(originals, FeatureStatistics)
            found[name] = frechet_distance(originals, made)
    if total.precision_recall:
        both = precision_recall(known.features, total.first_features("reconstructions"))
        found |= dict(zip(("precision", "recall"), both, strict=True))
    return found


def result_row(rules: Protocol, total: Tally, known: Originals) -> dict[str, Any]:
    if total.count != rules.num_images or known.statistics.count != rules.num_images:
        raise RuntimeError(
            f"{total.count} reconstructions and {known.statistics.count} originals of {rules.num_images} images"
        )
    found = total.statistics["reconstructions"]
    if found.rank_deficient:
        warnings.warn(
            f"rfid over {rules.num_images} images in {rules.feature_dim} features: fewer images than features + 1, so "
            "the covariance is singular and rfid biased upwards; rows record rank_deficient, and kid is unbiased",
            SmallEvaluationWarning,
            stacklevel=3,
        )
    means = {name: value / total.count for name, value in total.sums.items()}
    use = dataclasses.asdict(total.histogram.result()) if total.histogram else {}
    return {
        "protocol": rules.hash,
        "protocol_fields": dataclasses.asdict(rules),
        "num_images": rules.num_images,
        "resolution": rules.image_size,
        "features": f"{rules.features}@{rules.features_sha256[:8]}",
        "feature_dim": rules.feature_dim,
        "rank_deficient": found.rank_deficient,
        "lpips_network": None if rules.lpips == "none" else rules.lpips,
        "rfid": frechet_distance(known.statistics, found),
        "kid": kid(known.features, total.first_features("reconstructions")),
        **_distances(total, known),
        "inception_score": total.score.result() if total.score else None,
        "lpips": means.get("lpips"),
        "psnr_db": means["psnr_db"],
        "ssim": means["ssim"],
        "mse": means["mse"],
        **{name: list(v) if isinstance(v, tuple) else v for name, v in use.items()},
    }
