"""Peers and GPUs of a process, as its environment variables describe them. Imports no torch.

torchrun, some containers and interactive jobs leave such variables in a shell, where they describe a process other
than the one started there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from gsq.errors import UserError

# Set by torchrun for each of its processes, and read by torch.distributed.
GROUP_VARIABLES = (
    *("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
)
_GROUP_PREFIX = "TORCHELASTIC_"
# CUDA's programming guide allows an index, or the start of the UUID of a GPU or of a GPU instance.
_DEVICE = re.compile(r"\d+|(?:GPU|MIG)-[\w/-]+")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that would make a process wait for peers."""
    return {k: v for k, v in environment.items() if k not in GROUP_VARIABLES and not k.startswith(_GROUP_PREFIX)}


def forget_group() -> None:
    """Remove from this process's environment the variables that would make it wait for peers."""
    for name in os.environ.keys() - alone(os.environ).keys():
        del os.environ[name]


def world_size() -> int:
    """Number of processes that share this run, from WORLD_SIZE; 1 if that is not set.

    Raises UserError if it is set, but not the way torchrun sets it.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"WORLD_SIZE={text} in the environment is not a number of processes; unset it, or use torchrun")
    size = int(text)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if size > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={size} in the environment says that {size} processes share this run, but {', '.join(missing)} "
            f"is not set. For a run of one process: unset WORLD_SIZE. For {size}: torchrun --nproc-per-node {size} -m "
            "gsq.cli train ..."
        )
    return size


def local_rank() -> int:
    """Number of this process on its machine, which selects its GPU; 0 for a run of one process."""
    text = os.environ.get("LOCAL_RANK", "0")
    return int(text) if world_size() > 1 and text.isdigit() else 0


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names, as CUDA reads it: the entries before the first that names no GPU
    (-1, NoDevFiles, none). None if the variable is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    found: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if not _DEVICE.fullmatch(entry) or entry in found:
            break
        found.append(entry)
    return found
