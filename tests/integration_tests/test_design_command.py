"""``gsq design`` and ``gsq plan --power``: from a measured sweep to the next one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from gsq.analysis import AnalysisError
from gsq.cli.main import app
from gsq.errors import UserError
from gsq.sweeps.planning.cells import axis_columns, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import write_table
from gsq.sweeps.spec.sweep import load_spec

Gsq = Callable[..., Any]
SWEEP = {
    "name": "grid",
    "base": "cpu-tiny",
    "set": {"steps": 200},
    "axes": {"groups": [1, 2, 4], "codebook_size": [16, 256], "seed": [0, 1]},
}


@cache
def measured_rows() -> list[dict[str, object]]:
    """Cells of the sweep with codebooks of 16 rows, and one that a sweep of other axes made; rfid is made up."""
    also = {**SWEEP, "axes": {"downsample": [8], "seed": [0]}}
    cells = [c for c in make_plan(load_spec(SWEEP)).cells if c.config.quantizer.codebook_size == 16]
    rows = []
    for number, cell in enumerate([*cells, *make_plan(load_spec(also)).cells]):
        axes = axis_columns(cell.config, cell.data_label)
        rfid = 9 * axes["bits_per_pixel"] ** -0.8 * math.exp(0.03 * math.sin(7 * number))
        rows.append(
            {
                "sweep": "grid",
                "signature": cell.signature,
                "step": 200,
                "protocol": "p",
                "state": "done",
                "device_seconds": 60.0,
                "rfid": rfid,
                **{k: v for k, v in axes.items() if v is not None},
            }
        )
    return rows


@pytest.fixture
def gsq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gsq:
    """Runs ``gsq WORDS`` in a folder with grid.yaml, its table, and somebody else's runs.csv and cells.csv."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    Path("grid.yaml").write_text(yaml.safe_dump(SWEEP))
    write_table(measured_rows(), Path("results/grid.parquet"))
    table = pd.DataFrame({"x": [1.0, 2, 4, 8, 16], "loss": [1.0, 0.72, 0.49, 0.36, 0.25]})
    table.to_csv("runs.csv", index=False)
    pd.DataFrame({"x": [32.0, 64.0, 1.0], "hours": [2.0, 8.0, 1.0]}).to_csv("cells.csv", index=False)
    return lambda *words: CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})


def design(gsq: Gsq, *words: str) -> dict[str, Any]:
    done = gsq("design", *words, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_the_sweep_that_is_written_can_be_planned_and_holds_nothing_that_is_done(gsq: Gsq) -> None:
    words = ["grid.yaml", "--target", "parameter=alpha", "--budget", "1", "--output", "out/next.yaml"]
    done = gsq("design", *words, "--figure", "out/next.png")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Target: the interval of alpha" in done.output and "device hours" in done.output
    assert "from 3 degrees of freedom of seeds" in done.output
    assert "gsq plan out/next.yaml" in done.output and Path("out/next.svg").is_file()
    assert sorted(p.name for p in Path("out").iterdir()) == ["next.png", "next.svg", "next.yaml"]
    written = yaml.safe_load(Path("out/next.yaml").read_text())
    assert written["base"] == "cpu-tiny" and written["set"] == {"steps": 200} and written["name"] == "next"
    plan = make_plan(load_spec("out/next.yaml"))
    assert len(plan.cells) == len(written["cases"]) > 2 and not plan.merged
    had = set(pd.read_parquet("results/grid.parquet")["signature"])
    assert not had & {cell.signature for cell in plan.cells}
    found = design(gsq, *words[:-2])
    assert found["cases"] == written["cases"] and found["unit"] == "device hours"
    planned = json.loads(gsq("plan", "grid.yaml", "--json").stdout)["cells"]
    (seconds,) = [cell["seconds"] for cell in planned if cell["signature"] == plan.cells[0].signature]
    assert found["runs"][0]["cost"] == pytest.approx(seconds / 3600)
    assert found["runs"][-1]["total"] == pytest.approx(sum(run["cost"] for run in found["runs"]))
    assert found["cost"] <= 1
    assert found["after"] < found["before"]


def test_further_seeds_are_of_cells_of_the_sweep_and_of_others_that_its_base_gives(gsq: Gsq) -> None:
    words = ["grid", "--candidates", "grid.yaml", "--target", "noise", "--budget", "100", "--seeds", "3"]
    found = design(gsq, *words)
    # Two seeds are measured of three cells, one of the cell of the other sweep; unmeasured cells tell nothing.
    again = [case for case in found["cases"] if case.get("codebook_size") == 16]
    assert again and all(case["seed"] == 2 for case in again)
    assert all(run["run"] >= 2 for run in found["runs"])
    other = [case for case in found["cases"] if case.get("downsample") == 8]
    assert [case["seed"] for case in other] == [1, 2] and found["before"] is not None
    Path("of-them.yaml").write_text(yaml.safe_dump({**SWEEP, "axes": {}, "cases": found["cases"]}))
    assert not make_plan(load_spec("of-them.yaml")).merged


def test_candidates_of_any_table(gsq: Gsq) -> None:
    law = ["--law", "loss = A * x^b", "--target", "parameter=b", "--candidates", "cells.csv", "--cost", "hours"]
    found = design(gsq, "runs.csv", *law, "--budget", "10")
    assert [run["cell"]["x"] for run in found["runs"]] == [32, 64] and found["unit"] == "hours"
    done = gsq("design", "runs.csv", *law, "--budget", "10", "--output", "o.csv")
    assert done.exit_code == 0 and list(pd.read_csv("o.csv")["x"]) == [32, 64]
    pd.DataFrame({"x": [3.0, 6, 12, 24], "loss": [0.57, 0.41, 0.29, 0.2]}).to_csv("more.csv", index=False)
    both = design(gsq, "runs.csv", "more.csv", *law, "--budget", "10")
    assert both["before"] < found["before"]


def test_target_rows_several_budgets_and_the_average(gsq: Gsq) -> None:
    pd.DataFrame({"x": [128.0, 256.0], "loss": [0.1, 0.1], "note": ["a", "b"]}).to_csv("large.csv", index=False)
    words = ["runs.csv", "--law", "loss = A * x^b", "--candidates", "cells.csv", "--cost", "hours", "--budget", "3"]
    rows = [*words, "--target-rows", "large.csv", "--budget", "10"]
    found = design(gsq, *rows, "--criterion", "average", "--cost-exponent", "0.4", "--optima", "2", "--seeds", "1")
    assert found["target"]["rows"] == 2 and found["criterion"] == "average" and found["budget"] == 10
    assert [one["budget"] for one in found["checkpoints"]] == [3, 10]
    assert found["checkpoints"][0]["cost"] <= 3 < found["checkpoints"][1]["cost"] <= 10
    assert found["before"] < design(gsq, *rows)["before"], "the widest interval is wider than their average"
    shown = gsq("design", *rows)
    assert "2 target rows" in shown.output and "within 3 hours:" in shown.output
    for wrong in ([], ["--target", "noise", "--target-rows", "large.csv"]):
        assert "--target TARGET and --target-rows FILE" in str(gsq("design", *words, *wrong).exception)
    assert "none.csv" in str(gsq("design", *words, "--target-rows", "none.csv").exception)
    refused = gsq("design", *rows, "--criterion", "best")
    assert refused.exit_code == 2 and "widest" in refused.output


def test_laws_are_told_apart(gsq: Gsq) -> None:
    found = design(gsq, "grid.yaml", "--target", "discriminate", "--budget", "1")
    assert len(found["laws"]) > 1 and sum(law["weight"] for law in found["laws"]) == pytest.approx(1)
    assert found["before"] == pytest.approx(1 - sum(law["weight"] ** 2 for law in found["laws"]))


TO_ALPHA = ["--target", "parameter=alpha", "--budget", "1"]
TO_NOISE = ["--target", "noise", "--budget", "1", "--candidates"]
MISTAKES = [
    (["grid", *TO_ALPHA], "--candidates: name a sweep YAML"),
    (["grid.yaml", "--target", "parameter=gamma", "--budget", "1"], "no law has a parameter 'gamma'"),
    (["grid.yaml", "--target", "alpha", "--budget", "1"], "target 'alpha' is none of: parameter=NAME"),
    (["grid.yaml", "--target", "predict groups=8", "--budget", "1"], "power_law_bpp reads bits_per_pixel"),
    (["grid.yaml", "--target", "parameter=alpha", "--budget", "1e-6"], "affords none of"),
    (["grid.yaml", *TO_ALPHA, "--cost", "x"], "in device hours"),
    (["grid.yaml", *TO_ALPHA, "--output", "a.txt"], "must end in .yaml"),
    (["grid.yaml", *TO_ALPHA, "--output", "grid.yaml"], "--output: grid.yaml"),
    (["none.parquet", *TO_NOISE, "grid.yaml"], "no such results table"),
    (["runs.csv", "--law", "loss = A * x^b", *TO_NOISE, "cells.csv"], "--cost: name the column of cells.csv"),
    (["runs.csv", *TO_NOISE, "cells.csv", "--cost", "x", "--output", "a.yaml"], "add --base"),
    (["mixed.parquet", *TO_NOISE, "grid.yaml"], "mixes 2 evaluation protocols"),
    (["grid", *TO_NOISE, "search-optimizer"], "is a search"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_error_and_nothing_is_written(gsq: Gsq, words: list[str], message: str) -> None:
    rows = pd.read_parquet("results/grid.parquet").to_dict("records")
    mixed = [{**row, "protocol": name} for row in rows for name in "ab"]
    if "mixed.parquet" in words:
        write_table(
            [{k: v for k, v in row.items() if v == v and v is not None} for row in mixed], Path("mixed.parquet")
        )
    before = sorted((p, p.stat().st_mtime_ns) for p in Path().rglob("*"))
    done = gsq("design", *words)
    assert isinstance(done.exception, UserError | AnalysisError) and done.exception.exit_code == 2, done.output
    assert message in str(done.exception) and "\n" not in str(done.exception)
    assert sorted((p, p.stat().st_mtime_ns) for p in Path().rglob("*")) == before


def test_power_of_a_grid_before_its_first_run(gsq: Gsq) -> None:
    done = gsq("plan", "grid.yaml", "--power", "--noise", "0.03")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "12 runs of 6 configurations" in done.output and "seed noise 3.0%" in done.output
    assert "expected 95% interval" in done.output
    assert "paper_eq14 holds for groups = 1 only" in done.output
    one, more = (
        json.loads(
            gsq("plan", sweep, "--power", "--json", "--law", "power_law_bpp", "--coefficient", "alpha=0.5").stdout
        )
        for sweep in ("grid.yaml", _with_seeds(8))
    )
    narrow, wide = (found["power"][0]["parameters"]["alpha"]["half"] for found in (more, one))
    assert narrow == pytest.approx(wide / 2), "four times the seeds"
    assert one["power"][0]["coefficients"]["alpha"] == 0.5
    for words, message in (
        (["--law", "saturating"], "--law works only with --power"),
        (["--power", "--coefficient", "alpha"], "'alpha' is not NAME=NUMBER"),
        (["--power", "--coefficient", "tau=1"], "--coefficient tau: "),
        (["--power", "--law", "paper_eq14"], "holds for groups = 1 only"),
    ):
        error = gsq("plan", "grid.yaml", *words).exception
        assert isinstance(error, UserError | AnalysisError) and message in str(error)
    # Neither the images nor the weights of the paper's runs are here, and none is needed.
    assert "alpha = 2.839" in gsq("plan", "paper/fig4", "--power", "--law", "paper_eq14").output
    error = gsq("plan", "search-optimizer", "--power").exception
    assert isinstance(error, UserError) and "is a search" in str(error)


def _with_seeds(count: int) -> str:
    axes = {**SWEEP["axes"], "seed": list(range(count))}  # type: ignore[dict-item]
    Path("more.yaml").write_text(yaml.safe_dump({**SWEEP, "axes": axes}))
    return "more.yaml"


def test_a_submitted_sweep_is_candidates_by_its_name(gsq: Gsq, tmp_path: Path) -> None:
    SweepFolder(tmp_path / "runs", "grid").write_plan(make_plan(load_spec(SWEEP)))
    words = ["--target", "parameter=alpha", "--budget", "1"]
    by_file, by_name = (
        design(gsq, name, *words, "--output", f"{n}.yaml") for n, name in enumerate(("grid.yaml", "grid"))
    )
    assert by_name["runs"] == by_file["runs"] and by_name["candidates"] == "grid"
    first, second = ({cell.signature for cell in make_plan(load_spec(f"{n}.yaml")).cells} for n in (0, 1))
    assert first == second, "the sweeps that are written have the same runs"
    done = gsq("design", "runs.csv", *words, "--law", "loss = E + A / x^a")
    assert isinstance(done.exception, UserError) and "--candidates" in str(done.exception)


@pytest.mark.parametrize("option", ["--output", "--figure"])
def test_an_output_that_cannot_be_made_is_refused_before_the_work(gsq: Gsq, option: str) -> None:
    Path("there.yaml").mkdir()
    Path("file").write_text("")
    for name in ("there.yaml", "file/below.yaml"):
        error = gsq("design", "grid.yaml", "--target", "parameter=alpha", "--budget", "1", option, name).exception
        assert isinstance(error, AnalysisError) and str(error).startswith(f"{option}: ") and name[:4] in str(error)


def test_replay_budgets_scores_held_out_rows_at_shares_of_the_cost(gsq: Gsq) -> None:
    def table(sizes: list[int], name: str) -> None:
        cells = pd.DataFrame([(n, d) for n in sizes for d in (1, 4, 16, 64)], columns=["N", "D"])
        loss = 1.7 + 4.0 * cells["N"] ** -0.4 + 6.0 * cells["D"] ** -0.3
        cells.assign(loss=loss, flops=cells["N"] * cells["D"]).to_csv(name, index=False)

    table([1, 4, 16, 64], "pool.csv")
    table([256], "far.csv")
    words = ["design", "pool.csv", "--law", "loss = E + A / N^a + B / D^b", "--cost", "flops", "--replay-budgets"]
    spent = ["--budget", "0.3", "--budget", "0.9", "--target-rows", "far.csv"]
    document = json.loads(gsq(*words, *spent, "--cost-exponent", "0.5", "--json").output)
    assert [one["budget"] for one in document["budgets"]] == [0.3, 0.9] and document["budgets"][1]["r2"] > 0.99
    assert all(one["spent"] <= one["budget"] for one in document["groups"])
    assert "held-out R2" in gsq(*words, *spent).output
    for more, message in (
        (["--budget", "5", "--target-rows", "far.csv"], "shares of the pool's cost"),
        (["--budget", "0.5"], "--target-rows"),
        ([*spent, "--candidates", "pool.csv"], "--candidates"),
    ):
        error = gsq(*words, *more).exception
        assert isinstance(error, UserError | AnalysisError) and message in str(error)
    error = gsq("design", "pool.csv", "--by", "N", "--target-rows", "far.csv", "--budget", "1").exception
    assert isinstance(error, UserError) and "--by" in str(error)
