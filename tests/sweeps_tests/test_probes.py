"""Probes of a sweep: columns on the evaluation's own row, made once, at the end of a run or later."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from test_reevaluate import TINY
from typer.testing import CliRunner

from gsq.analysis import AnalysisError, fit
from gsq.analysis.tables.table import measured
from gsq.cli.main import app
from gsq.config.probe import SIZES, ProbeSize
from gsq.errors import UserError
from gsq.records.folder import RunFolder, probed, runs_root
from gsq.records.read import read_probes, read_run
from gsq.runs.execute import execute
from gsq.sweeps import gather, plan, read_table, submit
from gsq.sweeps.costing.cost import estimate, probe_seconds, speed
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.planning.protocols import lacking
from gsq.sweeps.running.reevaluate import _changed, _Request
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.study import search_status


@pytest.mark.filterwarnings("ignore:rfid over")
def test_probes_become_columns_of_the_evaluations_own_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", ProbeSize(16, 1, 1, 8, 1, 1, positions=64, steps=8, learning_rate=0.01))
    monkeypatch.setattr("gsq.sweeps.tables.gather.SETTLED_SECONDS", -1.0)
    settings = {**TINY, "evaluation.probe": "tiny", "evaluation.probe_images": 100}
    spec = {"name": "small", "base": "cpu-tiny", "set": settings, "axes": {"groups": [1, 2]}}
    cells = plan(load_spec(spec))
    SweepFolder(runs_root(), "small").write_plan(cells)
    runs = [execute(cell.config, runs_root()) for cell in cells.cells]
    frame = read_table(gather("small"))
    assert list(frame["probe"]) == ["tiny"] * 2 and frame["gfid"].notna().all() and len(frame) == 2
    assert frame["evaluated_by"].isna().all() and frame["probe_protocol"].nunique() == 1
    folder_of = SweepFolder(runs_root(), "small")
    records = folder_of.records([cell.signature for cell in cells.cells])
    # Measured probes correct the estimates of others: two of equal cost, but for the noise of a clock.
    costs = [one["cost"] for run in runs for one in read_probes(run)]
    assert len(costs) == 2 and {one["device"] for one in costs} == {"cpu"}
    rate = speed(cells.cells, records, "cpu", folder_of)
    wanted = statistics.median(one["device_seconds"] / one["flops"] for one in costs)
    assert rate.probe == pytest.approx(wanted)
    assert probe_seconds(cells.cells[0], rate) == pytest.approx(wanted * costs[0]["flops"])
    assert speed(cells.cells, records, "gpu", folder_of).probe is None
    assert not lacking(cells, folder_of, records, ()).cells
    # Lost, it is missing again, and the evaluation is not made a second time.
    (found,) = probed(runs[0])
    (runs[0].probes / f"{found[0]}-{found[1]:08d}-{found[2]}.json").unlink()
    assert [cell.signature for cell in lacking(cells, folder_of, records, ()).cells] == [runs[0].signature]
    words = ["evaluate", "small", "--json"]
    assert len(json.loads(CliRunner().invoke(app, words).stdout)["new"]) == 1
    assert not (runs[0].path / "evaluations").exists()
    again = read_table(gather("small"))
    assert list(again["gfid"]) == list(frame["gfid"])
    # A second probe of the same evaluations adds a row to each, and no rfid is counted twice.
    said = CliRunner().invoke(app, ["evaluate", "small", "--probe", "tiny", "--probe-steps", "4"])
    assert said.exit_code == 0 and "gFID" in said.stdout
    both = read_table(gather("small"))
    assert len(both) == 4 and both["protocol"].nunique() == 1 and both["probe_protocol"].nunique() == 2
    assert len(measured(both)[0]) == 2
    with pytest.raises(AnalysisError, match=r"mixes 2 probe protocols.*--where"):
        fit(both, "gfid = c * bits_per_pixel^(-a)")
    with pytest.raises(AnalysisError, match="mixes 2 probe protocols"):
        fit(both, "prior_rate")
    one = both[both["probe_protocol"] == both["probe_protocol"].iloc[0]]
    assert len(measured(one, "gfid", ("prior_bits_per_pixel",))[0]) == 2


def test_the_plan_names_the_cost_of_probes_and_refuses_too_few_images(folder: Path, tmp_path: Path) -> None:
    plain = plan(load_spec({"name": "small", "base": "cpu-tiny", "set": TINY}))
    probes = plan(load_spec({"name": "small", "base": "cpu-tiny", "set": {**TINY, "evaluation.probe": "small"}}))
    assert [cell.signature for cell in plain.cells] == [cell.signature for cell in probes.cells]
    rate = speed(plain.cells, {}, "cpu")
    added = probe_seconds(probes.cells[0], rate)
    assert added > 1 and probe_seconds(plain.cells[0], rate) == 0
    seconds = [estimate(one.cells[0], rate, "cpu").seconds for one in (plain, probes)]
    assert seconds[1] - seconds[0] == pytest.approx(added)
    # As many images as the data set has, where the plan, which asked for no probe, does not know.
    assert plain.cells[0].train_images == 0
    asked = _changed(plain.cells[0], _Request({"probe": "small"}))
    assert asked.train_images == probes.cells[0].train_images and probe_seconds(asked, rate) == pytest.approx(added)
    SweepFolder(runs_root(), "small").write_plan(probes)
    assert SweepFolder(runs_root(), "small").read_plan().cells[0].train_images == probes.cells[0].train_images > 0
    spec = tmp_path / "few.yaml"
    keys = "evaluation.probe: tiny, evaluation.probe_images: 60, evaluation.num_images: 8"
    spec.write_text(f"name: few\nbase: cpu-tiny\nset: {{{keys}}}\n")
    with pytest.raises(UserError, match="60 training images are too few"):
        CliRunner().invoke(app, ["submit", str(spec)], catch_exceptions=False)
    assert not RunFolder.of(runs_root(), probes.cells[0].signature).path.exists()


def test_a_search_for_gfid_needs_a_probe() -> None:
    search = {"space": {"groups": {"choice": [1, 2]}}, "objectives": ["gfid"], "trials": 2}
    spec = {"name": "found", "base": "cpu-tiny", "set": TINY, "search": search}
    with pytest.raises(UserError, match=r"objectives: gfid .*evaluation.probe is none"):
        load_spec(spec)
    assert load_spec({**spec, "set": {**TINY, "evaluation.probe": "tiny"}}).search is not None


@pytest.mark.filterwarnings("ignore:rfid over")
def test_a_search_probes_runs_that_another_sweep_trained(folder: Path, cpu: None) -> None:
    """Under the protocol that its own config asks for, whatever probes they have."""
    values = {**TINY, "evaluation.probe": "tiny", "evaluation.probe_images": 100, "evaluation.probe_steps": 8}
    groups = {"groups": [1, 2]}
    before = {"name": "before", "base": "cpu-tiny", "set": {**values, "evaluation.probe_steps": 9}, "axes": groups}
    runs = [execute(cell.config, runs_root()) for cell in plan(load_spec(before)).cells]
    others = {probe for run in runs for _, _, probe in probed(run)}
    assert len(others) == 1
    search = {"space": {"groups": {"choice": [1, 2]}}, "objectives": ["gfid"], "trials": 1}
    found = plan(load_spec({"name": "found", "base": "cpu-tiny", "set": values, "search": search}))
    submit(found, Cluster(workers=1))
    status = search_status(SweepFolder(runs_root(), "found"))
    assert status is not None
    (trial,) = status.trials
    run = RunFolder.of(runs_root(), trial.signature)
    (new,) = {
        one["probe_protocol"]: one["gfid"] for one in read_probes(run) if one["probe_protocol"] not in others
    }.items()
    assert trial.state == "complete" and trial.values == (new[1],)
    assert read_run(run).attempts == 1
