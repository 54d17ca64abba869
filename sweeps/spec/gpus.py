"""The GPUs that estimates know by name: speed and memory, as their makers state them."""

from __future__ import annotations

# FLOP/s of dense matrix products in bfloat16 (v100, t4, rtx2080ti: float16).
GPU_PEAKS = {
    "t4": 65e12,
    "rtx2080ti": 54e12,
    "v100": 125e12,
    "rtx3090": 71e12,
    "a10": 125e12,
    "a40": 150e12,
    "a100": 312e12,
    "rtx4090": 165e12,
    "l40s": 362e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "mi250x": 383e12,
    "mi300x": 1307e12,
}
# Of those that are sold with several sizes the larger.
GPU_MEMORY_GB = {
    "t4": 16,
    "rtx2080ti": 11,
    "v100": 32,
    "rtx3090": 24,
    "a10": 24,
    "a40": 48,
    "a100": 80,
    "rtx4090": 24,
    "l40s": 48,
    "h100": 80,
    "h200": 141,
    "b200": 180,
    "mi250x": 128,
    "mi300x": 192,
}
DEFAULT_GPU = "a100"
