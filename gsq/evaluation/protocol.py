"""The evaluation protocol: everything besides the model that affects a metric, and its hash. Imports no torch.

The hash leaves out a later field while it holds its legacy value. When the same evaluation is computed more exactly
than before, ``Protocol.earlier`` names its former protocol: such rows stay valid, and nothing is evaluated again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from typing import Protocol as Interface

from gsq.config.parts import source_sha256
from gsq.config.run import DataConfig, EvaluationConfig
from gsq.config.signature import digest
from gsq.data.manifest import Manifest
from gsq.metrics.parts import CMMD, FIRST_PARTS, KID, PARTS, PRECISION_RECALL, SPLITS
from gsq.pretrained.built_in import FEATURE_RESIZES, BuiltIn
from gsq.pretrained.required import evaluation_weights
from gsq.pretrained.weights import (
    DISTANCE_WEIGHTS,
    FEATURE_WEIGHTS,
    LPIPS_WEIGHTS,
    REGISTRY,
    find_weights,
    weights_sha256,
)

SSIM = "Gaussian window of 11, sigma 1.5, borders mirrored and kept, mean over channels"
# Arithmetic of PSNR and SSIM, in the first protocols and now.
FIRST_ARITHMETIC = "float32 SSIM, infinite PSNR of equal images"
ARITHMETIC = "float64 SSIM, PSNR of equal images as of one value off by 1"


def _added(legacy: str, now: str | None = None) -> Any:
    """A later field, which the hash leaves out while it holds ``legacy``, the practice of the first protocols."""
    return field(default=legacy if now is None else now, metadata={"legacy": legacy})


@dataclass(frozen=True)
class Protocol:
    """Everything besides the model that affects a metric. Rows of different protocols are never compared."""

    data: str
    """Name and fingerprint of the data set."""
    split: str
    num_images: int
    image_size: int
    crop: str
    resize: str
    rounding: str
    features: str
    features_sha256: str
    feature_dim: int
    reconstruction_dtype: str = "float32"
    feature_dtype: str = "float32"
    statistics_dtype: str = "float64"
    feature_resize: str = _added("none")
    """How an image of image_size is resized for the feature extractor."""
    ssim: str = _added("Gaussian window of 11, sigma 1.5, borders mirrored and kept, mean over channels", SSIM)
    kid: str = _added("cubic kernel, pairs left out, first 10000 images in parts of at most 1000", KID)
    inception_score: str = _added("none")
    lpips: str = _added("none")
    """Network, and the first digits of its weights' sha256."""
    pixel_arithmetic: str = _added(FIRST_ARITHMETIC, ARITHMETIC)
    """Arithmetic of psnr_db and ssim."""
    features_source: str = _added("")
    """First digits of the source's hash, if the features are a user's own."""
    metrics: str = _added("none")
    """A user's own metrics, each with the first digits of its source's hash."""
    distances: str = _added("none")
    """evaluation.distances in alphabetical order, each with what it depends on."""
    folder: str = _added("all")
    """The folder of the validation images that are compared."""

    @cached_property
    def hash(self) -> str:
        """12 hex digits."""
        values = dataclasses.asdict(self)
        for f in dataclasses.fields(self):
            if "legacy" in f.metadata and values[f.name] == f.metadata["legacy"]:
                del values[f.name]
        return digest(values)

    @cached_property
    def earlier(self) -> str:
        """Hash of the protocol of this evaluation in earlier versions of gsq.

        Its rows differ in rounding (SSIM by up to 1.3e-4 on flat images), in the PSNR of equal images and in the parts
        of the inception score. They count as this evaluation if a sweep has no others.
        """
        parts = FIRST_PARTS if self.inception_score == PARTS else self.inception_score
        return replace(self, pixel_arithmetic=FIRST_ARITHMETIC, inception_score=parts, features_source="").hash


class Features(Interface):
    """The facts about a feature extractor that a protocol records (gsq.pretrained.extractor.FeatureExtractor)."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def resize(self) -> str: ...
    @property
    def source(self) -> str: ...


def described(name: str, image_size: int) -> Features:
    """The facts about the features that evaluation.features names.

    A user's own module is built with torch and applied to two images of image_size pixels. Raises UserError like
    gsq.pretrained.extractor.feature_extractor.
    """
    if name in FEATURE_WEIGHTS:
        return BuiltIn(name)
    from gsq.pretrained.extractor import feature_extractor

    return feature_extractor(name, image_size)


def protocol(
    evaluation: EvaluationConfig,
    data: DataConfig,
    files: Manifest,
    *,
    image_size: int | None = None,
    features: Features | None = None,
) -> Protocol:
    """The protocol of an evaluation on this data set at one size (default: data.image_size).

    features: those of evaluation.features, if they are built already. Raises UserError for too few images
    (EvaluationConfig.check_images).
    """
    held_out = len(files.below(evaluation.folder).validation)
    return protocol_of(evaluation, data, files.label, held_out, image_size=image_size, features=features)


def protocol_of(
    evaluation: EvaluationConfig,
    data: DataConfig,
    label: str,
    held_out: int,
    *,
    image_size: int | None = None,
    features: Features | None = None,
) -> Protocol:
    """Like ``protocol``, but the data set is given by its label (Manifest.label) and number of validation images."""
    size = image_size or data.image_size
    count = evaluation.images(data, held_out)
    evaluation.check_images(count)
    features = features or described(evaluation.features, size)
    photos = data.kind == "photos"
    score = "none"
    if features.name.startswith("inception"):
        score = PARTS if count % min(SPLITS, count) else FIRST_PARTS
    return Protocol(
        data=label,
        split="validation",
        num_images=count,
        image_size=size,
        crop=f"fixed random squares of 1 to {data.max_crop:g} image sizes" if photos else "centre square",
        resize="bicubic, antialiased (Pillow)",
        rounding="uint8, round half to even",
        features=features.name,
        features_sha256=features.sha256,
        feature_dim=features.dim,
        reconstruction_dtype=evaluation.reconstruction_dtype,
        feature_resize=features.resize,
        inception_score=score,
        lpips=lpips_label(evaluation.lpips),
        features_source=features.source,
        distances="; ".join(_distance(name, features.name) for name in sorted(evaluation.distances)) or "none",
        folder=evaluation.folder.strip("/") or "all",
        metrics=" ".join(f"{name}@{source_sha256(name)[:12]}" for name in evaluation.metrics) or "none",
    )


def _distance(name: str, features: str) -> str:
    """A distance, and what its number depends on beside the features of the protocol."""
    if name == "precision_recall":
        return f"{name}: {PRECISION_RECALL}"
    (weights,) = DISTANCE_WEIGHTS[name]
    how = {
        "fd_dinov2": "to 224 pixels, bicubic, antialiased",
        "sfid": FEATURE_RESIZES[features if features.startswith("inception") else "inception"],
        "cmmd": f"to 336 pixels, bicubic; {CMMD}",
    }[name]
    return f"{name}@{weights_sha256(weights)[:8]}: {how}"


def lpips_label(net: str) -> str:
    """Network and weights, such as vgg@397923af+a78928a0."""
    if net == "none":
        return "none"
    return f"{net}@" + "+".join(REGISTRY[name].sha256[:8] for name in LPIPS_WEIGHTS[net])


def check(evaluation: EvaluationConfig, data: DataConfig, files: Manifest) -> None:
    """Raise UserError if images, weights or a module that this evaluation needs are missing."""
    protocol(evaluation, data, files)
    for name in evaluation_weights(evaluation):
        find_weights(name)
