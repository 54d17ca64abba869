"""A small quantizer of every kind."""

from __future__ import annotations

from typing import Any

import torch
from tiny_run import tiny
from torch import Tensor

from gsq.quantizers import (
    Quantizer,
    build_quantizer,
)

# Overrides of the tiny run (D = 4, G = 2, V = 32), by name of the case.
KINDS: dict[str, dict[str, Any]] = {
    "gsq": {},
    "gsq_one_dimension": {"groups": 4},
    "gsq_raw": {"quantizer.decoder_input": "raw", "quantizer.loss_row": "raw"},
    "gsq_l1": {"quantizer.lookup_norm": "l1"},
    "gsq_none": {"quantizer.lookup_norm": "none", "quantizer.init": "uniform"},
    "gsq_clip": {"quantizer.lookup_norm": "clip"},
    "gsq_clip_raw": {"groups": 4, "quantizer.lookup_norm": "clip", "quantizer.decoder_input": "raw"},
    "gsq_float32": {"quantizer.lookup_precision": "float32"},
    "gsq_bfloat16": {"quantizer.lookup_precision": "bfloat16"},
    "gsq_ema": {"quantizer.codebook_update": "ema"},
    "gsq_clip_ema": {"quantizer.codebook_update": "ema", "quantizer.lookup_norm": "clip"},
    "vq": {"quantizer.kind": "vq", "groups": 1},
    "vq_ema": {"quantizer.kind": "vq", "groups": 1, "quantizer.codebook_update": "ema"},
    "rvq": {"quantizer.kind": "rvq", "groups": 1, "quantizer.depth": 3, "codebook_size": 8},
    "rvq_ema": {
        "quantizer.kind": "rvq",
        "groups": 1,
        "quantizer.depth": 3,
        "codebook_size": 8,
        "quantizer.codebook_update": "ema",
    },
    "fsq": {"quantizer.kind": "fsq", "groups": 4, "codebook_size": 7},
    "fsq_levels": {"quantizer.kind": "fsq", "groups": 4, "codebook_size": 8, "quantizer.levels": (8, 5, 3, 6)},
    "lfq": {"quantizer.kind": "lfq", "groups": 4, "codebook_size": 2},
    "lfq_entropy": {"quantizer.kind": "lfq", "groups": 4, "codebook_size": 2, "quantizer.entropy_weight": 0.1},
    "bsq": {"quantizer.kind": "bsq", "groups": 4, "codebook_size": 2},
    "bsq_entropy": {"quantizer.kind": "bsq", "groups": 4, "codebook_size": 2, "quantizer.entropy_weight": 0.1},
    "gsq_rotation": {"quantizer.gradient": "rotation"},
    "gsq_soft": {"quantizer.gradient": "soft", "quantizer.soft_temperature": 0.3, "quantizer.soft_decay": 0.999},
    "gsq_per_group": {"quantizer.codebooks": "per_group"},
    "gsq_per_group_soft": {"quantizer.codebooks": "per_group", "quantizer.gradient": "soft"},
    "gsq_per_group_ema": {"quantizer.codebooks": "per_group", "quantizer.codebook_update": "ema"},
    "gsq_restart": {"quantizer.restart_below": 0.5, "quantizer.codebook_decay": 0.9},
    "gsq_per_group_restart_ema": {
        "quantizer.codebooks": "per_group",
        "quantizer.codebook_update": "ema",
        "quantizer.restart_below": 0.5,
        "quantizer.codebook_decay": 0.9,
    },
    "vq_kmeans": {"quantizer.kind": "vq", "groups": 1, "quantizer.kmeans_steps": 3},
    "vq_rotation": {"quantizer.kind": "vq", "groups": 1, "quantizer.gradient": "rotation"},
    "vq_kmeans_restart_ema": {
        "quantizer.kind": "vq",
        "groups": 1,
        "quantizer.codebook_update": "ema",
        "quantizer.kmeans_steps": 2,
        "quantizer.restart_below": 0.2,
    },
    "rvq_restart": {
        "quantizer.kind": "rvq",
        "groups": 1,
        "quantizer.depth": 3,
        "codebook_size": 8,
        "quantizer.kmeans_steps": 1,
        "quantizer.restart_below": 0.5,
        "quantizer.gradient": "rotation",
    },
    "rvq_soft": {
        "quantizer.kind": "rvq",
        "groups": 1,
        "quantizer.depth": 3,
        "codebook_size": 8,
        "quantizer.gradient": "soft",
        "quantizer.soft_temperature": 0.1,
    },
    "simvq": {"quantizer.kind": "simvq"},
    "simvq_rotation": {"quantizer.kind": "simvq", "groups": 1, "quantizer.gradient": "rotation"},
    "simvq_per_group": {"quantizer.kind": "simvq", "quantizer.codebooks": "per_group"},
    "ibq": {"quantizer.kind": "ibq", "groups": 1, "quantizer.entropy_weight": 0.05},
    "ibq_restart": {
        "quantizer.kind": "ibq",
        "quantizer.codebooks": "per_group",
        "quantizer.entropy_weight": 0.1,
        "quantizer.restart_below": 0.5,
    },
    "diveq": {"quantizer.kind": "diveq", "quantizer.restart_below": 0.5, "quantizer.kmeans_steps": 1},
    "diveq_per_group": {"quantizer.kind": "diveq", "quantizer.codebooks": "per_group"},
}
# Cases whose codebook ``update_codebook`` changes.
FOLLOWING = [name for name in KINDS if name.endswith("ema") or "restart" in name or "kmeans" in name or name == "diveq"]


def build(name: str, **changes: Any) -> Quantizer:
    torch.manual_seed(0)
    return build_quantizer(tiny(**KINDS[name], **changes))


def latent(seed: int = 1, batch: int = 2, scale: float = 1.0) -> Tensor:
    return torch.randn(batch, 4, 3, 5, generator=torch.Generator().manual_seed(seed)) * scale


def set_rows(q: Any, rows: Tensor) -> None:
    with torch.no_grad():
        q.codebook.copy_(rows)
        if q.average is not None:
            q.average.sums.copy_(rows)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
