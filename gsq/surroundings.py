"""What the environment of a process says about its peers and its GPUs; without torch.

torchrun, some containers and interactive jobs leave such variables in a shell, where they describe another process
than the one that is started there.
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
# As CUDA's programming guide has it: an index, or the start of a UUID of a GPU or of one of its instances.
_DEVICE = re.compile(r"\d+|(?:GPU|MIG)-[\w/-]+")


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what would make a process wait for peers."""
    return {k: v for k, v in environment.items() if k not in GROUP_VARIABLES and not k.startswith(_GROUP_PREFIX)}


def forget_group() -> None:
    """Remove from this process's environment what would make it wait for peers."""
    for name in os.environ.keys() - alone(os.environ).keys():
        del os.environ[name]


def world_size() -> int:
    """How many processes share this run, by WORLD_SIZE; 1 where it is not set.

    Raises UserError where it is set, but not as torchrun sets it.
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
    """Number of this process on its machine, which chooses its GPU; 0 for a run of one process."""
    text = os.environ.get("LOCAL_RANK", "0")
    return int(text) if world_size() > 1 and text.isdigit() else 0


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names, as CUDA reads it: the entries before the first that names none
    (-1, NoDevFiles, none). None where the variable is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    found: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if not _DEVICE.fullmatch(entry) or entry in found:
            break
        found.append(entry)
    return found
