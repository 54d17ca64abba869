"""Products of float32 in full precision, whatever a user has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def is_full(device: torch.device) -> bool:
    """Whether float32 products have full precision already; False where finding out costs as much as setting it."""
    products = _products(device)
    return not torch.is_autocast_enabled(device.type) and getattr(products, "fp32_precision", "") in {"none", "ieee"}


def _products(device: torch.device) -> Any:
    """Torch's settings of float32 products."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return getattr(backend, "matmul", None)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32, since the bounds of the look-up do not cover TF32 and bfloat16."""
    products = _products(device)
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
