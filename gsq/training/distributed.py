"""One run over several processes that share each batch, as torchrun or a SLURM job starts them.

Every process holds the whole model and takes its slice of the global batch; gradients and other sums over the batch are
summed over the processes. That happens after the backward pass rather than in DistributedDataParallel's hooks, so a
process whose step fails can tell the others, and passes with different graphs (accumulation, adaptive weight, gradient
penalty) need no care.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from gsq.config.run import RunConfig, check_processes
from gsq.errors import UserError
from gsq.records.attempt import FAILURES
from gsq.surroundings import local_rank, world_size

# Elements of gradient summed in one call.
BUCKET = 1 << 24
# Time for which a process waits for the others, which step together; evaluations and checkpoints take minutes at most.
# Copying images to each node's disk can take longer, and has its own limit.
TIMEOUT = timedelta(minutes=20)
STAGING_TIMEOUT = timedelta(hours=12)
# A process then says whom it is waiting for.
SILENT_SECONDS = 10.0


class PeerLost(Exception):
    """Another process of the run has failed or was killed: the connection broke, or timed out after TIMEOUT."""


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PeerLost(lines[0]) from error


@dataclass(frozen=True)
class Group:
    """The processes of a run. ``Group()`` is a single process, for which sums change nothing."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def sum_(self, values: Tensor) -> None:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            with _talking():
                torch.distributed.all_reduce(values)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of the same parameters over the processes, in place."""
        if self.size == 1:
            return
        parameters = list(parameters)
        bucket: list[Tensor] = []
        waiting = 0
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
            bucket.append(gradient)
            waiting += gradient.numel()
            if waiting >= BUCKET:
                self._sum_bucket(bucket)
                bucket, waiting = [], 0
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: list[Tensor]) -> None:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        with _talking():
            torch.distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])

    def from_first(self, value: Any) -> Any:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        with _talking():
            torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def to_first(self, value: Any) -> list[Any] | None:
        """All processes' values in order, on the first process; None on the others."""
        if self.size == 1:
            return [value]
        box: list[Any] | None = [None] * self.size if self.first else None
        with _talking():
            torch.distributed.gather_object(value, box, dst=0)
        return box

    def all_to_all(self, value: Any) -> list[Any]:
        """All processes' values in order, on every process."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        with _talking():
            torch.distributed.all_gather_object(box, value)
        return box

    def agree(self, reason: str | None) -> str | None:
        """A reason to stop from any of the processes, on every process."""
        if self.size == 1:
            return reason
        names = ("", *FAILURES)
        flag = torch.tensor(names.index(reason or ""), device=self.device)
        with _talking():
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return names[int(flag)] or None

    def meeting(self) -> Callable[[Callable[[], None]], None]:
        """Agree to meet again after work of up to STAGING_TIMEOUT.

        Returns a function that waits for the other processes; it calls its argument meanwhile, which can raise.
        """
        if self.size == 1:
            return lambda tick: None
        with _talking():
            patient = torch.distributed.new_group(backend="gloo", timeout=STAGING_TIMEOUT)

        def wait(tick: Callable[[], None]) -> None:
            with _talking():
                work = torch.distributed.barrier(patient, async_op=True)
            while not work.is_completed():
                tick()
                time.sleep(0.1)
            with _talking():
                work.wait()
                torch.distributed.destroy_process_group(patient)

        return wait

    def images(self, batch_size: int) -> range:
        """Numbers of this process's images in a global batch."""
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)


def join(config: RunConfig, tick: Callable[[], None] = lambda: None) -> Group:
    """Join the group that torchrun's variables describe (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT);
    without them, a group of one.

    tick is called while this process waits for the others, and can raise. Raises UserError if the processes cannot
    share the run, if variables are missing, or if the others do not come within TIMEOUT.
    """
    size = world_size()
    if size == 1:
        return Group()
    check_processes(config, size)
    device = pick_device(config.execution.device, local_rank())
    if not torch.distributed.is_initialized():
        _connect("nccl" if device.type == "cuda" else "gloo", size, tick)
    return Group(int(os.environ["RANK"]), size, device)


def _connect(backend: str, size: int, tick: Callable[[], None]) -> None:
    """Connect in a thread, so that this process still reacts to signals while it waits for the others."""
    failed: list[Exception] = []

    def connect() -> None:
        try:
            torch.distributed.init_process_group(backend, timeout=TIMEOUT)
        except Exception as error:  # RuntimeError of several kinds, ValueError
            failed.append(error)

    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    advice = "for a run of one process: unset WORLD_SIZE RANK MASTER_ADDR MASTER_PORT"
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    told, deadline = False, time.monotonic() + SILENT_SECONDS
    while thread.is_alive():
        thread.join(0.1)
        tick()
        if not told and time.monotonic() > deadline:
            told = True
            print(
                f"waiting at {where} for the other processes of WORLD_SIZE={size}; {advice}",
                file=sys.stderr,
                flush=True,
            )
    if failed:
        lines = str(failed[0]).strip().splitlines() or [type(failed[0]).__name__]
        raise UserError(
            f"WORLD_SIZE={size}: the processes of this run did not find each other at {where}: {lines[0]} ({advice})"
        )


def leave(together: bool = True) -> None:
    """End the group, if there is one. together: wait for all its processes first; false if one may have failed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if together:
            # A process that has gone already has finished its work.
            with suppress(RuntimeError):
                torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # Cycles of references keep threads of Gloo alive, which abort an interpreter that they outlive.
        gc.collect()


def pick_device(name: str, local: int = 0) -> torch.device:
    """The device that ``execution.device`` names. local: number of this process among those of the run on its machine,
    which selects its GPU. Raises UserError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device: 'cuda' is not available here; use auto or cpu, or a machine with a GPU")
    if name == "cuda":
        local %= torch.cuda.device_count()
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device(name)
