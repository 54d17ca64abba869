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
# Each wing may import those before it. What lies beside the wings of a room, such as errors.py, comes first.
WINGS = {
    "gsq": (
        "config", "records", "metrics", "data", "pretrained", "quantizers", "models", "training", "evaluation", "probe",
        "runs", "tokenizer", "peers", "templates", "cli",
    ),
    "sweeps": ("schema", "spec", "planning", "state", "costing", "running", "tables", "tracking"),
    "analysis": ("tables", "laws", "fitting", "checking", "allocating", "designing", "figures", "reporting"),
}  # fmt: skip
# What analysis may use of the other rooms: none of it knows anything of runs.
SHARED = ("gsq.sweeps.schema", "gsq.config.axes", "gsq.files", "gsq.html", "gsq.words")
# What of sweeps runs or evaluates a cell, and so may import what trains.
WORKERS = ("gsq.sweeps.running.worker", "gsq.sweeps.running.array_job")
LONGEST = 400

Edges = dict[str, set[tuple[int, str]]]


def module_of(root: Path, file: Path) -> str:
    """The name that a file is imported by: the folders sweeps/ and analysis/ are rooms of the package gsq."""
    parts = list(file.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts if parts[0] == "gsq" else ["gsq", *parts])


def sources(root: Path) -> dict[str, Path]:
    """Every module of the package by name; links from room to room are not followed."""
    return {module_of(root, file): file for room in ROOMS for file in sorted((root / room).rglob("*.py"))}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever in the file, and for types too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def public(root: Path) -> dict[str, str]:
    """The module behind each lazy name of a room, by full name, from the room's stub."""
    found = {}
    for room in ROOMS:
        package = "gsq" if room == "gsq" else f"gsq.{room}"
        stub = root / room / "__init__.pyi"
        for node in ast.walk(ast.parse(stub.read_text())) if stub.is_file() else ():
            if isinstance(node, ast.ImportFrom):
                found |= {f"{package}.{alias.name}": f"{package}.{node.module}" for alias in node.names}
    return found


def edges(root: Path) -> Edges:
    """What each module imports: line and name, that of the module where one of the package is imported."""
    known, lazy = sources(root), public(root)
    found: Edges = {}
    for module, file in known.items():
        for line, name in imports(file):
            target = lazy.get(name, name)
            if target not in known and target.rpartition(".")[0] in known:
                target = target.rpartition(".")[0]
            if target != module:
                found.setdefault(module, set()).add((line, target))
    return found


def place(module: str) -> tuple[str, str]:
    """Room and wing of a module of the package; the wing is "" for what lies beside the wings."""
    parts = module.split(".")
    room, rest = (parts[1], parts[2:]) if len(parts) > 1 and parts[1] in ROOMS else ("gsq", parts[1:])
    return room, rest[0] if rest and rest[0] in WINGS[room] else ""


def training_modules(found: Edges) -> set[str]:
    """The modules of the first room that import torch, wherever in their file, and those that import them at once."""
    heavy = {m for m, names in found.items() if place(m)[0] == "gsq" and any(within(n, "torch") for _, n in names)}
    return {module for module in heavy if place(module)[1] != "cli"} | {"gsq.runs.execute", "gsq.runs.reevaluate"}


def forbidden(module: str, name: str, training: set[str]) -> bool:
    """Whether the design forbids that ``module`` imports ``name``."""
    if any(within(name, one) for one in NOWHERE):
        return True
    room, wing = place(module)
    if room == "sweeps" and module not in WORKERS and (name in training or within(name, "torch")):
        return True
    if not within(name, "gsq"):
        return within(name, "sweeps") or within(name, "analysis")
    to_room, to_wing = place(name)
    if to_room == room:
        order = ("", *WINGS[room])
        return order.index(to_wing) > order.index(wing)
    if to_wing == "cli":
        return True
    if room == "gsq":
        return wing != "cli"
    if room == "sweeps":
        return to_room == "analysis"
    return not any(within(name, one) for one in SHARED)


def backward_edges(root: Path) -> list[str]:
    """``module:line imports name`` for every import that the design forbids."""
    found = edges(root)
    training = training_modules(found)
    return [
        f"{module}:{line} imports {name}"
        for module, names in found.items()
        for line, name in sorted(names)
        if forbidden(module, name, training)
    ]


def circles(root: Path) -> list[list[str]]:
    """Modules that import each other, directly or by way of others."""
    graph = {module: {name for _, name in names} for module, names in edges(root).items()}
    found, over = [], set()

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for name in graph.get(todo.pop(), ()):
                if name in graph and name not in seen:
                    seen.add(name)
                    todo.append(name)
        return seen

    reach = {module: reached(module) for module in graph}
    for module in graph:
        circle = sorted({module, *(other for other in reach[module] if module in reach[other])})
        if len(circle) > 1 and circle[0] not in over:
            over.update(circle)
            found.append(circle)
    return found


def test_no_wing_imports_a_later_one() -> None:
    assert backward_edges(REPOSITORY) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(REPOSITORY) == []


def test_what_analysis_shares_with_the_other_rooms_knows_nothing_of_runs() -> None:
    shared = {m: names for m, names in edges(REPOSITORY).items() if any(within(m, one) for one in SHARED)}
    assert {"gsq.config.axes", "gsq.sweeps.schema.columns"} <= set(shared)
    ours = [(module, name) for module, names in shared.items() for _, name in names if within(name, "gsq")]
    assert [one for one in ours if not any(within(one[1], allowed) for allowed in SHARED)] == []


def test_every_folder_of_a_room_is_a_wing_with_a_purpose() -> None:
    for room in ROOMS:
        inits = [path for path in (REPOSITORY / room).glob("*/__init__.py") if not path.parent.is_symlink()]
        folders = {path.parent.name for path in inits}
        assert folders == set(WINGS[room]), room
        for wing in WINGS[room]:
            assert ast.get_docstring(ast.parse((REPOSITORY / room / wing / "__init__.py").read_text())), wing


def test_no_source_file_is_longer_than_one_reads_at_a_time() -> None:
    long = {m: n for m, file in sources(REPOSITORY).items() if (n := len(file.read_text().splitlines())) > LONGEST}
    assert long == {}


def test_nothing_anywhere_imports_what_the_project_does_without() -> None:
    # The programs that make fixtures install what they compare with in a folder of their own.
    files = [*sources(REPOSITORY).values(), *(REPOSITORY / "tests").rglob("*.py")]
    found = [(file.name, name) for file in files if not file.name.startswith("make_") for _, name in imports(file)]
    assert [one for one in found if any(within(one[1], module) for module in NOWHERE)] == []


def test_the_reader_knows_the_training_modules() -> None:
    found = edges(REPOSITORY)
    training = training_modules(found)
    assert {"gsq.training.trainer", "gsq.evaluation.evaluate", "gsq.models.autoencoder"} <= training
    assert {"gsq.training.losses", "gsq.training.checkpoint"} <= training
    assert not training & {"gsq.config.run", "gsq.records.read", "gsq.errors", "gsq.runs.identity", "gsq.data.manifest"}
    # And the checks are about files that are there.
    assert {place(module)[0] for module in found} == set(ROOMS)
    assert any(name == "gsq.runs.execute" for _, name in found["gsq.sweeps.running.worker"])


PLANTED = [
    ("gsq/records/read.py", "from gsq import sweeps"),
    ("gsq/records/read.py", "import sweeps.spec"),
    ("gsq/records/read.py", "from gsq.analysis.tables.table import load_results"),
    ("gsq/records/read.py", "    from gsq.sweeps.spec.sweep import load_spec"),
    ("gsq/records/read.py", "from gsq.runs.execute import execute"),
    ("gsq/errors.py", "from gsq.config.run import RunConfig"),
    ("gsq/runs/execute.py", "from gsq.cli.compose import run_sweep"),
    ("sweeps/state/status.py", "from gsq.cli.compose import run_sweep"),
    ("sweeps/state/status.py", "from gsq.sweeps.running.worker import run_cell"),
    ("sweeps/running/queue.py", "from gsq.runs.execute import execute"),
    ("sweeps/running/queue.py", "import gsq.training.trainer"),
    ("sweeps/running/queue.py", "from gsq import train"),
    ("sweeps/running/queue.py", "import torch.nn"),
    ("sweeps/running/queue.py", "import gsq.analysis.laws.named"),
    ("sweeps/running/worker.py", "from gsq.analysis import fit"),
    ("analysis/laws/named.py", "from gsq.errors import UserError"),
    ("analysis/laws/named.py", "from gsq.sweeps.planning.cells import Plan"),
    ("analysis/laws/named.py", "from gsq.sweeps import load_spec"),
    ("analysis/laws/named.py", "from gsq.analysis.fitting.fit import fit"),
    ("analysis/laws/named.py", "import importlib; importlib.import_module('gsq.config.run')"),
    ("gsq/models/autoencoder.py", "import torchvision"),
    ("gsq/models/autoencoder.py", "from timm.models import create_model"),
]


def house(root: Path) -> None:
    """A small house with one import of each kind that is allowed."""
    for name, text in {
        "gsq/__init__.pyi": "from .runs.execute import train as train\n",
        "gsq/errors.py": "class UserError(Exception): ...\n",
        "gsq/config/run.py": "from gsq.errors import UserError\n",
        "gsq/training/trainer.py": "import torch\n",
        "gsq/runs/execute.py": "from gsq.training.trainer import train\n",
        "gsq/cli/main.py": "from gsq.cli.compose import x\n",
        "gsq/cli/compose.py": "from gsq.sweeps.state.status import y\nfrom gsq.analysis.laws.named import z\n",
        "sweeps/running/worker.py": "from gsq.runs.execute import execute\nfrom gsq.training.trainer import train\n",
        "sweeps/schema/columns.py": "X = 1\n",
        "sweeps/state/status.py": "from gsq.config.run import RunConfig\n",
        "analysis/laws/named.py": "from gsq.sweeps.schema.columns import COLUMNS\n",
        "analysis/fitting/fit.py": "from gsq.analysis.laws.named import z\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(("file", "line"), PLANTED)
def test_a_planted_backward_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    house(tmp_path)
    assert backward_edges(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    with (tmp_path / file).open("a") as target:
        target.write(f"if 1:\n    {line.strip()}\n")
    (edge,) = {edge.split(" ")[0] for edge in backward_edges(tmp_path)}
    number = len((tmp_path / file).read_text().splitlines())
    assert edge == f"{module_of(tmp_path, tmp_path / file)}:{number}"


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    house(tmp_path)
    assert circles(tmp_path) == []
    (tmp_path / "gsq" / "config" / "presets.py").write_text("from gsq.config.run import RunConfig\n")
    with (tmp_path / "gsq" / "config" / "run.py").open("a") as target:
        target.write("def later():\n    from gsq.config.presets import preset\n")
    assert circles(tmp_path) == [["gsq.config.presets", "gsq.config.run"]]


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
