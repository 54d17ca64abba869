"""Device time of cells, failed attempts included."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from preamble import PlanOf, WriteRun
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.tables.gather import gathered


def submitted(plan: Plan) -> None:
    from gsq.records.folder import runs_root

    SweepFolder(runs_root(), plan.name).write_plan(plan)


@pytest.fixture
def plan(plan_of: PlanOf, write_run: WriteRun) -> Plan:
    """Four cells: done at the third attempt (the second was killed), diverged, lost, never tried. An attempt takes a
    second, of each of its processes."""
    plan = plan_of(axes={"groups": [1, 2, 4, 8]})
    submitted(plan)
    first, second, third, _ = plan.cells
    write_run(first, "failed", 10, heartbeat=1000.0, failure="preempted", processes=2)
    write_run(first, "running", 20, heartbeat=1010.0)
    write_run(first, "done", 350, heartbeat=1020.0, processes=2)
    write_run(second, "failed", 5, heartbeat=1000.0, failure="diverged")
    write_run(third, "running", 5, heartbeat=1000.0)
    return plan


def test_each_attempt_counts_and_those_that_failed_apart(plan: Plan) -> None:
    spent = gathered(plan.name).spent
    first, second, third, fourth = (cell.signature for cell in plan.cells)
    assert spent.seconds == {first: 5.0, second: 1.0, third: 1.0} and fourth not in spent.failed
    assert spent.failed == {first: 3.0, second: 1.0, third: 1.0}, "the killed and the lost attempt have failed"
    assert spent.to_dict()["device_hours"] == pytest.approx(7 / 3600)
    assert gathered(plan.name).spent == spent, "also where the table was left as it is"
    frame = read_table(gathered(plan.name).table).set_index("signature")
    assert frame["failed_seconds"].dropna().to_dict() == spent.failed and pd.isna(frame["failed_seconds"][fourth])


def test_gather_says_what_was_spent(plan: Plan) -> None:
    done = CliRunner().invoke(app, ["gather", plan.name])
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("spent")]
    assert "7 device seconds on 3 cells" in line and "1 second to 5 seconds a cell" in line
    assert "5 device seconds of it in " in line
    values = json.loads(CliRunner().invoke(app, ["gather", plan.name, "--json"]).stdout)
    assert values["spent"]["failed_hours"] == pytest.approx(5 / 3600) and len(values["spent"]["cells"]) == 3


def test_nothing_tried_is_nothing_spent(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1]})
    submitted(plan)
    assert gathered(plan.name).spent.line == ""
    assert "spent" not in CliRunner().invoke(app, ["gather", plan.name]).stdout
