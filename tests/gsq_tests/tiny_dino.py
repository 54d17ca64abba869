"""A narrow DINOv2 with registers of random weights, in place of the published one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from extras import extra
from safetensors.torch import save_file
from torch import Tensor

from gsq.pretrained.features import DINOv2
from gsq.pretrained.weights import REGISTRY, file_sha256, verified_weights

WIDTH = 12
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def dino_state() -> dict[str, Tensor]:
    """Weights by the names of the published file; those of fixtures/discriminators.npz."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.mask_token": (1, WIDTH),
        "embeddings.register_tokens": (1, 4, WIDTH),
        "embeddings.position_embeddings": (1, 5, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
    }
    attention = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    for i in range(12):
        block = f"encoder.layer.{i}"
        linear = dict.fromkeys((*attention, "attention.output.dense"), (WIDTH, WIDTH))
        for name, shape in (linear | {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}).items():
            shapes[f"{block}.{name}.weight"] = shape
            shapes[f"{block}.{name}.bias"] = shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"{block}.{name}"] = (WIDTH,)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[f"{block}.{name}"] = (WIDTH,)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (0.5 if len(shape) == 1 else 0.3)
        for name, shape in shapes.items()
    }


def dino_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor] | None = None) -> Path:
    """Makes ``folder`` the one of weights, with such a file in it; skips the test without the transformers library."""
    extra("transformers")
    path = folder / REGISTRY["dinov2_vits14_reg"].file
    path.parent.mkdir(exist_ok=True)
    save_file(dino_state() if state is None else state, path, metadata={"format": "pt"})
    monkeypatch.setenv("GSQ_WEIGHTS", str(folder))
    monkeypatch.setattr(DINOv2, "SIZES", SIZES)
    for cached in (verified_weights, file_sha256):
        cached.cache_clear()
    return path
