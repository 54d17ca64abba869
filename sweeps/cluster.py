"""Cluster files: where jobs go and what they ask for, apart from the sweep."""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from gsq.errors import UserError, choose, nearest, positive
from gsq.loading import read_yaml
from sweeps.cost import ResourceExpression
from sweeps.gpus import DEFAULT_GPU, GPU_PEAKS
from sweeps.reconcile import RESUME, WHO, resumed_classes
from sweeps.shipped import configs_folder, find_file

# Options of sbatch that gsq sets, and the key that does it where there is one.
SBATCH_KEYS = {
    **{key: key for key in ("partition", "account", "qos", "constraint", "dependency", "nodes")},
    "mem": "memory_gb",
    "time": "minutes",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "ntasks-per-node": "processes",
    "array": "parallel",
    **dict.fromkeys(("job-name", "output", "error", "open-mode", "signal", "wckey"), ""),
}


# Keys that may be an expression of the cell's estimate.
EXPRESSIONS = ("memory_gb", "minutes")


@dataclass(frozen=True)
class Cluster:
    """One destination. ``Cluster()`` is this machine's queue."""

    kind: str = "local"
    """local (a queue on this machine) or slurm (through submitit)."""
    workers: int = 0
    """local: runs at the same time; 0 for one a GPU, or one a core."""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    dependency: str = ""
    """What the jobs wait for, as sbatch knows it (afterok:1234)."""
    nodes: int = 1
    """Nodes a job."""
    gpus: int = 0
    """GPUs a node."""
    gpu: str = DEFAULT_GPU
    """Which GPU it is (a100, h100, ...), for estimates until runs have been measured."""
    processes: int = 0
    """Processes a node, which share each batch of a run; 0 for one a GPU."""
    cells_per_job: int = 1
    """Runs that share one job, each with its part of the node's GPUs, where only whole nodes are given out."""
    cpus: int = 1
    """CPU cores a node."""
    memory_gb: int | str = 0
    """Memory a node; 0 takes it from each cell's estimate, rounded up. Or an expression: memory_gb + 4."""
    minutes: int | str = 0
    """Wall time a job; 0 takes it from each cell's estimate, rounded up. Or an expression: max(30, 3 * minutes)."""
    parallel: int = 256
    """Jobs of a submission that run at the same time, shared out over its arrays."""
    resume: dict[str, str] = field(default_factory=dict)
    """By failure class, where not as usual: who takes such runs up again, itself, submit or request."""
    setup: tuple[str, ...] = ()
    """Shell commands before the job (module load ...)."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job; variables of the job's own shell in them ($TMPDIR) are replaced."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, by their long names."""
    name: str = "local"

    def __post_init__(self) -> None:
        choose("kind", self.kind, ("local", "slurm"))
        choose("gpu", self.gpu, GPU_PEAKS)
        for key in ("workers", "gpus", "processes"):
            positive(key, getattr(self, key), 0)
        for key in EXPRESSIONS:
            value = getattr(self, key)
            if isinstance(value, str):
                ResourceExpression(key, value)
            else:
                positive(key, value, 0)
        for key in ("nodes", "cpus", "parallel", "cells_per_job"):
            positive(key, getattr(self, key))
        if self.cells_per_job > 1 and (self.nodes > 1 or self.processes > 1):
            raise UserError(
                f"cells_per_job: {self.cells_per_job}: runs that share a job have one process each on one node; leave "
                "out nodes and processes"
            )
        if self.cells_per_job > 1 and self.gpus % self.cells_per_job:
            raise UserError(
                f"cells_per_job: {self.cells_per_job} runs cannot share {self.gpus} GPUs evenly; change one of the two"
            )
        for failure, who in self.resume.items():
            choose("resume", failure, RESUME)
            choose(f"resume: {failure}", who, WHO)
        for key in self.sbatch:
            if key in SBATCH_KEYS:
                hint = f"; use the key {SBATCH_KEYS[key]}" if SBATCH_KEYS[key] else ""
                raise UserError(f"sbatch: {key} is set by gsq{hint}")
            if not re.fullmatch(r"[a-z][a-z-]*", key):
                raise UserError(f"sbatch: {key!r} is not the long name of an option (reservation, exclude, ...)")
        if self.kind == "local" and (self.nodes > 1 or self.processes > 1 or self.cells_per_job > 1):
            raise UserError(
                "processes, nodes and cells_per_job: the queue on this machine gives each run one process; share a "
                "single run with torchrun --nproc-per-node N -m gsq.cli train ..."
            )

    @property
    def processes_per_node(self) -> int:
        """Processes that share a run on each node."""
        return 1 if self.cells_per_job > 1 else self.processes or max(1, self.gpus)

    def resumed(self, who: str) -> frozenset[str]:
        """Failure classes that come back by what ``who`` does: the queue itself, a submission, or one with --retry
        ("request")."""
        return resumed_classes(who, RESUME | self.resume)

    @property
    def device(self) -> str:
        """cpu or gpu, for estimates."""
        return "gpu" if self.gpus or (self.kind == "local" and local_gpus()) else "cpu"


def load_cluster(name: str) -> Cluster:
    """ "local", "slurm" (the cluster's defaults), or a cluster file by path or by name.

    Raises UserError, with every valid key and its default, for an unknown key or a wrong type.
    """
    if name == "local":
        return Cluster()
    if name == "slurm":
        return Cluster(kind="slurm", name="slurm")
    path = find_file(name, configs_folder() / "clusters", "cluster")
    values = read_yaml(path)
    values.setdefault("name", path.stem)
    return _build(values, path)


def _build(values: dict[str, Any], path: Path) -> Cluster:
    valid = {f.name: f for f in fields(Cluster)}
    for key, value in values.items():
        if key not in valid:
            listed = ", ".join(f"{name} ({_default(f)!r})" for name, f in valid.items())
            raise UserError(f"{path}: unknown key '{key}'{nearest(key, valid)}; keys (and defaults) are {listed}")
        default = _default(valid[key])
        if isinstance(default, tuple):
            if isinstance(value, str):
                value = [value]
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise UserError(f"{path}: {key}: {value!r} is not a list of commands")
            values[key] = tuple(value)
        elif isinstance(default, dict):
            if not isinstance(value, dict):
                raise UserError(f"{path}: {key}: {value!r} is not a mapping of names to values")
            values[key] = {str(k): str(v) for k, v in value.items()}
        elif type(value) is not type(default) and not (key in EXPRESSIONS and isinstance(value, str)):
            raise UserError(f"{path}: {key}: {value!r} is not of type {type(default).__name__}")
    try:
        return Cluster(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _default(f: Any) -> Any:
    return f.default_factory() if f.default is MISSING else f.default


def local_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to for one worker each: the GPUs of this machine that we may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip() not in ("", "-1")]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def local_workers(cluster: Cluster) -> int:
    """Runs at the same time on this machine: one a GPU, else one a core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cluster.workers or len(local_gpus()) or cores
