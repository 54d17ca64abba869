"""Cluster files: where jobs go and what they request, independent of the sweep."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from gsq.config.overrides import read_yaml
from gsq.errors import UserError, choose, nearest, positive
from gsq.surroundings import cores, visible_gpus
from gsq.sweeps.spec.container import Container, Tracking, read_section
from gsq.sweeps.spec.expressions import check_expression
from gsq.sweeps.spec.gpus import DEFAULT_GPU, GPU_PEAKS
from gsq.sweeps.spec.resources import RESOURCE_FUNCTIONS, RESOURCE_NAMES
from gsq.sweeps.spec.shipped import configs_folder, find_file
from gsq.sweeps.spec.states import RESUME, WHO, resumed_classes
from gsq.sweeps.spec.written import as_written, minutes, option, variable, whole_number

# sbatch options that gsq sets, with the key for each if there is one.
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
# What a request for memory is for: a node, each core, each GPU, or nothing at all.
MEMORY_PER = ("node", "cpu", "gpu", "none")
# Value of cells_in_turn for as many as the wall time holds.
AUTO = "auto"
# Keys that may be an expression of the cell's estimate, and those that may be text.
EXPRESSIONS = ("memory_gb", "minutes")
WORDED = (*EXPRESSIONS, "cells_in_turn")
# For each kind, the key that says how much runs at the same time in the other kind, and would be ignored.
OF_THE_OTHER = {"local": "parallel", "slurm": "workers"}
# Keys that only a scheduler reads.
SCHEDULED = ("partition", "account", "qos", "constraint", "dependency", "setup", "sbatch")
# Keys with keys of their own.
SECTIONS: dict[str, type[Container] | type[Tracking]] = {"container": Container, "tracker": Tracking}


@dataclass(frozen=True)
class Cluster:
    """A destination for jobs. ``Cluster()`` is this machine's queue."""

    kind: str = "local"
    """local (a queue on this machine) or slurm (through submitit)."""
    workers: int = 0
    """local: runs at the same time; 0 for one per GPU, or one per core."""
    partition: str = ""
    """sbatch's partition of the jobs; sinfo lists yours."""
    account: str = ""
    """sbatch's account, on which the jobs are charged."""
    qos: str = ""
    """sbatch's quality of service."""
    constraint: str = ""
    """Features that the nodes must have (a100|h100)."""
    dependency: str = ""
    """sbatch's dependency of the jobs (afterok:1234)."""
    nodes: int = 1
    """Nodes per job."""
    gpus: int = 0
    """GPUs per node."""
    gpu: str = DEFAULT_GPU
    """GPU model (a100, h100, ...), for estimates until runs have been measured."""
    processes: int = 0
    """Processes per node, which share each batch of a run; 0 for one per GPU."""
    cells_per_job: int = 1
    """Runs that share one job and the node's GPUs, for clusters that allocate only whole nodes."""
    cells_in_turn: int | str = 1
    """Runs that one job trains one after the other (in each of its cells_per_job places), for short cells; auto for as
    many as its minutes hold by the cells' estimates."""
    cpus: int = 1
    """CPU cores per node."""
    memory_gb: int | str = 0
    """Memory per node; 0 for each cell's estimate, rounded up. Or an expression: memory_gb + 4."""
    memory_per: str = "node"
    """How to request it: node (--mem), cpu (--mem-per-cpu), gpu (--mem-per-gpu), or none if the centre forbids it."""
    minutes: int | str = 0
    """Wall time per job; 0 for each cell's estimate, rounded up. Or an expression: max(30, 3 * minutes); a file may
    also have hours:minutes:seconds and days-hours."""
    signal_seconds: int = 90
    """Seconds before the end of the wall time (at most half of it) at which a job saves a checkpoint and requeues."""
    parallel: int = 256
    """Jobs of a submission that run at the same time, divided among its arrays."""
    resume: dict[str, str] = field(default_factory=dict)
    """Who resumes runs of a failure class, if not the default: itself, submit or request."""
    setup: tuple[str, ...] = ()
    """Shell commands before the job (module load ...)."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job; the job's shell expands variables in them ($TMPDIR)."""
    sbatch: dict[str, str | bool] = field(default_factory=dict)
    """More sbatch options by their long names; True for one without a value, False to leave one out."""
    container: Container | None = None
    """slurm: the image in which jobs run, a name or {image: ..., runtime: pyxis, binds: [/data]}."""
    tracker: Tracking | None = None
    """Where gsq run sends the runs when it is done: tensorboard, wandb, mlflow, trackio, or {to: mlflow, at: ...}."""
    name: str = "local"
    """What messages call the cluster; by default the name of its file."""

    def __post_init__(self) -> None:
        choose("kind", self.kind, ("local", "slurm"))
        choose("gpu", self.gpu, GPU_PEAKS)
        choose("memory_per", self.memory_per, MEMORY_PER)
        least = dict.fromkeys(("workers", "gpus", "processes", *EXPRESSIONS), 0)
        least |= dict.fromkeys(("nodes", "cpus", "parallel", "cells_per_job", "signal_seconds"), 1)
        for key, minimum in least.items():
            if isinstance(value := getattr(self, key), str):
                check_expression(value, key, RESOURCE_NAMES, tuple(RESOURCE_FUNCTIONS))
            else:
                positive(key, value, minimum)
        if self.signal_seconds > 65535:
            raise UserError(f"signal_seconds: {self.signal_seconds}: SLURM takes at most 65535")
        if self.cells_per_job > 1 and (self.nodes > 1 or self.processes > 1):
            raise UserError(
                f"cells_per_job: {self.cells_per_job}: runs that share a job have one process each, on one node; leave "
                "out nodes and processes"
            )
        if self.cells_per_job > 1 and self.gpus % self.cells_per_job:
            raise UserError(
                f"cells_per_job: {self.cells_per_job} runs cannot share {self.gpus} GPUs evenly; change one of the two"
            )
        self._check_in_turn()
        for failure, who in self.resume.items():
            choose("resume", failure, RESUME)
            choose(f"resume: {failure}", who, WHO)
        self._check_sbatch()
        if self.kind == "local" and (given := next((key for key in SCHEDULED if getattr(self, key)), None)):
            raise UserError(
                f"{given}: {getattr(self, given)!r}: is for SLURM, and the queue on this machine ignores it; write "
                "kind: slurm, or leave it out"
            )
        if self.kind == "local" and self.container:
            raise UserError(
                "container: the queue on this machine runs no containers; start gsq inside the image instead, or write "
                "kind: slurm"
            )
        if self.kind == "local" and (self.nodes > 1 or self.processes > 1 or self.shares):
            raise UserError(
                "processes, nodes, cells_per_job and cells_in_turn: the queue on this machine gives each run one "
                "process, forked from a warm parent; share a single run with torchrun --nproc-per-node N -m gsq.cli "
                "train ..."
            )

    def _check_in_turn(self) -> None:
        if self.cells_in_turn == 1:
            return
        where = f"cells_in_turn: {self.cells_in_turn}"
        if isinstance(self.cells_in_turn, int):
            positive("cells_in_turn", self.cells_in_turn, 1)
        elif self.cells_in_turn != AUTO:
            raise UserError(f"{where}: is neither a whole number nor {AUTO}")
        if self.nodes > 1 or self.processes > 1:
            raise UserError(f"{where}: runs in turn have one process each, on one node; leave out nodes and processes")
        if self.gpus > self.cells_per_job:
            raise UserError(
                f"{where}: each run has one process, which uses one of the {self.gpus} GPUs; set gpus: 1, or "
                f"cells_per_job: {self.gpus} to train {self.gpus} cells at a time"
            )
        if self.cells_in_turn == AUTO and (isinstance(self.minutes, str) or not self.minutes):
            raise UserError(
                f"{where}: needs minutes: a wall time for cells to fill, not {self.minutes or 'an estimate'}"
            )

    def _check_sbatch(self) -> None:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise UserError(f"environment: {name!r} is not the name of a variable: letters, digits and '_'")
        for key in self.sbatch:
            if key in SBATCH_KEYS:
                hint = f"; use the key {SBATCH_KEYS[key]}" if SBATCH_KEYS[key] else ""
                raise UserError(f"sbatch: {key} is set by gsq{hint}")
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise UserError(f"sbatch: {key!r} is not the long name of an option (reservation, exclude, ...)")
        shares = [key for key in ("mem-per-cpu", "mem-per-gpu") if key in self.sbatch]
        if len(shares) > 1 or (shares and self.memory_per != "node"):
            raise UserError(
                f"sbatch: {shares[0]}: memory is requested twice; leave out "
                f"{shares[1] if len(shares) > 1 else 'memory_per: ' + self.memory_per}"
            )
        if self.memory_per == "gpu" and not self.gpus:
            raise UserError("memory_per: gpu: the jobs request no GPU; set gpus, or use memory_per: cpu")

    @property
    def shares(self) -> bool:
        """Whether a job can have several cells, at the same time or in turn."""
        return self.cells_per_job > 1 or self.cells_in_turn != 1

    @property
    def processes_per_node(self) -> int:
        """Processes that share a run on each node."""
        return 1 if self.shares else self.processes or max(1, self.gpus)

    def resumed(self, who: str) -> frozenset[str]:
        """Failure classes that ``who`` resumes: the queue ("itself"), gsq submit, or --retry ("request")."""
        return resumed_classes(who, RESUME | self.resume)

    @property
    def device(self) -> str:
        """cpu or gpu, for estimates."""
        return "gpu" if self.gpus or (self.kind == "local" and local_gpus()) else "cpu"


def load_cluster(name: str | Cluster) -> Cluster:
    """Return "local", "slurm" (the cluster's defaults), or a cluster file by path or by name; a Cluster as it is.

    Raises UserError, with every valid key and its default, for an unknown key or a wrong type.
    """
    if isinstance(name, Cluster):
        return name
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
    kind = values.get("kind", "local")
    for key, value in values.items():
        if key not in valid:
            listed = ", ".join(f"{name} ({_default(f)!r})" for name, f in valid.items())
            raise UserError(f"unknown key '{key}'{nearest(key, valid)}; keys (and defaults) are {listed}")
        if key == OF_THE_OTHER.get(kind):
            other = next(name for name in OF_THE_OTHER.values() if name != key)
            raise UserError(f"{key}: {value!r}: kind: {kind} has {other}: for the number of runs at the same time")
        default, text = _default(valid[key]), written.get(key, value)
        if key in SECTIONS:
            values[key] = read_section(key, SECTIONS[key], value)
        elif isinstance(default, tuple):
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
        elif type(value) is not type(default) and not (key in WORDED and isinstance(value, str)):
            raise UserError(f"{key}: {value!r} is not of type {type(default).__name__}")
        else:
            whole_number(key, text, value)
    return Cluster(**values)


def _default(f: Any) -> Any:
    return f.default_factory() if f.default is MISSING else f.default


def local_gpus() -> list[str]:
    """Return the usable GPUs of this machine, each as the CUDA_VISIBLE_DEVICES of one worker."""
    visible = visible_gpus()
    if visible is not None:
        return visible
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def local_workers(cluster: Cluster) -> int:
    """Return how many runs this machine runs at a time: one per GPU, else one per core of this process."""
    return cluster.workers or len(local_gpus()) or cores()
