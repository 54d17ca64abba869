"""Sweeps of a training program of one's own: from YAML to a law, through a kill; and what their YAML cannot say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gsq.errors import UserError
from gsq.sweeps.costing.forecast import forecast
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, describe, read_table
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.tables.gather import gather
from gsq.templates.write import write_part

GSQ = str(Path(sys.executable).with_name("gsq"))
PROGRAM = "gsq.templates.program:train"
SWEEP = """\
name: lm
program: "my_train:train"
base: {text: text.txt, seed: 0}
axes:
  width: [4, 8]
  steps: [200, 400]
columns:
  parameters: 32 * width**2 + 1284 * width + 256
  tokens: 16 * steps
  log_tokens: log2(tokens)
units: {width: channels, loss: nats}
flops: 6 * parameters * tokens
"""
TEXT = "to be, or not to be, that is the question: whether 'tis nobler in the mind to suffer\n" * 20


def gsq(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([GSQ, *words], cwd=folder, env=variables, capture_output=True, text=True, check=False)


def write_sweep(folder: Path) -> None:
    folder.mkdir()
    write_part("program", folder / "my_train.py")
    (folder / "lm.yaml").write_text(SWEEP)
    (folder / "text.txt").write_text(TEXT)


def science(folder: Path) -> pd.DataFrame:
    table = read_table(folder / "results/lm.parquet")
    columns = [*SCIENCE_COLUMNS, "parameters", "width", "text", "log_tokens", "loss", "parts", "state"]
    return table[columns].sort_values(["signature", "step"]).reset_index(drop=True)


@pytest.mark.timeout(600)
def test_a_program_goes_from_yaml_to_a_law_through_a_kill(tmp_path: Path) -> None:
    here, there = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (here, there):
        write_sweep(folder)
    done = gsq(here, "run", "lm.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    with subprocess.Popen(
        [GSQ, "run", "lm.yaml"],
        cwd=there,
        env={**os.environ, "GSQ_RUNS": str(there / "runs"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as driver:
        deadline = time.monotonic() + 300
        while not (saved := list((there / "runs").glob("*/*/attempts/*/checkpoint-*.json"))):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(driver.pid, signal.SIGKILL)
        # Its workers have sessions of their own.
        for path in (there / "runs").glob("*/*/attempts/*/status.json"):
            status = json.loads(path.read_text())
            if status["state"] == "running":
                os.kill(status["pid"], signal.SIGKILL)
    assert saved
    again = gsq(there, "run", "lm.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    pd.testing.assert_frame_equal(science(here), science(there))
    table = read_table(there / "results/lm.parquet")
    assert table["attempts"].max() >= 2
    assert table["tokens"].tolist() == [3200, 6400, 3200, 6400]
    assert set(json.loads(table["parts"][0])) == {"program"}
    columns = {column.name: column for column in describe(there / "results/lm.parquet")}
    found = {name: (columns[name].type, columns[name].unit, columns[name].role) for name in ("width", "text", "loss")}
    assert found == {
        "width": ("int64", "channels", "axis"),
        "text": ("string", "", "axis"),
        "loss": ("float64", "nats", "metric"),
    }
    # Everything after the training works where the module is gone, by the copy that the jobs ran.
    (here / "my_train.py").unlink()
    (here / "results/lm.parquet").unlink()
    law = "loss = E + A / parameters^a + B / tokens^b"
    for words in (("status", "lm"), ("gather", "lm"), ("report", "lm"), ("retry", "lm", "width=4")):
        done = gsq(here, *words)
        assert done.returncode == 0, done.stdout + done.stderr
    fitted = json.loads(gsq(here, "fit", "results/lm.parquet", "--law", law, "--json").stdout)
    assert "loss" in json.dumps(fitted)
    # A change of the program, or of its data, is a new run.
    planned = json.loads(gsq(there, "plan", "lm.yaml", "--json").stdout)["forecast"]
    assert (planned["to_run"], planned["finished"]) == (0, 4)
    with (there / "my_train.py").open("a") as file:
        file.write("# another thought\n")
    planned = json.loads(gsq(there, "plan", "lm.yaml", "--json").stdout)["forecast"]
    assert planned["to_run"] == 4
    assert any("my_train:" in note for note in planned["notes"]), planned["notes"]


def sweep(**more: Any) -> dict[str, Any]:
    """A sweep of the template, as a mapping."""
    Path("text.txt").write_text(TEXT)
    base = {"text": "text.txt", "seed": 0, "steps": 4}
    return {"name": "lm", "program": PROGRAM, "base": base, "axes": {"width": [4, 8]}, **more}


def test_signatures_hash_keys_source_and_data() -> None:
    def signatures(**more: Any) -> list[str]:
        return [cell.signature for cell in make_plan(load_spec(sweep(**more))).cells]

    first = signatures()
    assert len(set(first)) == 2
    # Formulas, units and estimates describe the runs, and 1 and 1.0 are one value.
    described = {"columns": {"tokens": "16 * steps"}, "units": {"width": "channels"}, "seconds": "steps"}
    assert signatures(**described) == first
    assert signatures(axes={"width": [4.0, 8]}) == first
    assert not set(signatures(set={"seed": 1})) & set(first)
    more = sweep()
    Path("text.txt").write_text(TEXT + "more")
    assert not {cell.signature for cell in make_plan(load_spec(more)).cells} & set(first)


def test_where_and_plans_know_keys_and_columns(folder: Path) -> None:
    values = sweep(columns={"tokens": "16 * steps"}, where="tokens <= 64 and width < 8", seconds="10 * width")
    plan = make_plan(load_spec(values))
    assert [cell.axes for cell in plan.cells] == [{"width": 4}]
    assert [text for _, text in plan.dropped] == ["tokens <= 64 and width < 8"]
    # Training as declared, and the start-up.
    found = forecast(plan)
    assert found.estimates[plan.cells[0].signature].seconds == pytest.approx(40 + found.speed.startup_seconds)
    folder_of_plan = SweepFolder(folder / "runs", plan.name)
    folder_of_plan.write_plan(plan)
    assert folder_of_plan.read_plan().cells == plan.cells
    assert folder_of_plan.read_cell(plan.cells[0].signature) == plan.cells[0]
    table = read_table(gather(folder_of_plan))
    assert table["width"].tolist() == [4]
    assert table["state"].tolist() == ["planned"]
    # Keys that no other table has tell configurations apart.
    assert json.loads(table["other_axes"][0]) == {"text": "text.txt"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"program": "train"}, ["program", "'train'", "package.module:train"]),
        ({"program": "no_such_module:train"}, ["program", "no_such_module"]),
        ({"program": "gsq.templates.program:trian"}, ["trian", "train"]),
        ({"axes": {"width": [4, "wide"]}}, ["width", "int64", "string", "'wide'"]),
        ({"axes": {"width": [4, True]}}, ["width", "int64", "bool"]),
        ({"axes": {"width": [{"a": 1}]}}, ["width"]),
        ({"axes": {"device": ["cpu"]}}, ["device", "another name"]),
        ({"axes": {"my width": [4]}}, ["my width"]),
        ({"set": {"rate": float("nan")}}, ["rate", "nan"]),
        ({"cases": [{"width": 4}, {"width": 8, "depth": 2}]}, ["depth", "some cells"]),
        ({"columns": {"tokens": "16 * stepps"}}, ["columns: tokens", "stepps", "steps"]),
        ({"columns": {"width": "steps"}}, ["columns", "width"]),
        ({"columns": {"ratio": "1 / seed"}}, ["columns: ratio", "division"]),
        ({"columns": {"tokens": "10^19"}}, ["tokens", "does not fit"]),
        ({"columns": {"tokens": "10^400"}}, ["columns: tokens", "larger than any float"]),
        ({"set": {"seed": 10**20}}, ["seed", "does not fit"]),
        ({"flops": "-width"}, ["flops", "-width"]),
        ({"where": "widht > 4"}, ["widht", "width"]),
        ({"base": "cpu-tiny"}, ["cpu-tiny"]),
        ({"search": {"space": {"width": [4, 8]}}}, ["search", "program"]),
    ],
)
def test_a_wrong_sweep_of_a_program_is_one_error(more: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make_plan(load_spec(sweep(**more)))
    assert all(word in str(error.value) for word in words), error.value


def test_formulas_have_the_grammar_of_all_expressions() -> None:
    formulas = {"parameters": "12 * width^2", "large": "1 if width in [8] else 0"}
    plan = make_plan(load_spec(sweep(columns=formulas, flops="parameters * 2^10")))
    found = [(cell.config.values["parameters"], cell.config.values["large"], cell.config.flops) for cell in plan.cells]
    assert found == [(192, 0, 192 * 1024), (768, 1, 768 * 1024)]


def test_keys_of_programs_are_refused_without_one() -> None:
    with pytest.raises(UserError, match=r"flops.*program"):
        load_spec({"name": "plain", "base": "cpu-tiny", "flops": "steps"})


def test_a_key_that_had_another_type_is_refused_when_gathering(folder: Path) -> None:
    there = SweepFolder(folder / "runs", "lm")
    for width in (4, "wide"):
        there.write_plan(make_plan(load_spec(sweep(axes={"size": [width]}))))
    with pytest.raises(UserError, match="size"):
        gather(there)
