"""Failure classes of exceptions, and the smaller micro-batch after running out of memory."""

from __future__ import annotations

import errno
import resource
from dataclasses import replace

from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.runs.stop import PeerFailed, Stopped


def classify(error: BaseException) -> str:
    """Failure class of an exception that ended a run."""
    from gsq.evaluation.evaluate import NonFiniteReconstruction
    from gsq.quantizers import NonFiniteLatent
    from gsq.training.trainer import Diverged

    text = str(error)
    if isinstance(error, Stopped | PeerFailed):
        return error.reason
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out_of_memory"
    if isinstance(error, Diverged | NonFiniteLatent | NonFiniteReconstruction | FloatingPointError):
        return "diverged"
    # safetensors wraps the system's error in one of its own.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC})" in text):
        return "disk_full"
    if isinstance(error, KeyboardInterrupt):
        return "cancelled"
    return "error"


def peak_memory_bytes(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def with_micro_batch(config: RunConfig, micro_batch: int) -> RunConfig:
    return replace(config, execution=replace(config.execution, micro_batch=micro_batch))


def smaller_micro_batch(config: RunConfig, processes: int) -> int | None:
    """The largest divisor of a process's share up to half of a pass's images; None if there is none."""
    share = config.train.batch_size // processes
    now = config.execution.micro_batch or share
    smaller = next((n for n in range(now // 2, 0, -1) if share % n == 0), None)
    if smaller is None:
        return None
    try:
        with_micro_batch(config, smaller)
    except UserError:
        # The batch must stay whole.
        return None
    return smaller
