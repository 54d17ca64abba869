"""The checks of ``gsq doctor``: what this machine has, what it lacks, and what to do.

They write only a temporary file in each folder, and read no weight file.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gsq
from gsq.config.presets import preset
from gsq.data.manifest import data_root
from gsq.data.sources import manifest
from gsq.errors import Missing, UserError
from gsq.files import cache_folder
from gsq.pretrained.weights import REGISTRY, present, weights_folder
from gsq.records.folder import runs_root
from gsq.surroundings import cores
from gsq.words import counted

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["ok", "optional", "problem"]
SLURM_COMMANDS = ("sbatch", "sacct", "squeue", "scontrol")
# Optional dependencies, with their purpose.
EXTRAS = {"dino": "for the dino discriminator and dinov2_logits", "hub": "for tokenizers from Hugging Face's hub"}
# Time limit of SLURM's commands [s].
SLURM_SECONDS = 2.0
# Free space [bytes] that a small sweep needs, so that the disk does not fill up during runs.
LITTLE_SPACE = 5e9
# File systems that several machines can share.
SHARED = (
    *("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "glusterfs", "orangefs", "pvfs", "panfs", "weka", "9p"),
)
# Most results tables to open.
TABLES = 50


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    area: str
    name: str
    state: State
    """ok; optional: missing, but only some uses need it; problem: gsq does not work properly."""
    found: str
    advice: str = ""
    """Advice on what to do; "" if nothing."""


def examine() -> list[Check]:
    """Run all checks, in the order of the table; importing torch takes most of the two seconds."""
    areas: tuple[Callable[[], Iterator[Check]], ...] = (_packages, _torch, _folders, _slurm, _weights, _data, _tables)
    # Ask SLURM while torch is imported.
    with ThreadPoolExecutor(1) as pool:
        slurm = pool.submit(lambda: list(_slurm()))
        return [check for area in areas for check in (slurm.result() if area is _slurm else area())]


def healthy(checks: list[Check]) -> bool:
    return all(check.state != "problem" for check in checks)


def to_dict(checks: list[Check]) -> dict[str, Any]:
    """Return the checks for JSON."""
    return {"ok": healthy(checks), "checks": [asdict(check) for check in checks]}


def table(checks: list[Check]) -> Table:
    """Return a table with a row for each check."""
    from rich.markup import escape
    from rich.table import Table

    styles = {"ok": "green", "optional": "yellow", "problem": "bold red"}
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    for no_wrap in (True, True, True, False):
        shown.add_column(no_wrap=no_wrap, overflow="fold")
    before = ""
    for check in checks:
        text = escape(check.found) + (f"\n[bold]-> {escape(check.advice)}[/bold]" if check.advice else "")
        area = check.area if check.area != before else ""
        shown.add_row(f"[bold]{area}[/bold]", check.name, f"[{styles[check.state]}]{check.state}[/]", text)
        before = check.area
    return shown


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    area = "packages"
    yield Check(area, "python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Check(area, "gsq", "ok", f"{gsq.__version__}, {Path(gsq.__file__).parent}")
    try:
        wanted = [Requirement(text) for text in metadata.requires("gsq") or []]
    except metadata.PackageNotFoundError:
        yield Check(area, "installation", "optional", "gsq runs from a folder", "pip install -e .")
        return
    good = 0
    for requirement in wanted:
        name, command = requirement.name, f"pip install '{requirement}'"
        extra = next((e for e in EXTRAS if requirement.marker and e in str(requirement.marker)), "")
        if requirement.marker and not extra and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if extra:
                yield Check(area, name, "optional", f"not installed; {EXTRAS[extra]}", f"pip install 'gsq[{extra}]'")
            else:
                yield Check(area, name, "problem", "not installed", command)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good += 1
        else:
            yield Check(area, name, "problem", f"{version}, but gsq needs {requirement.specifier}", command)
    yield Check(area, "dependencies", "ok", f"{good} as required")


def _torch() -> Iterator[Check]:
    area = "machine"
    threads = os.environ.get("OMP_NUM_THREADS")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{counted(cores(), 'core')}, {_size(memory)} memory; {platform.machine()} {platform.system()}"
    yield Check(area, "cpu", "ok", found + (f"; OMP_NUM_THREADS={threads}" if threads else ""))
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check(area, "torch", "problem", f"cannot be imported: {error}", "pip install torch (pytorch.org)")
        return
    hip = getattr(torch.version, "hip", None)
    build = f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Check(area, "torch", "ok", f"{torch.__version__}, {build}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Check(area, f"gpu {index}", "ok", f"{properties.name}, {_size(properties.total_memory)}")
        return
    if not _gpus_installed():
        yield Check(area, "gpu", "optional", "none; runs use the CPU, one run per core")
    elif build == "CPU only":
        advice = "install a build for the GPU: pytorch.org/get-started"
        yield Check(area, "gpu", "problem", "found, but this torch is for CPUs only", advice)
    else:
        advice = "look at nvidia-smi (rocm-smi), the driver's version and CUDA_VISIBLE_DEVICES"
        yield Check(area, "gpu", "problem", "found, but torch cannot use it", advice)


def _gpus_installed() -> bool:
    """Whether an NVIDIA or AMD driver has found a GPU, even if torch cannot use it."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/sys/class/kfd/kfd").exists()


def _folders() -> Iterator[Check]:
    area = "folders"
    runs = runs_root()
    for name, folder, variable in (
        ("runs", runs, "GSQ_RUNS"),
        ("cache", cache_folder(), "GSQ_CACHE"),
        ("weights", weights_folder(), "GSQ_WEIGHTS"),
    ):
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        kind = _file_system(there)
        shared = any(kind.startswith(word) or f".{word}" in kind for word in SHARED)
        free = shutil.disk_usage(there).free
        where = f"{folder}{'' if folder.exists() else ' (does not exist yet)'}"
        found = f"{where}; {_size(free)} free, {'shared' if shared else 'local'}{f' ({kind})' if kind else ''}"
        if why := _writable(there):
            yield Check(area, name, "problem", f"{where}: {why}", f"export {variable}=FOLDER with a writable folder")
        elif name == "runs" and free < LITTLE_SPACE:
            advice = "gsq clean --dry-run lists removable files; gsq plan says what a sweep needs"
            yield Check(area, name, "problem", found, advice)
        elif name == "runs" and not shared and shutil.which("sbatch"):
            advice = "jobs need a folder that all nodes see: export GSQ_RUNS=FOLDER, unless this is one"
            yield Check(area, name, "optional", found, advice)
        else:
            yield Check(area, name, "ok", found)


def _writable(folder: Path) -> str:
    """Why the folder is not writable; empty if it is."""
    try:
        if not folder.is_dir():
            return f"{folder} is not a folder"
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".gsq-doctor-") as file:
            file.write(b"x")
    except OSError as error:
        return f"{error.strerror or error}"
    return ""


def _file_system(path: Path) -> str:
    """Type of a path's file system from /proc/mounts; empty if unknown."""
    try:
        lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    # /proc/mounts writes spaces as \040.
    mounts = {Path(words[1].encode().decode("unicode_escape")): words[2] for words in lines if len(words) > 2}
    return next((mounts[p] for p in (path.resolve(), *path.resolve().parents) if p in mounts), "")


def _answer(*words: str) -> str | None:
    """Output of a command; None if it fails or takes too long."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SLURM_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _slurm() -> Iterator[Check]:
    area = "slurm"
    absent = [name for name in SLURM_COMMANDS if shutil.which(name) is None]
    if len(absent) == len(SLURM_COMMANDS):
        advice = "nothing, or run this on a login node"
        yield Check(area, "commands", "optional", "none; sweeps run on this machine's queue", advice)
        return
    if absent:
        yield Check(area, "commands", "problem", f"without {', '.join(absent)}", "put SLURM's commands on the PATH")
        return
    yield Check(area, "commands", "ok", f"{_answer('sbatch', '--version') or 'there'}")
    with ThreadPoolExecutor(3) as pool:
        questions = (
            ("scontrol", "ping"),
            ("sinfo", "-h", "-o", "%P %D nodes %G"),
            ("sacct", "-n", "-X", "-o", "JobID", "-S", "now"),
        )
        controller, partitions, accounting = pool.map(lambda words: _answer(*words), questions)
    if controller is None:
        advice = "scontrol ping; SLURM_CONF; or --cluster local meanwhile"
        yield Check(area, "controller", "problem", "does not answer", advice)
        return
    yield Check(area, "controller", "ok", controller.splitlines()[0] if controller else "answers")
    lines = [" ".join(line.replace("(null)", "").split()) for line in (partitions or "").splitlines()]
    advice = "" if lines else "sinfo"
    yield Check(area, "partitions", "ok" if lines else "problem", "; ".join(lines[:8]) or "none", advice)
    if accounting is None:
        advice = "gsq asks sacct how jobs ended: ask your cluster's staff for accounting (slurmdbd)"
        yield Check(area, "accounting", "problem", "sacct does not answer", advice)
    else:
        yield Check(area, "accounting", "ok", "sacct answers")


def _weights() -> Iterator[Check]:
    area = "weights"
    for name, entry in REGISTRY.items():
        path = present(entry)
        if path is None:
            advice = f"gsq weights fetch {name}" if entry.url else entry.get
            yield Check(area, name, "optional", f"missing; {entry.purpose}", advice)
            continue
        size = path.stat().st_size / 1e6
        # The registry has rounded sizes.
        if abs(size - entry.megabytes) < 0.02 * entry.megabytes + 0.001:
            packaged = path not in (weights_folder() / file for file in (entry.file, *entry.also))
            yield Check(area, name, "ok", f"in the package {entry.package}" if packaged else f"{path}")
        else:
            found = f"{path} has {size:.4g} MB, {entry.megabytes:g} expected"
            yield Check(area, name, "problem", found, f"gsq weights fetch {name}")


def _data() -> Iterator[Check]:
    area = "data"
    try:
        found = manifest(preset("cpu-tiny").data)
        yield Check(area, "photos", "ok", f"{len(found.train)} + {len(found.validation)} images of scikit-image")
    except UserError as error:
        yield Check(area, "photos", "problem", str(error), "pip install scikit-image")
    try:
        root = data_root(preset("paper-gan-256").data)
    except Missing:
        advice = "export IMAGENET=FOLDER (with train/ and val/)"
        yield Check(area, "ImageNet", "optional", "$IMAGENET is not set; for the sweeps paper/*", advice)
        return
    absent = [part for part in ("train", "val") if not (root / part).is_dir()]
    if absent:
        lacks = f"{root} has no {' and no '.join(absent)}"
        yield Check(area, "ImageNet", "problem", lacks, "export IMAGENET=FOLDER (with train/ and val/)")
    else:
        yield Check(area, "ImageNet", "ok", f"{root}, with train and val")


def _tables() -> Iterator[Check]:
    from gsq.sweeps.schema.columns import SCHEMA_VERSION

    area = "results"
    files = sorted(Path("results").glob("*.parquet"))[-TABLES:]
    good = 0
    if files:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in files:
            try:
                version = (pq.read_schema(file).metadata or {}).get(b"gsq_schema_version")
            except (OSError, pa.ArrowInvalid) as error:
                reason = str(error).splitlines()[0]
                yield Check(area, file.name, "problem", f"cannot be read: {reason}", "make it again")
                continue
            good += version == str(SCHEMA_VERSION).encode()
            # Files without a version, such as training curves, are no results tables.
            if version is not None and version != str(SCHEMA_VERSION).encode():
                found = f"of schema version {version.decode()}; this gsq reads {SCHEMA_VERSION}"
                yield Check(area, file.name, "problem", found, f"gsq gather {file.stem}")
    yield Check(area, "tables", "ok", f"{good} in {Path('results').absolute()} of schema version {SCHEMA_VERSION}")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
