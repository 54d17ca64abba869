"""Cluster files: where jobs go and what they ask for, apart from the sweep."""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from gsq.config.overrides import read_yaml
from gsq.errors import UserError, choose, nearest, positive
from gsq.surroundings import visible_gpus
from gsq.sweeps.spec.expressions import check_expression
from gsq.sweeps.spec.gpus import DEFAULT_GPU, GPU_PEAKS
from gsq.sweeps.spec.resources import RESOURCE_FUNCTIONS, RESOURCE_NAMES
from gsq.sweeps.spec.shipped import configs_folder, find_file
from gsq.sweeps.spec.states import RESUME, WHO, resumed_classes
from gsq.sweeps.spec.written import as_written, minutes, option, variable, whole_number

# Options of sbatch that gsq sets, and the key that does it where there is one.
SBATCH_KEYS = {
    **{key: key for key in ("partition", "account", "qos", "constraint", "dependency", "nodes")},
    "mem": "memory_gb",
    "time": "minutes",
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "ntasks-per-node": "processes",
    "array": "parallel",
    "signal": "signal_seconds",
    **dict.fromkeys(("job-name", "output", "error", "open-mode", "wait", "parsable", "wrap"), ""),
}


# What memory is asked for of sbatch: all of a node's, or a share for each core or GPU, or nothing.
MEMORY_PER = ("node", "cpu", "gpu", "none")
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
    memory_per: str = "node"
    """How sbatch is asked for it where a centre forbids --mem: node, cpu (--mem-per-cpu), gpu (--mem-per-gpu), none."""
    minutes: int | str = 0
    """Wall time a job; 0 takes it from each cell's estimate, rounded up. Or an expression: max(30, 3 * minutes); in
    a file also hours:minutes:seconds and days-hours."""
    signal_seconds: int = 90
    """Seconds before the end of the wall time, at most half of it, when a job saves a checkpoint and is requeued."""
    parallel: int = 256
    """Jobs of a submission that run at the same time, shared out over its arrays."""
    resume: dict[str, str] = field(default_factory=dict)
    """By failure class, where not as usual: who takes such runs up again, itself, submit or request."""
    setup: tuple[str, ...] = ()
    """Shell commands before the job (module load ...)."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job; variables of the job's own shell in them ($TMPDIR) are replaced."""
    sbatch: dict[str, str | bool] = field(default_factory=dict)
    """Further options of sbatch, by their long names; True for one without a value, False for one left out."""
    name: str = "local"

    def __post_init__(self) -> None:
        choose("kind", self.kind, ("local", "slurm"))
        choose("gpu", self.gpu, GPU_PEAKS)
        choose("memory_per", self.memory_per, MEMORY_PER)
        for key in ("workers", "gpus", "processes"):
            positive(key, getattr(self, key), 0)
        for key in EXPRESSIONS:
            value = getattr(self, key)
            if isinstance(value, str):
                check_expression(value, key, RESOURCE_NAMES, tuple(RESOURCE_FUNCTIONS))
            else:
                positive(key, value, 0)
        for key in ("nodes", "cpus", "parallel", "cells_per_job", "signal_seconds"):
            positive(key, getattr(self, key))
        if self.signal_seconds > 65535:
            raise UserError(f"signal_seconds: {self.signal_seconds}: SLURM takes at most 65535")
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
        self._check_sbatch()
        if self.kind == "local" and (self.nodes > 1 or self.processes > 1 or self.cells_per_job > 1):
            raise UserError(
                "processes, nodes and cells_per_job: the queue on this machine gives each run one process; share a "
                "single run with torchrun --nproc-per-node N -m gsq.cli train ..."
            )

    def _check_sbatch(self) -> None:
        for key in self.sbatch:
            if key in SBATCH_KEYS:
                hint = f"; use the key {SBATCH_KEYS[key]}" if SBATCH_KEYS[key] else ""
                raise UserError(f"sbatch: {key} is set by gsq{hint}")
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise UserError(f"sbatch: {key!r} is not the long name of an option (reservation, exclude, ...)")
        shares = [key for key in ("mem-per-cpu", "mem-per-gpu") if key in self.sbatch]
        if len(shares) > 1 or (shares and self.memory_per != "node"):
            raise UserError(
                f"sbatch: {shares[0]}: memory is asked for once; leave out "
                f"{shares[1] if len(shares) > 1 else 'memory_per: ' + self.memory_per}"
            )
        if self.memory_per == "gpu" and not self.gpus:
            raise UserError("memory_per: gpu: the jobs ask for no GPU; use gpus, or memory_per: cpu")

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
    try:
        return _build(values, as_written(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _build(values: dict[str, Any], written: dict[str, Any]) -> Cluster:
    valid = {f.name: f for f in fields(Cluster)}
    for key, value in values.items():
        if key not in valid:
            listed = ", ".join(f"{name} ({_default(f)!r})" for name, f in valid.items())
            raise UserError(f"unknown key '{key}'{nearest(key, valid)}; keys (and defaults) are {listed}")
        default, text = _default(valid[key]), written.get(key, value)
        if isinstance(default, tuple):
            if isinstance(value, str):
                value = [value]
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise UserError(f"{key}: {value!r} is not a list of commands")
            values[key] = tuple(value)
        elif isinstance(default, dict):
            if value is None:
                value, text = {}, {}
            if not isinstance(value, dict):
                raise UserError(f"{key}: {value!r} is not a mapping of names to values")
            read = option if key == "sbatch" else variable
            values[key] = {str(k): read(f"{key}: {k}", text.get(str(k), v), v) for k, v in value.items()}
        elif key == "minutes" and isinstance(value, int | str) and not isinstance(value, bool):
            values[key] = minutes(key, text, value)
        elif type(value) is not type(default) and not (key in EXPRESSIONS and isinstance(value, str)):
            raise UserError(f"{key}: {value!r} is not of type {type(default).__name__}")
        else:
            whole_number(key, text, value)
    return Cluster(**values)


def _default(f: Any) -> Any:
    return f.default_factory() if f.default is MISSING else f.default


def local_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may be set to for one worker each: the GPUs of this machine that we may use."""
    visible = visible_gpus()
    if visible is not None:
        return visible
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def local_workers(cluster: Cluster) -> int:
    """Runs at the same time on this machine: one a GPU, else one a core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cluster.workers or len(local_gpus()) or cores
