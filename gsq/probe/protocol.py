"""The probe protocol: everything besides the tokenizer that affects what a probe finds, and its hash. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from gsq.config.probe import CURVE, FEWEST, MOST_SAMPLES, PACKED, SELECTION, SIZES, ProbeSize, probe_images
from gsq.config.run import DataConfig, EvaluationConfig
from gsq.config.signature import digest
from gsq.data.manifest import Manifest, Summary
from gsq.errors import UserError


@dataclass(frozen=True)
class ProbeProtocol:
    """Everything besides the tokenizer that affects a probe's numbers. Rows of different ones are never compared."""

    size: str
    architecture: str
    steps: int
    positions: int
    """Latent positions of a step's batch."""
    optimizer: str
    seed: int
    data: str
    """Name and fingerprint of the data set."""
    image_size: int
    train_images: int
    held_out_images: int
    selection: str
    augmentation: str
    order: str
    samples: int
    temperature: float = 1.0
    guidance: str = "none"
    folder: str = "all"
    """The folder of the held-out images; the hash leaves it out where it is all."""

    @cached_property
    def hash(self) -> str:
        """12 hex digits."""
        values = dataclasses.asdict(self)
        if self.folder == "all":
            del values["folder"]
        return digest(values)


def probe_size(evaluation: EvaluationConfig) -> ProbeSize:
    """The probe that evaluation.probe names, with evaluation.probe_steps in place of its own."""
    size = SIZES[evaluation.probe]
    return dataclasses.replace(size, steps=evaluation.probe_steps or size.steps)


def probe_protocol(
    evaluation: EvaluationConfig, data: DataConfig, files: Manifest, image_size: int | None = None
) -> ProbeProtocol | None:
    """The protocol of the probe that an evaluation asks for; None if it asks for none.

    Raises UserError for too few training images, and where the held-out images are among them.
    """
    if evaluation.probe == "none":
        return None
    return probe_protocol_of(evaluation, data, files.below(evaluation.folder).summary(), image_size)


def probe_protocol_of(
    evaluation: EvaluationConfig, data: DataConfig, images: Summary, image_size: int | None = None
) -> ProbeProtocol | None:
    """Like ``probe_protocol``, but the data set is given in numbers."""
    if evaluation.probe == "none":
        return None
    train, held_out = images.train, images.validation
    if both := images.in_both:
        raise UserError(
            f"evaluation.probe: {len(both)} of the {held_out} held-out images are training images, too (such as "
            f"{both[0]}); a code length over them would be too short. Remove them from one side of the split"
        )
    size, count = probe_size(evaluation), probe_images(evaluation.probe_images, data.kind == "photos", train)
    if count < FEWEST:
        asked = 0 < evaluation.probe_images < FEWEST
        fix = f"set evaluation.probe_images to {FEWEST} or more" if asked else "use a larger data set"
        raise UserError(
            f"evaluation.probe: {count} training images are too few for a probe, which needs at least {FEWEST}; {fix}, "
            "or probe: none"
        )
    compared = evaluation.images(data, held_out)
    return ProbeProtocol(
        size=evaluation.probe,
        architecture=f"{size.layers} blocks of {size.width}, {size.heads} heads; codes: {size.code_layers} of "
        f"{size.code_width}, {size.code_heads} heads; places of unit variance, biases start at log frequencies",
        steps=size.steps,
        positions=size.positions,
        optimizer=f"AdamW {size.learning_rate:g}, betas 0.9 0.95, decay {size.weight_decay:g}, clip 1, warm-up "
        f"{size.warmup:g}, cosine to 0.1",
        seed=evaluation.probe_seed,
        data=images.label,
        image_size=image_size or data.image_size,
        train_images=count,
        held_out_images=compared,
        selection=f"{SELECTION:g} of the training images choose one of {CURVE} steps",
        augmentation="mirrored, too" if data.flip else "none",
        order=f"raster; indices of a position in order, packed up to {PACKED} values",
        samples=min(compared, MOST_SAMPLES),
        folder=evaluation.folder.strip("/") or "all",
    )
