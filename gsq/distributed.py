"""One run over several processes that share each batch, as torchrun or a SLURM job starts them.

Every process holds the whole model and takes its slice of the global batch; gradients, and whatever else is a sum
over the batch, are summed over the processes. Gradients are summed after the backward pass rather than by
DistributedDataParallel's hooks: a process whose step fails can then say so, where hooks would leave the others
waiting, and passes that differ in their graph (accumulation, adaptive weight, gradient penalty) need no care.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from gsq.config import RunConfig, check_processes
from gsq.errors import UserError
from gsq.record import FAILURES

# Elements of gradient summed in one call.
BUCKET = 1 << 24
TIMEOUT = timedelta(hours=4)


@dataclass(frozen=True)
class Group:
    """The processes of a run. ``Group()`` is a process on its own, for which every sum is what it is."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.rank == 0

    def sum_(self, values: Tensor) -> None:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of the same parameters over the processes, in place."""
        if self.size == 1:
            return
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
        torch.distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(g) for part, g in zip(parts, bucket, strict=True)])

    def from_first(self, value: Any) -> Any:
        """What the first process passes, on every process."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def to_first(self, value: Any) -> list[Any] | None:
        """What every process passes, in their order, on the first process; None on the others."""
        if self.size == 1:
            return [value]
        box: list[Any] | None = [None] * self.size if self.first else None
        torch.distributed.gather_object(value, box, dst=0)
        return box

    def all_to_all(self, value: Any) -> list[Any]:
        """What every process passes, in their order, on every process."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(box, value)
        return box

    def agree(self, reason: str | None) -> str | None:
        """A reason to stop that any of the processes has, on every process."""
        if self.size == 1:
            return reason
        names = ("", *FAILURES)
        flag = torch.tensor(names.index(reason or ""), device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return names[int(flag)] or None

    def images(self, batch_size: int) -> range:
        """Numbers of this process's images of a global batch."""
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)


def join(config: RunConfig) -> Group:
    """The group that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, as torchrun
    sets them), joined; a process on its own where it describes none.

    Raises UserError where the run cannot be shared by so many processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Group()
    check_processes(config, size)
    device = pick_device(config.execution.device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Group(int(os.environ["RANK"]), size, device)


def leave(together: bool = True) -> None:
    """End the group, if there is one. together: once all its processes are here; not where one may have failed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if together:
            torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        # Threads of Gloo that outlive the interpreter can abort it, and cycles of references keep them alive.
        gc.collect()


def pick_device(name: str) -> torch.device:
    """The device that ``execution.device`` names; with several processes a machine, each its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device: 'cuda' is not available here; use auto or cpu, or a machine with a GPU")
    if name == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device(name)
