"""Builds wheel and sdist, checks them, installs the wheel into an empty environment and works from there.

    python tests/release.py build      # dist/*.whl, dist/*.tar.gz, checked
    python tests/release.py install    # that wheel in a new environment: a cut-down quickstart in an empty folder

The environment has the versions of constraints.txt. ``make dist`` and ``make installed`` call it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from packaging.metadata import Metadata

from gsq.sweeps.running.snapshot import source_files

REPOSITORY = Path(__file__).resolve().parents[1]
DIST = REPOSITORY / "dist"
# Files that are no modules, and that the package must have.
DATA = (
    *("gsq/py.typed", "gsq/sweeps/py.typed", "gsq/analysis/py.typed"),
    *("gsq/__init__.pyi", "gsq/sweeps/__init__.pyi", "gsq/analysis/__init__.pyi"),
    *("gsq/sweeps/configs/*.yaml", "gsq/sweeps/configs/paper/*.yaml", "gsq/sweeps/configs/clusters/*.yaml"),
    *(
        "gsq/analysis/*.mplstyle",
        "gsq/analysis/*.parquet",
        "gsq/analysis/*.css",
        "gsq/analysis/*.js",
        "gsq/analysis/*.html",
    ),
)
# The first six of the quickstart's cells, with few steps and images.
CUT = "steps: 6, evaluation.num_images: 16, loss.discriminator_start: 3, execution.log_every: 2"


def say(text: str) -> None:
    print(f"-- {text}", flush=True)


def check(holds: bool, text: str) -> None:
    if not holds:
        raise SystemExit(f"release: {text}")


def build() -> None:
    """Sdist, and the wheel from the sdist, so that what is published builds."""
    shutil.rmtree(DIST, ignore_errors=True)
    for leftover in ("build", "gsq.egg-info"):
        shutil.rmtree(REPOSITORY / leftover, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(DIST), str(REPOSITORY)], check=True, stdout=sys.stderr
    )
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    version = re.search(r'__version__ = "(.+)"', (REPOSITORY / "gsq/__init__.py").read_text())[1]  # type: ignore[index]
    check(wheel.name == f"gsq-{version}-py3-none-any.whl", f"{wheel.name} is not of version {version}")
    check(f"version: {version}\n" in (REPOSITORY / "CITATION.cff").read_text(), f"CITATION.cff is not of {version}")
    files = set(zipfile.ZipFile(wheel).namelist())
    # In the repository two rooms are links, in what is published they are folders of the one package.
    wanted = {name.as_posix() for name in source_files(REPOSITORY)}
    for name in DATA:
        check(any(fnmatch(file, name) for file in wanted), f"the package has no {name}")
    check(wanted <= files, f"the wheel lacks {sorted(wanted - files)}")
    extra = {name for name in files - wanted if ".dist-info/" not in name}
    check(not extra, f"the wheel has {sorted(extra)}, which is not of the package gsq")
    top = zipfile.ZipFile(wheel).read(f"gsq-{version}.dist-info/top_level.txt").decode().split()
    check(top == ["gsq"], f"the wheel installs the top-level packages {top}, not gsq alone")
    check(any(name.endswith("licenses/LICENSE") for name in files), "the wheel lacks the LICENSE")
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    inside = {name for name, member in members.items() if member.isfile()}
    check({"LICENSE", "README.md", "pyproject.toml", *wanted} <= inside, "the sdist lacks files")
    text = zipfile.ZipFile(wheel).read(f"gsq-{version}.dist-info/METADATA")
    # Raises where a field is not what an index takes.
    found = Metadata.from_email(text, validate=True)
    check(found.license_expression == "Apache-2.0" and bool(found.description), "metadata lacks licence or description")
    check(found.description_content_type == "text/markdown", "the description is no markdown")
    for file in (wheel, sdist):
        say(f"{file.relative_to(REPOSITORY)}: {file.stat().st_size / 1000:.0f} kB")


def install() -> None:
    """Do as a user would: a new environment, an empty folder, the commands of the README."""
    (wheel,) = DIST.glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        began = time.monotonic()
        venv.create(place / "venv", with_pip=True)
        python, gsq = place / "venv/bin/python", place / "venv/bin/gsq"
        # What is on the PYTHONPATH here would count as installed there.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GSQ_", "PYTHON"))}
        pip = [python, "-m", "pip", "install", "-qq", "--no-compile", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(REPOSITORY / "constraints.txt"), str(wheel)], check=True, env=environment)
        subprocess.run([python, "-m", "pip", "check"], check=True, stdout=subprocess.DEVNULL, env=environment)
        say(f"installed in {time.monotonic() - began:.0f} s")
        work = place / "work"
        work.mkdir()
        # A user's own packages, which must not get in the way.
        for name in ("analysis", "sweeps"):
            (work / name).mkdir()
            (work / name / "__init__.py").write_text("raise ImportError('the user's own package was imported')\n")
        environment |= {"HOME": folder, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}

        def run(*words: str | Path, code: int | None = 0) -> str:
            done = subprocess.run(
                words,
                cwd=work,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            shown = " ".join(map(str, words))
            check(code in (done.returncode, None), f"{shown}: exit code {done.returncode}, not {code}\n{done.stdout}")
            check(str(REPOSITORY) not in done.stdout, f"{shown} speaks of the source tree\n{done.stdout}")
            return done.stdout

        began = time.monotonic()
        check(wheel.name.split("-")[1] in run(gsq, "--version"), "gsq --version is another")
        check(run(gsq, "--version") == run(python, "-m", "gsq.cli", "--version"), "python -m gsq.cli is another")
        run(python, "-c", "from gsq import analysis, sweeps; analysis.fit, sweeps.plan")
        # A SLURM that does not answer, or little space, is no matter of this installation.
        found = json.loads(run(gsq, "doctor", "--json", code=None))["checks"]
        wrong = [c for c in found if c["state"] == "problem" and c["area"] not in ("slurm", "folders", "machine")]
        check(not wrong, f"gsq doctor: {wrong}")
        at = next(c["found"] for c in found if c["name"] == "gsq")
        check(str(place / "venv") in at, f"gsq doctor looks at another installation: {at}")
        check("12 cells" in run(gsq, "plan", "quickstart"), "the quickstart is not in the wheel")
        check("20 cells" in run(gsq, "plan", "paper/fig4"), "the paper's sweeps are not in the wheel")
        shipped = run(
            python, "-c", "from gsq.sweeps.spec.shipped import configs_folder; print(configs_folder())"
        ).strip()
        cut = (
            (Path(shipped) / "quickstart.yaml")
            .read_text()
            .replace("base: cpu-tiny\n", f"base: cpu-tiny\nset: {{{CUT}}}\n")
        )
        (work / "quickstart.yaml").write_text(cut)
        output = run(gsq, "run", "quickstart.yaml", "--cells", "6")
        check("power_law_bpp  rfid = " in output, f"gsq run fitted no law\n{output}")
        for name in (
            "quickstart.parquet",
            "quickstart-scaling.png",
            "quickstart-scaling.svg",
            "quickstart-samples.png",
        ):
            check((work / "results" / name).is_file(), f"gsq run made no results/{name}")
        check("6 done" in run(gsq, "status", "quickstart"), "cells are not done")
        for file in work.rglob("*"):
            if file.is_file():
                check(str(REPOSITORY).encode() not in file.read_bytes(), f"{file} refers to the source tree")
        say(f"a cut-down quickstart, from an empty folder: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    actions = {"build": build, "install": install}
    check(len(sys.argv) == 2 and sys.argv[1] in actions, "usage: release.py build | install")
    actions[sys.argv[1]]()
