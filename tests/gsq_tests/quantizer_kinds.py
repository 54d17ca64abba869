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
}


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
