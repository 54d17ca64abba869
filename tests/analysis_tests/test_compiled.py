"""What compiled formulas keep between processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gsq.analysis.laws import compiled
from gsq.analysis.laws.form import Form
from gsq.analysis.laws.formula import read_formula

LAW = "E + A / N^a + B * exp(-D / tau) + min(c, k * N, D)"
COLUMNS = {"N": np.linspace(2.0, 60, 7), "D": np.linspace(50.0, 3, 7)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GSQ_CACHE", str(tmp_path))
    return tmp_path / "laws"


def values(text: str = LAW) -> list[np.ndarray]:
    form = Form(read_formula(text, tuple(COLUMNS)))
    data = form.table(COLUMNS)
    theta = np.random.default_rng(0).uniform(0.5, 2, (3, form.count))
    return [*form.both(theta, data, form.centre(data)), *form.basis(theta, data, form.centre(data))]


def test_a_second_process_has_the_same_functions_without_sympy(folder: Path) -> None:
    program = (
        "import sys, numpy as np, test_compiled as t\n"
        "found = t.values()\n"
        "print('sympy' in sys.modules, *(part.tobytes().hex() for part in found))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    said = [
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
        for _ in range(2)
    ]
    (first, *numbers), (second, *again) = (one.stdout.split() for one in said)
    assert (first, second) == ("True", "False") and numbers == again
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_what_others_may_have_written_is_not_run(folder: Path) -> None:
    wanted = values()
    (kept,) = folder.iterdir()
    content = json.loads(kept.read_text())
    content["both"] = "def _lambdifygenerated(*_): raise SystemError('run')"
    kept.write_text(json.dumps(content))
    with pytest.raises(SystemError):  # so this is what would be run
        values()
    kept.chmod(0o620)
    for one, other in zip(values(), wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert kept.stat().st_mode & 0o777 == 0o600, "it was replaced"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"data": 3}'])
def test_a_damaged_file_is_written_anew(folder: Path, content: str) -> None:
    values()
    (kept,) = folder.iterdir()
    good = json.loads(kept.read_text())
    kept.write_text(content)
    values()
    again = json.loads(kept.read_text())
    assert again.keys() == good.keys() and again["terms"] == good["terms"]


def test_without_a_place_for_it_the_formula_is_compiled_all_the_same(folder: Path) -> None:
    folder.write_text("a file, not a folder")
    assert np.isfinite(values()[0]).all()


def test_other_formulas_columns_and_centred_amplitudes_have_files_of_their_own(folder: Path) -> None:
    formula = read_formula("A * N^a", ("N",))
    for centred in (None, (), ("A",)):
        Form(formula, centred)
    Form(read_formula("A * D^a", ("D",)))  # over another column it is the same function
    assert len(list(folder.iterdir())) == 3
    indexed = read_formula("A[kind] * N^a", ("N", "kind"))
    Form(indexed, None, {"kind": ("x", "y")})
    Form(indexed, None, {"kind": ("x", "z")})
    assert len(list(folder.iterdir())) == 5


def test_the_oldest_of_too_many_files_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MOST", 4)
    names: list[set[Path]] = [set()]
    for i in range(5):
        values(f"A * N + {i + 2} * B")
        for new in {*folder.iterdir()} - names[-1]:
            os.utime(new, (i, i))
        names.append({*folder.iterdir()})
    assert len(names[-1]) == 3 and names[-1] < names[-2] | names[-1], "the two oldest are gone"
    assert not names[-1] & names[2]


def test_slopes_of_a_minimum_of_three_are_exact() -> None:
    form = Form(read_formula("min(a, b * N, D / c)", tuple(COLUMNS)))
    data = form.table(COLUMNS)
    theta = np.random.default_rng(1).uniform([10, 0.5, 1], [40, 2, 4], (5, 3))
    slope = form.both(theta, data, form.centre(data))[1]
    step = 1e-6 * np.eye(3)
    for i in range(3):
        up, down = (form.both(theta + sign * step[i], data, form.centre(data))[0] for sign in (1, -1))
        np.testing.assert_allclose(slope[i], (up - down) / 2e-6, atol=1e-6)
    assert all(np.abs(slope[i]).max() > 0 for i in range(3))
