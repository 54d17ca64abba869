"""Jobs run the source that their sweep was submitted with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from preamble import PlanOf

import gsq.sweeps.running.snapshot
from gsq.errors import UserError
from gsq.runs.provenance import commit
from gsq.runs.stop import StopRequest
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.snapshot import environment, imported_source, take
from gsq.sweeps.running.submit import submit
from gsq.sweeps.running.worker import run_cell


@pytest.fixture
def checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that may be edited, as if it had been imported from there."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(imported_source() / "gsq", folder / "checkout" / "gsq", ignore=ignore)
    monkeypatch.setattr(gsq.sweeps.running.snapshot, "imported_source", lambda: folder / "checkout")
    return folder / "checkout"


def test_one_copy_for_each_state_of_the_source(folder: Path, checkout: Path) -> None:
    sweep = SweepFolder(folder / "runs", "s")
    first = take(sweep)
    assert take(sweep) == first
    assert {p.name for p in first.iterdir()} <= {"gsq", "COMMIT"}
    for name in ("gsq/errors.py", "gsq/sweeps/planning/cells.py", "gsq/sweeps/configs/quickstart.yaml"):
        assert (first / name).read_bytes() == (checkout / name).read_bytes()
    for name in (
        "py.typed",
        "__init__.pyi",
        "sweeps/py.typed",
        "analysis/__init__.pyi",
        "analysis/figures/gsq.mplstyle",
    ):
        assert (first / "gsq" / name).is_file(), name
    assert not list(first.rglob("__pycache__")) and not [p for p in first.rglob("*") if p.is_symlink()]
    with (checkout / "gsq" / "sweeps" / "planning" / "cells.py").open("a") as file:
        file.write("# edited\n")
    second = take(sweep)
    assert second != first and sorted(p.name for p in first.parent.iterdir()) == sorted([first.name, second.name])
    if known := commit():
        assert (first / "COMMIT").read_text() == known


def run_python(code: str, folder: Path, variables: dict[str, str], *options: str) -> list[str]:
    """What a program prints that starts in ``folder`` with these variables and options of Python, in words."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


ROOMS = "from gsq import analysis, sweeps; import gsq; print(gsq.__file__, sweeps.__file__, analysis.__file__); "


def rooms_in(source: Path) -> list[str]:
    return [str(source / room / "__init__.py") for room in ("gsq", "gsq/sweeps", "gsq/analysis")]


def test_the_copy_is_imported_wherever_a_job_starts(folder: Path, checkout: Path) -> None:
    source = take(SweepFolder(folder / "runs", "s"))
    code = ROOMS + "from gsq.runs.provenance import commit; print(commit())"
    for start, before in ((checkout, ""), (folder, str(checkout)), (checkout / "gsq", str(checkout / "gsq"))):
        found = run_python(code, start, environment(source, before))
        assert found == [*rooms_in(source), str(commit())]


def test_the_copy_alone_is_the_whole_package(folder: Path, checkout: Path) -> None:
    """On a node that has the libraries but no gsq, neither installed nor as a checkout: PYTHONPATH is all it has."""
    source = take(SweepFolder(folder / "runs", "s"))
    shutil.rmtree(checkout)
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Without the module site no .pth file is read, so no editable installation is found.
    alone = environment(source, os.pathsep.join(libraries))
    code = """
import importlib.util, pkgutil, gsq
found = ["gsq", *(m.name for m in pkgutil.walk_packages(gsq.__path__, "gsq.")) ]
print(len(found), *(name for name in found if not importlib.util.find_spec(name).origin.startswith(gsq.__path__[0])))
"""
    count, *elsewhere = run_python(code, folder, alone, "-S")
    assert not elsewhere and int(count) == len(list((source / "gsq").rglob("*.py")))
    assert run_python(ROOMS, folder, alone, "-S") == rooms_in(source)
    plain = {"PYTHONPATH": os.pathsep.join(libraries)}
    missing = "import importlib.util; print(*(importlib.util.find_spec(name) for name in ('sweeps', 'analysis')))"
    assert run_python(missing, folder, {**plain, "PYTHONSAFEPATH": "1"}, "-S") == ["None", "None"]
    # What a worker needs before it looks at its cell, and a sweep that ships with the package.
    code = "import gsq.sweeps.running.worker, gsq.sweeps.running.array_job; from gsq.sweeps import load_spec; "
    assert run_python(code + "print(load_spec('quickstart').name)", folder, alone, "-S") == ["quickstart"]


def test_a_job_that_imported_other_code_refuses(folder: Path, plan_of: PlanOf) -> None:
    sweep, (cell,) = SweepFolder(folder / "runs", "s"), plan_of(axes={"seed": [0]}).cells
    with pytest.raises(UserError, match=r"gsq from .*sweep's copy .*elsewhere.*PYTHONPATH"):
        run_cell(sweep, cell, str(folder / "elsewhere"), StopRequest())


def test_cells_of_a_sweep_run_the_copy(folder: Path, plan_of: PlanOf) -> None:
    short = {"steps": 2, "evaluation.num_images": 8, "image_size": 32, "loss.perceptual": "none"}
    done = submit(plan_of(axes={"seed": [0]}, set=short), "local")
    (copy,) = (done.folder.path / "source").iterdir()
    assert [a.kind for a in done.actions] == ["finished"]
    assert (copy / "gsq" / "sweeps" / "running" / "__pycache__").is_dir() or os.environ.get("PYTHONDONTWRITEBYTECODE")
