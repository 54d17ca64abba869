"""Evaluation of one tokenizer under a named protocol: rFID, PSNR, SSIM, codebook use.

``rfid`` is the Frechet distance between reconstructions and originals in the features that the protocol names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gsq.autoencoder import Autoencoder
from gsq.config import DataConfig, EvaluationConfig
from gsq.data import ImageSource
from gsq.datasets import Manifest
from gsq.features import EfficientNetFeatures
from gsq.metrics.codebook import IndexHistogram
from gsq.metrics.frechet import FeatureStatistics, frechet_distance
from gsq.metrics.reconstruction import from_uint8, psnr_db, ssim, to_uint8
from gsq.signature import digest
from gsq.weights import REGISTRY

SAMPLES = 8


@dataclass(frozen=True)
class Protocol:
    """Everything that moves a metric without being the model; rows of different protocols are never compared."""

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

    @property
    def hash(self) -> str:
        """12 hex digits."""
        return digest(dataclasses.asdict(self))


def protocol(evaluation: EvaluationConfig, data: DataConfig, files: Manifest) -> Protocol:
    """The protocol that ``evaluate`` follows for this data set."""
    photos = data.kind == "photos"
    count = evaluation.num_images if photos else min(evaluation.num_images, len(files.validation))
    return Protocol(
        data=files.label,
        split="validation",
        num_images=count,
        image_size=data.image_size,
        crop=f"fixed random squares of 1 to {data.max_crop:g} image sizes" if photos else "centre square",
        resize="bicubic, antialiased (Pillow)",
        rounding="uint8, round half to even",
        features=EfficientNetFeatures.name,
        features_sha256=REGISTRY[EfficientNetFeatures.name].sha256,
        feature_dim=EfficientNetFeatures.dim,
    )


@torch.no_grad()
def evaluate(
    model: Autoencoder,
    source: ImageSource,
    evaluation: EvaluationConfig,
    *,
    samples: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Metrics by the results table's column names, with the protocol; optionally a picture of samples.

    model: in float32, on any device. tick is called after each batch and may raise to stop.
    """
    device = next(model.parameters()).device
    rules = protocol(evaluation, source.config, source.manifest)
    extractor = EfficientNetFeatures().to(device)
    originals, reconstructed = FeatureStatistics(rules.feature_dim), FeatureStatistics(rules.feature_dim)
    histogram = IndexHistogram(model.quantizer.index_sizes, model.quantizer.shared_codebook)
    psnr, similarity, mse = [], [], []
    model.eval()
    for first in range(0, rules.num_images, evaluation.batch_size):
        images = source.validation_batch(first, min(evaluation.batch_size, rules.num_images - first)).to(device)
        output = model(images)
        # Both sides are compared as uint8 images, as they would be read from files.
        truth, found = to_uint8(images), to_uint8(output.images)
        originals.update(extractor(from_uint8(truth)))
        reconstructed.update(extractor(from_uint8(found)))
        histogram.update(output.indices)
        psnr.append(psnr_db(found, truth))
        similarity.append(ssim(found, truth))
        mse.append((from_uint8(found).double() - from_uint8(truth).double()).square().flatten(1).mean(1))
        if first == 0 and samples:
            save_samples(truth[:SAMPLES], found[:SAMPLES], samples)
        tick()
    use = histogram.result()
    return {
        "protocol": rules.hash,
        "protocol_fields": dataclasses.asdict(rules),
        "num_images": rules.num_images,
        "features": f"{rules.features}@{rules.features_sha256[:8]}",
        "feature_dim": rules.feature_dim,
        "rank_deficient": rules.num_images < rules.feature_dim + 1,
        "rfid": frechet_distance(originals, reconstructed),
        "psnr_db": float(torch.cat(psnr).mean()),
        "ssim": float(torch.cat(similarity).mean()),
        "mse": float(torch.cat(mse).mean()),
        **{name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(use).items()},
    }


def save_samples(originals: Tensor, reconstructions: Tensor, path: Path) -> None:
    """Originals above reconstructions, (B, 3, H, W) uint8 each, as one PNG with a margin between the images."""
    count, _, height, width = originals.shape
    scale = max(1, 96 // width)
    gap = 4
    sheet = Image.new("RGB", (count * (width * scale + gap) - gap, 2 * height * scale + gap), "white")
    for row, images in enumerate((originals, reconstructions)):
        for column, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
            tile = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * (width * scale + gap), row * (height * scale + gap)))
    sheet.save(path)
