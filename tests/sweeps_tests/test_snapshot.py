"""Jobs run the source that their sweep was submitted with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gsq.sweeps.running.snapshot
from gsq.errors import UserError
from gsq.runs.provenance import commit
from gsq.runs.stop import StopRequest
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.snapshot import environment, imported_source, take
from gsq.sweeps.running.submit import submit
from gsq.sweeps.running.worker import run_cell

PlanOf = Callable[..., Plan]


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
    assert (first / "gsq" / "config.py").read_bytes() == (checkout / "gsq" / "config.py").read_bytes()
    assert (first / "sweeps" / "configs" / "quickstart.yaml").is_file()
    assert not list(first.rglob("__pycache__"))
    with (checkout / "gsq" / "config.py").open("a") as file:
        file.write("# edited\n")
    second = take(sweep)
    assert second != first and sorted(p.name for p in first.parent.iterdir()) == sorted([first.name, second.name])
    if known := commit():
        assert (first / "COMMIT").read_text() == known


def where(source: Path, folder: Path, python_path: str = "") -> list[str]:
    """What a process started in ``folder`` imports, and the commit that it names."""
    code = "import gsq, sweeps; from gsq.runs.provenance import commit; print(gsq.__file__, sweeps.__file__, commit())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment(source, python_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_copy_is_imported_wherever_a_job_starts(folder: Path, checkout: Path) -> None:
    source = take(SweepFolder(folder / "runs", "s"))
    for start, before in ((checkout, ""), (folder, str(checkout))):
        found = where(source, start, before)
        assert found == [str(source / "gsq" / "__init__.py"), str(source / "sweeps" / "__init__.py"), str(commit())]


def test_a_job_that_imported_other_code_refuses(folder: Path, plan_of: PlanOf) -> None:
    sweep, (cell,) = SweepFolder(folder / "runs", "s"), plan_of(axes={"seed": [0]}).cells
    with pytest.raises(UserError, match=r"imported gsq from .*, not the copy .*elsewhere.*PYTHONPATH"):
        run_cell(sweep, cell, str(folder / "elsewhere"), StopRequest())


def test_cells_of_a_sweep_run_the_copy(folder: Path, plan_of: PlanOf) -> None:
    short = {"steps": 2, "evaluation.num_images": 8, "image_size": 32, "loss.perceptual": "none"}
    done = submit(plan_of(axes={"seed": [0]}, set=short), "local")
    (copy,) = (done.folder.path / "source").iterdir()
    assert [a.kind for a in done.actions] == ["finished"]
    assert (copy / "sweeps" / "__pycache__").is_dir() or os.environ.get("PYTHONDONTWRITEBYTECODE")
