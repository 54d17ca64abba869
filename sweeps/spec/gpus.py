"""The GPUs that estimates know by name, with the speed and memory that their makers state."""

from __future__ import annotations

# FLOP/s of dense bfloat16 matrix products (v100, t4, rtx2080ti: float16), and memory in GB. For a GPU that is sold in
# several sizes this is the larger.
_GPUS = {
    "t4": (65e12, 16),
    "rtx2080ti": (54e12, 11),
    "v100": (125e12, 32),
    "rtx3090": (71e12, 24),
    "a10": (125e12, 24),
    "a40": (150e12, 48),
    "a100": (312e12, 80),
    "rtx4090": (165e12, 24),
    "l40s": (362e12, 48),
    "h100": (989e12, 80),
    "h200": (989e12, 141),
    "b200": (2250e12, 180),
    "mi250x": (383e12, 128),
    "mi300x": (1307e12, 192),
}
GPU_PEAKS = {name: peak for name, (peak, _) in _GPUS.items()}
GPU_MEMORY_GB = {name: memory for name, (_, memory) in _GPUS.items()}
DEFAULT_GPU = "a100"
