"""What decoded images take on disk and in memory, as plans say it. Imports no library for images."""

from __future__ import annotations

from pathlib import Path

from gsq.config.run import ExecutionConfig
from gsq.data.manifest import Manifest
from gsq.files import cache_folder

# Decoded data sets below SMALL_BYTES are quickly decoded again, and small enough for each process to keep.
SMALL_BYTES = 64 << 20
# Mapped bytes that a process looks at before it lets go of them; they stay in the system's page cache.
MAPPED_BYTES = 64 << 20


def images_folder() -> Path:
    """Folder of decoded images, below $GSQ_CACHE (default ~/.cache/gsq)."""
    return cache_folder() / "images"


def wanted_bytes(files: Manifest) -> int:
    """Bytes that a data set's decoded images take on disk; 0 if they are not to be kept there."""
    total = files.total_bytes
    return total if total >= SMALL_BYTES and files.load is None else 0


def disk_note(total: int, execution: ExecutionConfig) -> str:
    """Say where decoded images of ``total`` bytes are kept, for a plan; "" if they are few."""
    if total < SMALL_BYTES:
        return ""
    limit, size = execution.image_cache_gb, f"{total / 1e9:.2g} GB"
    if total > limit_bytes(execution):
        return f"decoded they take {size}, but execution.image_cache_gb allows {limit:g}, so processes decode them anew"
    return (
        f"decoded they take {size} below {execution.stage_data or images_folder()}, once for all processes "
        f"of a machine (execution.image_cache_gb allows {limit:g})"
    )


def limit_bytes(execution: ExecutionConfig) -> int:
    """execution.image_cache_gb in bytes."""
    return round(execution.image_cache_gb * 1e9)


def memory_bytes(files: Manifest, execution: ExecutionConfig) -> int:
    """Largest memory [bytes] that decoded images take in a run; 0 if the images' sizes are not known."""
    if 0 < wanted_bytes(files) <= limit_bytes(execution):
        return min(files.total_bytes, MAPPED_BYTES)
    return files.decoded_bytes(execution.data_workers)
