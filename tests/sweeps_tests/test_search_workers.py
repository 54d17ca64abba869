"""Searches whose workers really train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from preamble import wait_for
from searches import LEARNING_RATE, evaluation, plan_of

from gsq import sweeps
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord, read_metrics, read_run
from gsq.sweeps.planning.cells import Cell, Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running import search as searching
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.local import local_jobs
from gsq.sweeps.state.status import status
from gsq.sweeps.state.study import search_status
from gsq.sweeps.tables.gather import gather

# With real workers.

TINY = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "steps": 30,
    "batch_size": 2,
    "loss.discriminator_start": 0,
    "evaluation.num_images": 8,
    "evaluation.every": 10,
    "data.max_crop": 2.0,
    "execution.checkpoint_every": 2,
    "execution.log_every": 1,
}


def test_worker_and_driver_are_killed_and_the_search_ends_as_it_would_have(folder: Path) -> None:
    search = {"trials": 3, "parallel": 1, "sampler": "random", "space": {**LEARNING_RATE, "groups": {"choice": [1, 2]}}}
    document = {"name": "killed", "base": "cpu-tiny", "set": TINY, "search": search}
    Path("killed.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    runs = SweepFolder(folder / "runs", "killed")

    def driver() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gsq.cli", "submit", "killed.yaml"],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def running() -> list[RunRecord]:
        if not runs.exists:
            return []
        records = runs.records([cell.signature for cell in runs.read_plan().cells])
        return [r for s, r in records.items() if local_jobs(records).get(s) and r.state == "running" and r.step >= 4]

    first = driver()
    try:
        wait_for(running, 120)
        (killed,) = running()
        os.kill(killed.pid, signal.SIGKILL)
        wait_for(lambda: read_run(RunFolder.of(runs.runs, killed.signature)).attempts == 2, 120)
        wait_for(lambda: [r for r in running() if r.attempts == 2], 120)
        first.kill()
        first.communicate()
        second = driver()
        output, _ = second.communicate(timeout=240)
    finally:
        first.kill()
    assert second.returncode == 0, output
    assert "search: 3 of 3 trials (3 complete)" in output and "best: trial" in output
    study = sweeps.search("killed")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert status(runs).counts["done"] == 3
    record = read_run(RunFolder.of(runs.runs, killed.signature))
    # The worker outlived its driver, and the next one adopted it.
    assert record.attempts == 2
    assert [line["step"] for line in read_metrics(RunFolder.of(runs.runs, killed.signature))] == list(range(1, 31))
    # The trials are those of a search that nobody disturbed.
    other = fake_parameters(document)
    assert [trial.params for trial in study.trials] == other
    frame = read_table(gather(runs, folder / "t.parquet"))
    final = frame[frame["step"] == 30].set_index("signature")["rfid"]
    assert {t.user_attrs["cell"]["signature"]: t.value for t in study.trials} == dict(final)
    # And another call starts nothing.
    before = sorted(runs.runs.rglob("attempts/*"))
    sweeps.submit(make_plan(load_spec("killed.yaml")), Cluster(workers=1))
    assert sorted(runs.runs.rglob("attempts/*")) == before


def fake_parameters(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameters that a random search draws, whatever its trials result in."""
    spec = load_spec(document)
    assert spec.search is not None
    drawn = []
    for number in range(spec.search.trials):
        study = optuna.create_study(sampler=spec.search.make_sampler(number))
        trial = study.ask()
        spec.search.suggest(trial)
        drawn.append(trial.params)
    return drawn


def test_a_pruned_run_stops_early_and_a_grid_takes_it_up_from_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is above the threshold: the trial is pruned at its first evaluation."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    search = {"trials": 1, "pruner": {"threshold": {"upper": 0.0}}, "space": {"groups": {"choice": [1, 2]}}}
    plan = make_plan(load_spec({"name": "early", "base": "cpu-tiny", "set": TINY, "search": search}))
    submission = sweeps.submit(plan, Cluster(workers=1))
    (action,) = submission.actions
    assert (action.kind, action.cell.state) == ("finished", "pruned")
    run = RunFolder.of(folder / "runs", action.cell.signature)
    assert read_run(run).step == 10 and read_run(run).message == "pruned after step 10"
    (trial,) = sweeps.search("early").trials
    assert trial.state == TrialState.PRUNED and list(trial.intermediate_values) == [10]
    assert status("early").counts["pruned"] == 1

    grid = {"name": "grid", "base": "cpu-tiny", "set": TINY, "axes": {"groups": [trial.params["groups"]]}}
    (action,) = sweeps.submit(make_plan(load_spec(grid)), Cluster(workers=1)).actions
    assert action.cell.signature == run.signature and action.cell.state == "done"
    assert read_run(run).attempts == 2
    steps = [json.loads(line)["step"] for line in (run.path / "attempts/2/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(11, 31))
    # The result is the search's now, too, but its trial stays what it was.
    assert status("early").counts["done"] == 1


@pytest.mark.parametrize("room", [1, 2])
def test_a_limit_on_jobs_makes_a_search_wait_and_gives_up_no_trial(
    room: int, write_run: Callable[..., RunFolder], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three trials at a time are wanted, and sbatch takes fewer."""
    from gsq.sweeps.costing.resource_class import ResourceClass
    from gsq.sweeps.running.sbatch import Refused
    from gsq.sweeps.running.slurm_arrays import NotTaken, Submission
    from gsq.sweeps.state.reconcile import Job

    plan = plan_of({"parallel": 3, "trials": 7})
    sweep = SweepFolder(folder / "runs", plan.name)
    active: dict[str, Cell] = {}
    calls: list[int] = []

    def submit(part: Plan, cluster: Cluster, **more: Any) -> Submission:
        taken = part.cells[: room - len(active)]
        calls.append(len(taken))
        active.update({cell.signature: cell for cell in taken})
        arrays = {str(len(calls)): [cell.signature for cell in taken]} if taken else {}
        if left := len(part.cells) - len(taken):
            raise NotTaken("c", len(part.cells), [(ResourceClass(2, 15), left, Refused("MaxSubmitJobs"))], arrays)
        return Submission(sweep, [], arrays)

    def one_ends(actions: object, records: object) -> None:
        if active:
            signature, cell = next(iter(active.items()))
            write_run(
                cell, "done", cell.config.train.steps, evaluations=(evaluation(cell, cell.config.train.steps, 1.0),)
            )
            del active[signature]

    monkeypatch.setattr("gsq.sweeps.running.slurm_arrays.submit_cells", submit)
    monkeypatch.setattr("gsq.sweeps.running.slurm_arrays.check", lambda *arguments: None)
    monkeypatch.setattr(searching, "slurm_jobs", lambda folder: {s: Job("running", name="7_0") for s in active})
    monkeypatch.setattr(searching, "POLL_SECONDS", 0.0)
    slurm = Cluster(kind="slurm", name="c")
    searching.submit_search(plan, slurm, runs=sweep.runs, over_budget=True, on_update=one_ends, wait=True)
    found = search_status(sweep)
    assert found is not None and found.counts == {"complete": 7, "pruned": 0, "failed": 0, "running": 0}
    # It asks sbatch again when there is room, not all the time.
    assert len(calls) <= 8 and min(calls) >= 1
    more = plan_of({"parallel": 3, "trials": 12})
    with pytest.raises(NotTaken):
        searching.submit_search(more, slurm, runs=sweep.runs, over_budget=True)
