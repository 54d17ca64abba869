"""gsq beside packages analysis/ and sweeps/ of a user's own, and the rooms by the names that they had before."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import gsq

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("analysis", "sweeps")
OWN = "MINE = True\nimport os\nassert os.environ.get('IMPORT_MINE'), 'gsq imported a package of the user'\n"
SWEEP = {
    "name": "small",
    "base": "cpu-tiny",
    "set": {
        **{"model.channels": 8, "model.norm_groups": 4, "steps": 2, "batch_size": 2, "image_size": 32},
        **{"loss.perceptual": "none", "evaluation.num_images": 8},
    },
    "axes": {"groups": [1]},
}


@pytest.fixture
def thesis(tmp_path: Path) -> Path:
    """A folder that has packages of these names."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text(OWN)
    return tmp_path


def run(folder: Path, *words: str | Path, code: int = 0, **variables: str) -> str:
    """What a program prints that starts in ``folder``, as from a shell there."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GSQ_", "PYTHON", "SLURM"))}
    environment = {**inherited, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr if code else done.stdout


def test_the_program_works_beside_a_users_own_packages(thesis: Path) -> None:
    program = Path(sys.executable).with_name("gsq")
    said = run(thesis, program, "--version")
    for module in ("gsq.cli", "gsq.cli.main"):
        assert run(thesis, sys.executable, "-m", module, "--version") == said
    assert "Usage" in run(thesis, program, "fit", "--help")
    assert json.loads(run(thesis, program, "plan", "quickstart", "--json"))


def test_torchrun_works_beside_a_users_own_packages(thesis: Path) -> None:
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "gsq.cli", "--version"]
    assert f"gsq {gsq.__version__}" in run(thesis, sys.executable, *words)


def test_a_program_imports_the_rooms_and_its_own_packages(thesis: Path) -> None:
    program = thesis / "program.py"
    program.write_text(
        "from gsq import analysis as laws, sweeps as many\n"
        "import analysis, sweeps\n"
        "assert analysis.MINE and sweeps.MINE\n"
        "print(laws.Fit.__name__, many.Plan.__name__)\n"
    )
    assert run(thesis, sys.executable, program, IMPORT_MINE="1").split() == ["Fit", "Plan"]
    code = program.read_text()
    assert run(thesis, sys.executable, "-c", code, IMPORT_MINE="1").split() == ["Fit", "Plan"]


def test_workers_run_beside_a_users_own_packages(thesis: Path) -> None:
    """A sweep by its console script: a worker starts in the same folder, and figures and tables are made there."""
    (thesis / "small.yaml").write_text(yaml.safe_dump(SWEEP))
    run(thesis, Path(sys.executable).with_name("gsq"), "run", "small.yaml")
    assert (thesis / "results" / "small.parquet").is_file()
    assert "1 done" in run(thesis, sys.executable, "-m", "gsq.cli", "status", "small")
    # The words of a worker, without the PYTHONSAFEPATH that its driver sets.
    assert run(thesis, sys.executable, "-m", "gsq.sweeps.running.worker", "evaluate") == ""


def statements(text: str) -> Iterator[str]:
    """The import statements of a program that concern this package, magics of notebooks left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("%", "!")))
    for node in ast.walk(ast.parse(lines)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if any(name.split(".")[0] in ("gsq", *ROOMS) for name in names):
                yield ast.unparse(node)


def documents() -> dict[str, str]:
    """The Python of each notebook and of each snippet in a README."""
    found = {}
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        found[path.name] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for path in (REPOSITORY / "README.md", *sorted(REPOSITORY.glob("*/README.md"))):
        found[str(path.relative_to(REPOSITORY))] = "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
    return found


def test_notebooks_and_readmes_import_by_names_that_no_own_package_hides(thesis: Path) -> None:
    lines = sorted({line for text in documents().values() for line in statements(text)})
    assert any("analysis" in line for line in lines) and any("sweeps" in line for line in lines)
    run(thesis, sys.executable, "-c", "\n".join(lines))


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("words", ["import {}", "from {} import fit", "import {}.spec", "-m {}.job"])
def test_a_room_by_its_old_name_says_the_new_one(room: str, words: str) -> None:
    """In the repository's root, where a folder of that name is found."""
    line = words.format(room)
    command = line.split() if line.startswith("-m") else ["-c", line]
    said = run(REPOSITORY, sys.executable, *command, code=1)
    assert f"from gsq import {room}" in said and f"gsq.{room}" in said
