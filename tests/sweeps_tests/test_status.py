"""The state of a sweep against its YAML file, and the list of all sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from preamble import PlanOf, WriteRun
from verbs_at_work import gsq

from gsq.errors import UserError
from gsq.records.attempt import RUNNING
from gsq.sweeps.planning.cells import Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.sweep import load_spec

pytestmark = pytest.mark.usefixtures("cpu")


# Status and lists


def test_status_of_an_edited_yaml_names_the_cells_that_were_not_submitted(four: Plan, folder: Path) -> None:
    values = {"name": four.name, "base": "cpu-tiny", "axes": {"groups": [1, 2, 4], "model.channels": [16, 32]}}
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    shown = gsq("status", "small.yaml")
    assert shown.exit_code == 0
    assert "2 cells of small.yaml are not submitted" in " ".join(shown.stdout.split()) and "G=4" in shown.stdout
    found = json.loads(gsq("status", "small.yaml", "--json").stdout)
    new = {cell.signature for cell in make_plan(load_spec("small.yaml")).cells} - {c.signature for c in four.cells}
    assert set(found["not_submitted"]) == new and len(new) == 2
    values["axes"]["groups"] = [1, 2]
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    assert "not submitted" not in gsq("status", "small.yaml").stdout
    assert "not_submitted" not in json.loads(gsq("status", four.name, "--json").stdout)


def test_without_a_sweep_all_are_listed_with_the_cells_that_run(
    four: Plan, folder: Path, plan_of: PlanOf, write_run: WriteRun
) -> None:
    other = plan_of("other", axes={"groups": [8]})
    SweepFolder(folder / "runs", other.name).write_plan(other)
    (cell,) = other.cells
    write_run(cell, RUNNING, 3)
    (folder / "runs" / "sweeps" / "torn").mkdir()
    (folder / "runs" / "sweeps" / "torn" / "plan-0001-000000000000.jsonl").write_text("{")
    for verb in ("status", "logs"):
        shown = gsq(verb)
        assert shown.exit_code == 0 and all(name in shown.stdout for name in ("small", "other", "torn"))
        assert cell.signature in shown.stdout and "3/300" in shown.stdout, "it runs"
        assert "1 done, 1 failed, 1 stopped" in shown.stdout
    found = {one["sweep"]: one for one in json.loads(gsq("status", "--json").stdout)["sweeps"]}
    assert found["small"]["counts"] == {"done": 1, "failed": 1, "stopped": 1, "planned": 1}
    assert [one["signature"] for one in found["other"]["running"]] == [cell.signature] and found["torn"]["problem"]


def test_nothing_to_list(folder: Path) -> None:
    assert "no sweep below" in gsq("status").stdout and "no sweep below" in gsq("logs").stdout
    with pytest.raises(UserError, match="--watch"):
        gsq("status", "--watch")
