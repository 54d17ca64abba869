"""Memory that this process can still take."""

from __future__ import annotations

import ctypes
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Parameters of glibc's mallopt, and the values at which glibc arrives by itself once it has freed a block of 32 MiB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BY_ITSELF = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_LARGE_BLOCK = 1 << 20


@contextmanager
def without_gaps() -> Iterator[None]:
    """Give every large block back to the system as soon as it is freed, so that a peak is that of the tensors alone.

    glibc keeps freed blocks of up to 32 MiB in its heap. The gaps between them took up to 40 % of a large image's
    memory, and a different share in every process (1.5 megapixels: 411 MB without gaps, 418 to 563 MB with them). Does
    nothing on other C libraries.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, _LARGE_BLOCK)
    try:
        yield
    finally:
        for option, value in _BY_ITSELF.items():
            set_option(option, value)


def available_bytes(device: torch.device | None = None) -> int:
    """Memory [bytes] that can be taken on the device, or on this machine: the least of free memory and the limits of
    the job (control groups) and of the process (ulimit -v)."""
    if device is not None and device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min((2**62, *_limits()))


def _limits() -> Iterator[int]:
    if found := re.search(r"MemAvailable:\s+(\d+) kB", _text(Path("/proc/meminfo"))):
        yield int(found[1]) * 1024
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = _text(Path("/proc/self/statm")).split()
    if soft != resource.RLIM_INFINITY and taken:
        yield max(0, soft - int(taken[0]) * resource.getpagesize())
    yield from _control_groups(_text(Path("/proc/self/cgroup")), Path("/sys/fs/cgroup"))


def _control_groups(own: str, mounted: Path) -> Iterator[int]:
    """Memory that the limits of this process's control groups (v1 and v2) leave. own: text of /proc/self/cgroup."""
    for line in own.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            top, names = mounted, ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            top = mounted / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        folder = top / path.lstrip("/")
        # The limits of parent groups apply too. In a container the path can be one of the host.
        for group in (folder, *folder.parents):
            limit, used = (_text(group / name).strip() for name in names[:2])
            if limit.isdigit() and used.isdigit():
                # The kernel drops cached files when memory is needed.
                cached = re.findall(
                    rf"^{names[2]}(?:in)?active_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE
                )
                yield max(0, int(limit) - int(used) + sum(map(int, cached)))
            if group == top:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
