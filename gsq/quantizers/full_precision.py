"""Products of float32 in full precision, whatever a user has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32, since the bounds of the look-up do not cover TF32 and bfloat16."""
    name = "cuda" if device.type == "cuda" else "mkldnn"
    products: Any = getattr(getattr(torch.backends, name), "matmul", None)
    # torch 2.9 has a setting per backend; reading the old setting fails once a user has set the new one.
    by_backend = hasattr(products, "fp32_precision")
    before = products.fp32_precision if by_backend else torch.get_float32_matmul_precision()
    try:
        if by_backend:
            products.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if by_backend:
            products.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)
