"""What a cluster file says of containers and trackers, besides the keys that sbatch knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gsq.errors import UserError, choose, nearest

RUNTIMES = ("apptainer", "pyxis")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class Container:
    """The image in which jobs run, and the folders that they see there."""

    image: str
    """A file (.sif, .sqsh), or an image of a registry (docker://... for apptainer, USER/NAME:TAG for pyxis)."""
    runtime: str = "apptainer"
    """apptainer, or pyxis (srun's option --container-image, with enroot)."""
    binds: tuple[str, ...] = ()
    """Folders of the node to see inside: /data, or /data:/inside. The runs folder and the images of the sweep are
    there already."""
    python: str = "python3"
    """The Python of the image that has gsq's packages."""

    def __post_init__(self) -> None:
        choose("container.runtime", self.runtime, RUNTIMES)
        for key, value in (("image", self.image), ("python", self.python)):
            if not value or "\n" in value:
                raise UserError(f"container.{key}: {value!r} is empty or has several lines; name one")
        for bind in self.binds:
            if not bind.startswith(("/", "~", "$")) or "," in bind or "\n" in bind:
                raise UserError(
                    f"container.binds: {bind!r} is not an absolute folder of the node; write /data or /data:/inside"
                )
        if self.is_file and "$" not in self.image and not os.path.exists(os.path.expanduser(self.image)):
            hint = "; an image of a registry begins with docker://" if self.runtime == "apptainer" else ""
            raise UserError(f"container.image: there is no file {self.image}{hint}")

    @property
    def is_file(self) -> bool:
        return "://" not in self.image if self.runtime == "apptainer" else self.image.startswith(("/", "~", "$", "."))


@dataclass(frozen=True)
class Tracking:
    """Where ``gsq run`` sends the runs when it is done (gsq track)."""

    to: str
    """tensorboard, wandb, mlflow or trackio."""
    at: str = ""
    """Folder or address; empty for the usual one."""
    project: str = ""
    """What the tracker calls the sweep; empty for its name."""

    def __post_init__(self) -> None:
        choose("tracker.to", self.to, TRACKERS)


def read_section(key: str, cls: type[Any], value: Any) -> Any:
    """Read a section of a cluster file; one text stands for its first key. Raises UserError for anything else."""
    names = [one.name for one in fields(cls)]
    if value in (None, "", {}):
        return None
    if isinstance(value, str):
        value = {names[0]: value}
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: {value!r} is neither a text ({names[0]}) nor a mapping of {', '.join(names)}")
    for name in value:
        if name not in names:
            raise UserError(f"{key}: unknown key '{name}'{nearest(str(name), names)}; keys are {', '.join(names)}")
    if names[0] not in value:
        raise UserError(f"{key}: {names[0]} is missing")
    read = {}
    for name, one in value.items():
        if name == "binds":
            one = tuple([one] if isinstance(one, str) else one) if isinstance(one, str | list) else one
            if not isinstance(one, tuple) or not all(isinstance(part, str) for part in one):
                raise UserError(f"{key}.binds: {value[name]!r} is not a list of folders")
        elif not isinstance(one, str):
            raise UserError(f"{key}.{name}: {one!r} is not a text")
        read[name] = one
    return cls(**read)
