"""Named starting points for ``base:`` in a sweep and for ``gsq train``, and what the paper prints of their size.

| preset                    | image | f  | D  | width | multipliers | blocks | attention | batch | steps   | paper's M |
|---------------------------|-------|----|----|-------|-------------|--------|-----------|-------|---------|-----------|
| cpu-tiny                  | 32    | 4  | 16 | 16    | 1 2 2       | 1      | no        | 8     | 300     |           |
| cpu-small                 | 64    | 8  | 16 | 32    | 1 2 2 4     | 1      | no        | 8     | 5,000   |           |
| paper-f8                  | 256   | 8  | 16 | 128   | 1 2 2 4     | 2      | no        | 512   | 50,000  | 75.59     |
| paper-f8-attention        | 256   | 8  | 16 | 128   | 1 2 2 4     | 2      | yes       | 512   | 50,000  | 77.70     |
| paper-f8-1244             | 256   | 8  | 16 | 128   | 1 2 4 4     | 2      | no        | 512   | 50,000  | 96.64     |
| paper-f8-1244-attention   | 256   | 8  | 16 | 128   | 1 2 4 4     | 2      | yes       | 512   | 50,000  | 100.74    |
| paper-f16                 | 256   | 16 | 16 | 128   | 1 1 2 2 4   | 2      | no        | 512   | 50,000  | 77.53     |
| paper-f16-12224           | 256   | 16 | 16 | 128   | 1 2 2 2 4   | 2      | no        | 512   | 50,000  | 83.30     |
| paper-f16-11244           | 256   | 16 | 16 | 128   | 1 1 2 4 4   | 2      | no        | 512   | 50,000  | 100.58    |
| paper-f16-12244-deeper    | 256   | 16 | 16 | 128   | 1 2 2 4 4   | 3, 4   | no        | 512   | 50,000  | 166.26    |
| paper-f32                 | 256   | 32 | 32 | 128   | 1 1 1 2 2 4 | 2      | no        | 512   | 50,000  |           |
| paper-vae-128             | 128   | 8  | 8  | 128   | 1 2 2 4     | 2      | no        | 256   | 100,000 |           |
| paper-gan-128             | 128   | 8  | 8  | 128   | 1 2 2 4     | 2      | no        | 256   | 80,000  |           |
| paper-gan-256             | 256   | 8  | 16 | 128   | 1 2 2 4     | 2      | no        | 512   | 50,000  |           |
| authors-f8                | 256   | 8  | 16 | 128   | 1 2 2 4     | 2      | no        | 512   | 50,000  |           |
| authors-f16               | 256   | 16 | 16 | 128   | 1 1 2 2 4   | 2      | no        | 512   | 50,000  |           |
| authors-f32               | 256   | 32 | 32 | 128   | 1 1 1 2 2 4 | 2      | no        | 512   | 50,000  |           |
| authors-vae-128           | 128   | 8  | 8  | 128   | 1 2 2 4     | 2      | no        | 256   | 100,000 |           |
| authors-gan-128           | 128   | 8  | 8  | 128   | 1 2 2 4     | 2      | no        | 256   | 80,000  |           |
| authors-gan-256           | 256   | 8  | 16 | 128   | 1 2 2 4     | 2      | no        | 512   | 50,000  |           |
| gpu24-64                  | 64    | 4  | 16 | 64    | 1 2 2       | 2      | no        | 128   | 100,000 |           |
| gpu24-128                 | 128   | 8  | 16 | 64    | 1 2 2 4     | 2      | no        | 128   | 100,000 |           |
| gpu24-256                 | 256   | 8  | 16 | 64    | 1 2 2 4     | 2      | no        | 128   | 100,000 |           |
| gpu80-64                  | 64    | 4  | 16 | 128   | 1 2 2       | 2      | no        | 256   | 100,000 |           |
| gpu80-128                 | 128   | 8  | 16 | 128   | 1 2 2 4     | 2      | no        | 256   | 100,000 |           |
| gpu80-256                 | 256   | 8  | 16 | 128   | 1 2 2 4     | 2      | no        | 256   | 100,000 |           |

cpu-*: learning rate 1e-3, perceptual loss efficientnet_lite0, PatchGAN (16 channels, 2 layers; 32, 2). paper-f*: 2e-4,
lpips_vgg, PatchGAN (64, 3), V = 262,144, depth-to-space, bfloat16. The paper's scaling runs use the DINO discriminator
with augmentation (discriminator: {kind: dino, augment: [color, translation, cutout]}), whose weights you must provide;
PatchGAN is the paper's other choice.

paper-vae-128, paper-gan-128, paper-gan-256: the hyperparameters of the paper's tables 16, 18 and 21. ImageNet lies in
the folder that $IMAGENET names, with its images below train/ and val/; rFID is in Inception features over 50,000
images, with LPIPS. Not in the paper: the crops (its authors' code resizes each image and takes the centre; here it is
the largest square, at a random place), flips (none in that code), and the network of the LPIPS metric. micro_batch
fits a GPU of 40 GB.

gpu24-*, gpu80-*: for one GPU of 24 or 80 GB, trained as the authors train, with G = 4 groups, V = 1024, lpips_vgg and a
PatchGAN (64, 3) that joins after a fifth of the steps. Their data is ImageNet in the folder that $IMAGENET names
(data.path), evaluated like paper-gan-256. micro_batch fits the GPU by gsq's estimate; their hours and memory are not
measured.

authors-*: the paper-* preset of the same name, trained as the authors' public code trains where the paper is silent
(AUTHORS below; gsq/README.md compares the authors, the paper and gsq). The sweeps in sweeps/configs/paper/ start from
these. Two points stay gsq's: the discriminator has group norm, since the authors' batch norm sees the 16 images of one
process, so that a result would depend on the number of processes; and LeCAM averages over the global batch, where the
authors' code keeps averages of its own in each process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from gsq.config.overrides import load_config
from gsq.config.run import RunConfig
from gsq.errors import UserError, nearest


def _paper(downsample: int, latent_dim: int, **model: Any) -> dict[str, Any]:
    return {
        # The paper's parameter counts fit this upsampling alone.
        "model": {"downsample": downsample, "latent_dim": latent_dim, "upsample": "depth_to_space", **model},
        "quantizer": {"codebook_size": 262144},
        "loss": {"perceptual": "lpips_vgg"},
        "optimizer": {"learning_rate": 2e-4, "decay_everything": True},
        "train": {"steps": 50_000, "batch_size": 512, "precision": "bfloat16"},
        "data": {"kind": "photos", "image_size": 256},
        "evaluation": {"num_images": 50_000, "batch_size": 32},
    }


DINO = {"kind": "dino", "augment": ["color", "translation", "cutout"]}


def _paper_table(image_size: int, steps: int, batch_size: int, micro_batch: int, **sections: Any) -> dict[str, Any]:
    """The settings that tables 16, 18 and 21 of the paper share."""
    return {
        "loss": {"perceptual": "lpips_vgg"},
        "train": {"steps": steps, "batch_size": batch_size, "precision": "bfloat16"},
        # So large that the square is as large as the image.
        "data": {
            "kind": "image_folder",
            "path": "$IMAGENET",
            "image_size": image_size,
            "min_crop": 1000.0,
            "max_crop": 1000.0,
            "flip": False,
        },
        "evaluation": {"features": "inception", "num_images": 50_000, "lpips": "vgg", "batch_size": 32},
        "execution": {"micro_batch": micro_batch},
        **sections,
    }


# Differences of the authors' code from gsq's defaults; `discriminator` applies if there is one, `init` to a
# PatchGAN. Sweeps with LeCAM add loss.lecam_update: before.
AUTHORS: dict[str, dict[str, Any]] = {
    "quantizer": {"decoder_input": "raw", "loss_row": "raw"},
    "loss": {"perceptual_range": "unit"},
    "discriminator": {"image_range": "unit", "batch": "new"},
    "optimizer": {"ema_warmup": False},
}


def _as_the_authors(base: dict[str, Any]) -> dict[str, Any]:
    """A preset's sections, trained as the authors' code does."""
    found = {name: {**section, **AUTHORS.get(name, {})} for name, section in base.items()}
    for name, section in AUTHORS.items():
        found.setdefault(name, dict(section))
    kind = found["discriminator"].get("kind", "patchgan")
    if kind == "none":
        found["discriminator"] = dict(base["discriminator"])
    elif kind == "patchgan":
        found["discriminator"]["init"] = "kaiming"
    return found


def _one_gpu(image_size: int, channels: int, batch_size: int, micro_batch: int, steps: int = 100_000) -> dict[str, Any]:
    """A model for one GPU, trained as the authors train, on ImageNet at this size."""
    base = _paper_table(image_size, steps, batch_size, micro_batch)
    base["model"] = {"downsample": 4 if image_size == 64 else 8, "latent_dim": 16, "channels": channels}
    base["quantizer"] = {"groups": 4, "codebook_size": 1024}
    base["optimizer"] = {"learning_rate": 2e-4, "decay_everything": True}
    base["loss"] = {"perceptual": "lpips_vgg", "discriminator_start": steps // 5}
    return _as_the_authors(base | {"discriminator": {}})


PRESETS: dict[str, dict[str, Any]] = {
    "cpu-tiny": {
        "model": {"downsample": 4, "latent_dim": 16, "channels": 16, "blocks": 1, "norm_groups": 8},
        "quantizer": {"codebook_size": 256},
        "discriminator": {"channels": 16, "layers": 2, "norm_groups": 8},
        # A short run: pixels weigh more against the features than in the paper (with its weights some cells collapsed),
        # and the discriminator, which would only judge noise at first, joins halfway.
        "loss": {"mse_weight": 4.0, "discriminator_start": 150},
        "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.99},
        "train": {"steps": 300, "batch_size": 8},
        "data": {"image_size": 32, "max_crop": 2.0},
        # More images than the 320 features give their covariance full rank.
        "evaluation": {"num_images": 384},
        "execution": {"checkpoint_every": 50},
    },
    "cpu-small": {
        "model": {"downsample": 8, "latent_dim": 16, "channels": 32, "blocks": 1, "norm_groups": 8},
        "quantizer": {"codebook_size": 1024},
        "discriminator": {"channels": 32, "layers": 2, "norm_groups": 8},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 5_000, "batch_size": 8},
        "data": {"image_size": 64},
        "execution": {"checkpoint_every": 200},
    },
    "paper-f8": _paper(8, 16),
    "paper-f8-attention": _paper(8, 16, attention=True),
    "paper-f8-1244": _paper(8, 16, channel_multipliers=[1, 2, 4, 4]),
    "paper-f8-1244-attention": _paper(8, 16, channel_multipliers=[1, 2, 4, 4], attention=True),
    "paper-f16": _paper(16, 16),
    "paper-f16-12224": _paper(16, 16, channel_multipliers=[1, 2, 2, 2, 4]),
    "paper-f16-11244": _paper(16, 16, channel_multipliers=[1, 1, 2, 4, 4]),
    "paper-f16-12244-deeper": _paper(
        16,
        16,
        channel_multipliers=[1, 2, 2, 4, 4],
        encoder_blocks=[4, 3, 4, 3, 4, 4],
        decoder_blocks=[3, 4, 3, 4, 4, 4],
    ),
    "paper-f32": _paper(32, 32),
    "paper-vae-128": _paper_table(
        128,
        100_000,
        256,
        64,
        model={"latent_dim": 8},
        discriminator={"kind": "none"},
        optimizer={"learning_rate": 1e-4, "decay_everything": True},
    ),
    # The paper leaves the normalisation out here, for the sake of rFID at one group (appendix E).
    "paper-gan-128": _paper_table(
        128,
        80_000,
        256,
        32,
        model={"latent_dim": 8},
        quantizer={"lookup_norm": "none"},
        discriminator=DINO,
        optimizer={"learning_rate": 1e-4, "decay_everything": True},
    ),
    "paper-gan-256": _paper_table(
        256,
        50_000,
        512,
        16,
        model={"downsample": 8, "latent_dim": 16, "upsample": "depth_to_space"},
        quantizer={"codebook_size": 262144},
        discriminator=DINO,
        optimizer={"learning_rate": 2e-4, "decay_everything": True},
    ),
}

PRESETS |= {
    name.replace("paper-", "authors-"): _as_the_authors(PRESETS[name])
    for name in ("paper-f8", "paper-f16", "paper-f32", "paper-vae-128", "paper-gan-128", "paper-gan-256")
}
PRESETS |= {
    "gpu24-64": _one_gpu(64, 64, 128, 0),
    "gpu24-128": _one_gpu(128, 64, 128, 0),
    "gpu24-256": _one_gpu(256, 64, 128, 32),
    "gpu80-64": _one_gpu(64, 128, 256, 0),
    "gpu80-128": _one_gpu(128, 128, 256, 128),
    "gpu80-256": _one_gpu(256, 128, 256, 64),
}

# Parameters that the paper prints, in millions (GSQ, arXiv 2412.02632, fig. 3; results/reference). They are those of
# D = 64 with 4,194,304 codebook entries, to the last digit, though the rFID values beside them are those of D = 16
# (also in fig. 4); with D = 64, paper-f8-1244 has 98.64, so that its 96.64 is taken for a misprint.
PAPER_MILLIONS: dict[str, float] = {
    "paper-f8": 75.59,
    "paper-f8-attention": 77.70,
    "paper-f8-1244": 96.64,
    "paper-f8-1244-attention": 100.74,
    "paper-f16": 77.53,
    "paper-f16-12224": 83.30,
    "paper-f16-11244": 100.58,
    "paper-f16-12244-deeper": 166.26,
}


def _size_of(config: RunConfig) -> tuple[object, ...]:
    """What decides the number of parameters."""
    model = config.model
    resolved = replace(
        model,
        blocks=1,
        channel_multipliers=model.multipliers,
        encoder_blocks=model.encoder_depths,
        decoder_blocks=model.decoder_depths,
    )
    return resolved, config.codebook_parameters


@cache
def _paper_sizes() -> dict[tuple[object, ...], float]:
    return {_size_of(preset(name)): millions for name, millions in PAPER_MILLIONS.items()}


def paper_parameters(config: RunConfig) -> float | None:
    """The paper's parameter count for a config of this model and codebook size, or None if it prints none."""
    millions = _paper_sizes().get(_size_of(config))
    return None if millions is None else millions * 1e6


def preset(name: str) -> RunConfig:
    """The preset's config. Raises UserError, listing the presets, for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"base: no preset '{name}'{nearest(name, PRESETS)}; presets are {', '.join(PRESETS)}")
    return load_config(PRESETS[name], where=f"preset {name}")
