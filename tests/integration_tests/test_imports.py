"""Who may import whom, read from the source; and what a command imports before it does anything."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("gsq", "sweeps", "analysis")
NOWHERE = ("torchvision", "timm", "lpips", "torch_fidelity", "pytorch_fid")
# Of sweeps, what analysis may use: neither knows anything of runs.
SHARED = ("sweeps.schema", "sweeps.association", "sweeps.outputs")
# The command line and what needs several rooms at once.
COMPOSITION = ("gsq/cli.py", "gsq/compose.py", "gsq/doctor.py")

Import = tuple[str, int, str]


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(root: Path, file: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever in the file, and for types too."""
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = file.split("/")[: -node.level]
                base = ".".join([*package, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def all_imports(root: Path, *folders: str) -> list[Import]:
    files = sorted(p.relative_to(root).as_posix() for folder in folders for p in (root / folder).rglob("*.py"))
    return [(file, line, name) for file in files for line, name in imports(root, file)]


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def training_modules(root: Path) -> set[str]:
    """The modules of gsq that import torch, wherever in their file, and so train or evaluate."""
    return {module_of(file) for file, _, name in all_imports(root, "gsq") if within(name, "torch")} | {"gsq.run"}


def backward_edges(root: Path) -> list[str]:
    """``file:line imports name`` for every import that the design forbids."""
    training = training_modules(root)
    lazily = {f"gsq.{name}" for name in _lazy_names(root / "gsq" / "__init__.py", training)}
    found = []
    for file, line, name in all_imports(root, *ROOMS):
        room = file.split("/")[0]
        forbidden = (
            any(within(name, module) for module in NOWHERE)
            or (room == "gsq" and file not in COMPOSITION and (within(name, "sweeps") or within(name, "analysis")))
            or (any(within(name, f"gsq.{module}") for module in ("compose", "doctor")) and file != "gsq/cli.py")
            or (room == "sweeps" and within(name, "analysis"))
            or (
                room == "sweeps"
                and file != "sweeps/job.py"
                and (any(within(name, module) for module in training) or name in lazily or within(name, "torch"))
            )
            or (room == "analysis" and within(name, "gsq"))
            or (room == "analysis" and within(name, "sweeps") and not any(within(name, m) for m in SHARED))
        )
        if forbidden:
            found.append(f"{file}:{line} imports {name}")
    return found


def _lazy_names(init: Path, training: set[str]) -> set[str]:
    """Names that the package offers from training modules, imported on first use."""
    names = set()
    for node in ast.walk(ast.parse(init.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in training:
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_no_room_imports_backwards() -> None:
    assert backward_edges(REPOSITORY) == []


def test_nothing_anywhere_imports_what_the_project_does_without() -> None:
    # The programs that make fixtures install what they compare with in a folder of their own.
    found = [i for i in all_imports(REPOSITORY, *ROOMS, "tests") if "/fixtures/make_" not in i[0]]
    assert [f"{f}:{n} {name}" for f, n, name in found if any(within(name, m) for m in NOWHERE)] == []


def test_the_reader_knows_the_training_modules() -> None:
    found = training_modules(REPOSITORY)
    assert {"gsq.run", "gsq.training", "gsq.evaluation", "gsq.autoencoder", "gsq.losses", "gsq.checkpoint"} <= found
    assert not found & {"gsq.config", "gsq.record", "gsq.errors", "gsq.identity", "gsq.datasets", "gsq.flops"}
    # And the checks are about files that are there.
    assert {file.split("/")[0] for file, _, _ in all_imports(REPOSITORY, *ROOMS)} == set(ROOMS)
    assert any(
        within(name, "gsq.run") for file, _, name in all_imports(REPOSITORY, "sweeps") if file == "sweeps/job.py"
    )


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("gsq/record.py", "import sweeps"),
        ("gsq/record.py", "from analysis.table import load_results"),
        ("gsq/record.py", "    from sweeps.spec import load_spec"),
        ("gsq/metrics/a.py", "from ...sweeps import spec"),
        ("gsq/record.py", "from gsq.compose import run_sweep"),
        ("sweeps/cli.py", "from gsq.compose import run_sweep"),
        ("gsq/compose.py", "from gsq.doctor import examine"),
        ("sweeps/queue.py", "from gsq.run import execute"),
        ("sweeps/queue.py", "import gsq.training"),
        ("sweeps/queue.py", "from gsq import train"),
        ("sweeps/queue.py", "from gsq import training"),
        ("sweeps/queue.py", "import torch.nn"),
        ("sweeps/queue.py", "import analysis.laws"),
        ("sweeps/job.py", "from analysis import fit"),
        ("analysis/laws.py", "from gsq.errors import UserError"),
        ("analysis/laws.py", "from sweeps.planning import Plan"),
        ("analysis/laws.py", "from sweeps import load_spec"),
        ("analysis/laws.py", "import importlib; importlib.import_module('gsq.config')"),
        ("gsq/autoencoder.py", "import torchvision"),
        ("gsq/autoencoder.py", "from timm.models import create_model"),
    ],
)
def test_a_planted_backward_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    for name, text in {
        "gsq/__init__.py": "if 0:\n    from gsq.training import train\n",
        "gsq/training.py": "import torch\n",
        "gsq/cli.py": "from gsq.compose import x\nfrom sweeps.cli import y\n",
        "gsq/compose.py": "from analysis.cli import z\n",
        "sweeps/job.py": "from gsq.run import execute\nfrom gsq.training import train\n",
        "analysis/table.py": "from sweeps import schema\nfrom sweeps.schema import COLUMNS\n",
        "sweeps/folder.py": "from gsq.record import read_run\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert backward_edges(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    with (tmp_path / file).open("a") as target:
        target.write(f"if 1:\n    {line.strip()}\n")
    (edge,) = {edge.split(" ")[0] for edge in backward_edges(tmp_path)}
    assert edge == f"{file}:{len((tmp_path / file).read_text().splitlines())}"


@pytest.mark.parametrize("words", [["--help"], ["plan", "quickstart"], ["plan", "--help"], ["status", "--help"]])
def test_a_verb_imports_only_what_it_needs(tmp_path: Path, words: list[str]) -> None:
    program = f"""
import runpy, sys
sys.argv = ["gsq", *{words!r}]
try:
    runpy.run_module("gsq.cli", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = ["torch", "pandas", "matplotlib", "scipy", "pyarrow", "torchmetrics", "skimage", "submitit", "optuna"]
heavy += [] if "plan" in {words!r} else ["numpy", "omegaconf"]
print("HEAVY", [name for name in heavy if name in sys.modules])
"""
    environment = {**os.environ, "GSQ_RUNS": str(tmp_path / "runs"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"
