"""Failure classes of exceptions, and the smaller micro-batch after running out of memory."""

from __future__ import annotations

import errno
import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace

from gsq.config.run import RunConfig
from gsq.errors import UserError
from gsq.files import write_text
from gsq.records.attempt import FAILED, Attempt
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


def described(error: BaseException) -> str:
    """The last line of an exception's message, after its type unless another process named that."""
    lines = str(error).strip().splitlines()
    if isinstance(error, PeerFailed) and lines:
        return lines[-1]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def record_failure(error: BaseException, attempt: Attempt, step: int, write: Callable[..., None]) -> None:
    """Record why a run ended. write: writes its status, with the failure class and a message."""
    failure = classify(error)
    message = f"stopped as asked after step {step}" if isinstance(error, Stopped) else described(error)
    try:
        if not isinstance(error, Stopped | PeerFailed | UserError | KeyboardInterrupt):
            write_text(attempt.path / "traceback.txt", traceback.format_exc())
        write(FAILED, failure=failure, message=message)
    except OSError as second:
        # The disk is too full even for this; the stale heartbeat will show the failure.
        print(f"could not record the failure ({failure}: {message}): {second}", file=sys.stderr)


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
