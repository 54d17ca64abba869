"""Named starting points for ``base:`` in a sweep and for ``gsq train``.

| preset    | image | f  | D  | width | blocks | batch | steps  | lr   | perceptual         | discriminator  |
|-----------|-------|----|----|-------|--------|-------|--------|------|--------------------|----------------|
| cpu-tiny  | 32    | 4  | 16 | 16    | 1      | 8     | 300    | 1e-3 | efficientnet_lite0 | patchgan 16, 2 |
| cpu-small | 64    | 8  | 16 | 32    | 1      | 8     | 5,000  | 1e-3 | efficientnet_lite0 | patchgan 32, 2 |
| paper-f8  | 256   | 8  | 16 | 128   | 2      | 512   | 50,000 | 2e-4 | lpips_vgg          | patchgan 64, 3 |
| paper-f16 | 256   | 16 | 16 | 128   | 2      | 512   | 50,000 | 2e-4 | lpips_vgg          | patchgan 64, 3 |
| paper-f32 | 256   | 32 | 32 | 128   | 2      | 512   | 50,000 | 2e-4 | lpips_vgg          | patchgan 64, 3 |

The paper's scaling runs use a DINO discriminator; these presets take PatchGAN, the paper's other choice, until
that one is here.
"""

from __future__ import annotations

from typing import Any

from gsq.config import RunConfig
from gsq.errors import UserError, nearest
from gsq.loading import load_config


def _paper(downsample: int, latent_dim: int) -> dict[str, Any]:
    return {
        # The paper's parameter counts fit this upsampling.
        "model": {"downsample": downsample, "latent_dim": latent_dim, "upsample": "depth_to_space"},
        "quantizer": {"codebook_size": 262144},
        "loss": {"perceptual": "lpips_vgg"},
        "optimizer": {"learning_rate": 2e-4, "decay_everything": True},
        "train": {"steps": 50_000, "batch_size": 512, "precision": "bfloat16"},
        "data": {"kind": "photos", "image_size": 256},
        "evaluation": {"num_images": 50_000, "batch_size": 32},
    }


PRESETS: dict[str, dict[str, Any]] = {
    "cpu-tiny": {
        "model": {"downsample": 4, "latent_dim": 16, "channels": 16, "blocks": 1, "norm_groups": 8},
        "quantizer": {"codebook_size": 256},
        "discriminator": {"channels": 16, "layers": 2, "norm_groups": 8},
        # For so few steps: pixels weigh more against the features than in the paper (with its weights some cells
        # collapsed), and the discriminator, which would judge noise at first, joins halfway.
        "loss": {"mse_weight": 4.0, "discriminator_start": 150},
        "optimizer": {"learning_rate": 1e-3, "ema_decay": 0.99},
        "train": {"steps": 300, "batch_size": 8},
        "data": {"image_size": 32, "max_crop": 2.0},
        # More than the 320 features, so that their covariance has full rank.
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
    "paper-f16": _paper(16, 16),
    "paper-f32": _paper(32, 32),
}


def preset(name: str) -> RunConfig:
    """The preset's config. Raises UserError, listing the presets, for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"base: no preset '{name}'{nearest(name, PRESETS)}; presets are {', '.join(PRESETS)}")
    return load_config(PRESETS[name], where=f"preset {name}")
