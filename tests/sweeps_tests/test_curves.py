"""Training curves beside the results table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from preamble import PlanOf, WriteRun
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.errors import UserError
from gsq.records.attempt import Attempt
from gsq.records.folder import RunFolder, runs_root
from gsq.sweeps import gather, gather_curves
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import describe, read_table
from gsq.sweeps.tables import curves


def attempt_of(run: RunFolder) -> Attempt:
    path = run.attempt_folders()[-1]
    return Attempt(path, int(path.name))


@pytest.fixture
def plan(plan_of: PlanOf, write_run: WriteRun) -> Plan:
    """Three cells: of two attempts, of one with a discriminator, and not started."""
    plan = plan_of(axes={"groups": [1, 2, 4]})
    SweepFolder(runs_root(), plan.name).write_plan(plan)
    first = attempt_of(write_run(plan.cells[0], "failed", 20, failure="lost"))
    first.log_metrics(10, {"loss": 3.0, "images_per_second": 8.0})
    first.log_metrics(20, {"loss": 2.0})
    second = attempt_of(write_run(plan.cells[0], "done", 350))
    second.log_metrics(20, {"loss": 1.5})
    second.log_metrics(30, {"loss": float("nan"), "of_a_later_gsq": 7.0})
    with (second.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss"')
    other = attempt_of(write_run(plan.cells[1], "running", 10))
    other.log_metrics(10, {"loss": 4.0, "loss_d": 0.5})
    with (other.path / "metrics.jsonl").open("a") as file:
        file.write('7\n{"loss": 1}\n')
    return plan


@pytest.mark.parametrize("chunk", [curves.CHUNK, 1])
def test_each_logged_step_is_a_row(plan: Plan, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(curves, "CHUNK", chunk)
    path = gather_curves(plan.name)
    assert path == Path("results/small-curves.parquet")
    table = pq.read_table(path)
    assert table.column_names == ["signature", "step", "loss", "loss_d", "images_per_second", "of_a_later_gsq"]
    one, two = plan.cells[0].signature, plan.cells[1].signature
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert [row[:2] for row in rows] == [(one, 10), (one, 20), (one, 30), (two, 10)]
    assert rows[0][2:] == (3.0, None, 8.0, None) and rows[1][2:] == (1.5, None, None, None)
    assert math.isnan(rows[2][2]) and rows[2][3:] == (None, None, 7.0)
    assert rows[3][2:] == (4.0, 0.5, None, None)
    by_name = {column.name: column for column in describe(path)}
    assert by_name["images_per_second"].unit == "images/s" and by_name["step"].unit == "steps"
    assert all(column.description for column in by_name.values())
    joined = pd.read_parquet(path).merge(read_table(gather(plan.name)), on="signature", suffixes=("", "_evaluated"))
    assert list(joined["groups"]) == [1, 1, 1, 2]


def test_gather_writes_them_beside_its_table(plan: Plan, folder: Path) -> None:
    done = CliRunner().invoke(app, ["gather", plan.name, "--curves", "--output", "deep/t.parquet"])
    assert done.exit_code == 0 and "wrote deep/t-curves.parquet\n" in done.stdout
    assert sorted(p.name for p in (folder / "deep").iterdir()) == ["t-curves.parquet", "t.parquet"]
    found = json.loads(CliRunner().invoke(app, ["gather", plan.name, "--curves", "--json"]).stdout)
    assert found["curves"] == "results/small-curves.parquet" and Path(found["curves"]).is_file()
    assert "curves" not in json.loads(CliRunner().invoke(app, ["gather", plan.name, "--json"]).stdout)


def test_a_sweep_without_curves_has_an_empty_file_and_an_unknown_one_none(plan_of: PlanOf) -> None:
    SweepFolder(runs_root(), "new").write_plan(plan_of("new"))
    table = pq.read_table(gather_curves("new"))
    assert table.column_names == ["signature", "step"] and len(table) == 0
    with pytest.raises(UserError, match="no sweep 'other'"):
        gather_curves("other")
    assert [p.name for p in Path("results").iterdir()] == ["new-curves.parquet"]


def test_the_results_table_of_another_sweep_is_not_replaced(plan: Plan, plan_of: PlanOf) -> None:
    SweepFolder(runs_root(), "small-curves").write_plan(plan_of("small-curves"))
    table = gather("small-curves")
    with pytest.raises(UserError, match=r"results/small-curves\.parquet: is a results table"):
        gather_curves("small")
    assert set(read_table(table)["sweep"]) == {"small-curves"}
