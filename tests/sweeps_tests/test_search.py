"""Searches: what a driver does to its study, with run folders made by hand."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState
from searches import LEARNING_RATE, Make, evaluation, plan_of

from gsq import sweeps
from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.records.read import read_run
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.reconcile import reconcile
from gsq.sweeps.state.status import status
from gsq.sweeps.state.study import describe, pruner, search_status
from gsq.sweeps.tables.gather import gather


def test_trials_are_cells_and_their_results_reach_the_study(fake: Make) -> None:
    search = fake()
    (first, second) = search.step()
    assert search.step() == [first, second], "nothing has ended: nothing is drawn"
    search.end(first, 7.0)
    (third,) = [cell for cell in search.step() if cell not in (first, second)]
    assert search.states() == ["COMPLETE", "RUNNING", "RUNNING"]
    told = search.study.trials[0]
    assert told.value == 7.0 and told.params == {"learning_rate": first.config.optimizer.learning_rate}
    assert told.user_attrs["cell"] == {"signature": first.signature, "axes": first.axes}
    # Every cell is in the plan before it can be submitted.
    assert [cell.signature for cell in search.folder.read_plan().cells] == [
        cell.signature for cell in (first, second, third)
    ]
    search.run()
    assert search.states() == ["COMPLETE"] * 5
    found = search_status(search.folder)
    assert found is not None and found.counts == {"complete": 5, "pruned": 0, "failed": 0, "running": 0}
    (best,) = found.best
    assert found.trials[best].values == (min(t.value for t in search.study.trials if t.value is not None),)
    assert found.numbers[first.signature] == (0,)
    assert describe(found)[0] == "search: 5 of 5 trials (5 complete)"
    assert f"best: trial {best}, rfid" in describe(found)[1]
    loaded = sweeps.search("found")
    assert [trial.value for trial in loaded.trials] == [trial.value for trial in search.study.trials]
    assert sweeps.search(search.folder.path / "study.journal").best_value == loaded.best_value


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2", "qmc", "random"])
def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(fake: Make, sampler: str) -> None:
    space = {**LEARNING_RATE, "optimizer.weight_decay": {"uniform": [0, 0.1]}}
    options = {"tpe": {"n_startup_trials": 2}, "gp": {"n_startup_trials": 2}, "nsga2": {"population_size": 3}}
    chosen = {sampler: options[sampler]} if sampler in options else sampler
    drawn = []
    for name in ("whole", "parts"):
        plan = plan_of({"trials": 7, "sampler": chosen, "space": space}, name)
        search = fake(plan, 1)
        while cells := search.step():
            for cell in cells:
                search.end(cell, cell.config.optimizer.learning_rate * 100 + cell.config.optimizer.weight_decay)
            search = fake(plan, 1) if name == "parts" else search
        drawn.append([trial.params for trial in search.study.trials])
        assert search.states() == ["COMPLETE"] * 7
    assert drawn[0] == drawn[1]
    assert len({tuple(params.values()) for params in drawn[0]}) == 7, "nothing is drawn twice"


def test_a_run_that_another_sweep_has_finished_is_told_and_not_trained(fake: Make) -> None:
    space = {"groups": {"choice": [1, 2]}}
    grid = make_plan(load_spec({"name": "grid", "base": "cpu-tiny", "axes": {"groups": [1, 2]}}))
    search = fake(plan_of({"space": space}))
    search.end(grid.cells[0], 5.0)
    cells = search.step()
    assert {cell.signature for cell in cells} <= {grid.cells[1].signature}
    for cell in cells:
        search.end(cell, 3.0)
    # Two configs are in the space: the other trials are told at once.
    assert search.step() == []
    values = {t.params["groups"]: t.value for t in search.study.trials}
    assert values == {1: 5.0, 2: 3.0} and search.states() == ["COMPLETE"] * 5
    assert all(read_run(RunFolder.of(search.folder.runs, cell.signature)).attempts == 1 for cell in grid.cells)
    numbers = [cell.trials for cell in status(search.folder).cells]
    assert sorted(itertools.chain(*numbers)) == [0, 1, 2, 3, 4]


def test_results_of_another_protocol_are_not_compared(fake: Make) -> None:
    search = fake()
    first, second = search.step()
    search.end(first, 7.0)
    search.end(second, 0.1, protocol="1" * 12)
    search.step()
    assert search.states()[:2] == ["COMPLETE", "FAIL"]
    assert "protocol" in search.study.trials[1].user_attrs["ended"]
    # It is over: to try it again would change nothing.
    assert fake().states().count("WAITING") == 0


def test_failures_are_told_and_bounded(fake: Make, write_run: Callable[..., RunFolder]) -> None:
    """Every run ends in an error: the search ends, too. A diverging one tells the sampler where not to be."""
    search = fake()
    kinds = itertools.cycle([{"failure": "diverged"}, {"failure": "error"}])
    while cells := search.step():
        for cell in cells:
            write_run(cell, "failed", 3, message="bad", **next(kinds))
    assert search.states() == ["PRUNED", "FAIL", "PRUNED", "FAIL", "PRUNED"]
    assert search.study.trials[0].user_attrs["ended"] == "diverged: bad"
    assert search.study.trials[1].user_attrs["ended"] == "error: bad"
    found = search_status(search.folder)
    assert found is not None and found.best == () and len(found.trials) == 5
    assert search.step() == [] and fake().step() == []
    # Asked to, a driver tries the failed ones again, as trials of their own.
    again = fake(retry=True)
    parameters = [search.study.trials[n].params for n in (1, 3)]
    again.step()
    assert [trial.params for trial in again.study.trials[5:]] == parameters
    assert [trial.user_attrs["retries"] for trial in again.study.trials[5:]] == [1, 3]
    found = search_status(search.folder)
    assert found is not None and len(found.trials) == 5


def test_a_failed_trial_whose_run_is_finished_later_comes_back(fake: Make, write_run: Callable[..., RunFolder]) -> None:
    search = fake(plan_of({"trials": 1}))
    (cell,) = search.step()
    write_run(cell, "failed", 3, failure="error", message="no such device")
    assert search.step() == [] and search.states() == ["FAIL"]
    search.end(cell, 2.0)
    later = fake(plan_of({"trials": 1}))
    assert later.step() == []
    assert later.states() == ["FAIL", "COMPLETE"] and later.study.best_value == 2.0


def test_a_cancelled_trial_waits_for_the_user(fake: Make, write_run: Callable[..., RunFolder]) -> None:
    search = fake()
    first, second = search.step()
    write_run(first, "failed", 3, failure="cancelled", message="stopped")
    assert search.step() == [second] and search.states() == ["RUNNING", "RUNNING"]


def test_what_this_search_pruned_is_told_and_what_another_pruned_is_trained(
    fake: Make, write_run: Callable[..., RunFolder]
) -> None:
    plan = plan_of({"pruner": "median"}, set={"evaluation.every": 100})
    search = fake(plan)
    first, second = search.step()
    mine = search.folder.search_id
    write_run(first, "pruned", 100, (evaluation(first, 100, 50.0),), pruned_by=mine, message="pruned after step 100")
    write_run(second, "pruned", 100, (evaluation(second, 100, 60.0),), pruned_by="another search")
    assert second in search.step() and first not in search.step()
    assert search.states()[:2] == ["PRUNED", "RUNNING"]
    # What the killed worker did not report is reported from the run folder.
    assert search.study.trials[0].intermediate_values == {100: 50.0} and search.study.trials[0].value == 50.0
    assert {c.signature: c.state for c in status(search.folder).cells}[first.signature] == "pruned"
    frame = read_table(gather(search.folder, Path("t.parquet").absolute()))
    assert dict(zip(frame["signature"], frame["state"], strict=True))[first.signature] == "pruned"
    assert set(frame["learning_rate"]) == {t.params["learning_rate"] for t in search.study.trials}
    # To a grid with the same cell it is unfinished.
    (action,) = reconcile([first.signature], search.folder.records([first.signature]), {}, time.time())
    assert (action.kind, action.cell.state) == ("submit", "planned")


def test_a_worker_reports_and_is_told_to_stop(fake: Make) -> None:
    plan = plan_of({"trials": 9, "pruner": {"median": {"n_startup_trials": 2}}}, set={"evaluation.every": 100})
    search = fake(plan, 1)
    asked = []
    for rfid in (10.0, 11.0, 12.0, 5.0):
        (cell,) = search.step()
        ask = pruner(search.folder, cell.signature)
        asked.append(ask(evaluation(cell, 100, rfid)))
        search.end(cell, rfid)
    assert asked == [None, None, search.folder.search_id, None]
    search.step()
    assert [trial.intermediate_values for trial in search.study.trials[:4]] == [
        {100: rfid} for rfid in (10.0, 11.0, 12.0, 5.0)
    ]
    # A run that is no running trial's, and a storage that is gone, stop nothing.
    assert ask(evaluation(cell, 200, 1e9)) is None
    (search.folder.path / "study.journal").unlink()
    assert ask(evaluation(cell, 200, 1e9)) is None


def test_several_objectives(fake: Make) -> None:
    space = {"groups": {"choice": [1, 2, 4, 8]}}
    plan = plan_of({"trials": 12, "objectives": ["rfid", "bits_per_pixel"], "sampler": "nsga2", "space": space})
    search = fake(plan)
    # 4 groups are worse than 2 in both.
    search.run(lambda cell: {1: 30.0, 2: 20.0, 4: 25.0, 8: 10.0}[cell.config.quantizer.groups])
    drawn = {trial.params["groups"] for trial in search.study.trials}
    found = search_status(search.folder)
    assert found is not None and found.counts["complete"] == 12
    front = {found.trials[number].axes["groups"]: found.trials[number].values for number in found.best}
    assert set(front) == drawn - {4} and front[1] == (30.0, 0.5)
    assert all(line.startswith("front: ") for line in describe(found)[1:])


def test_device_seconds_are_those_of_all_attempts(fake: Make, write_run: Callable[..., RunFolder]) -> None:
    search = fake(plan_of({"trials": 1, "objectives": ["device_seconds", "rfid"]}))
    (cell,) = search.step()
    write_run(cell, "failed", 3, failure="preempted", heartbeat=time.time())
    search.end(cell, 4.0)
    assert search.step() == []
    record = read_run(RunFolder.of(search.folder.runs, cell.signature))
    assert record.attempts == 2 and record.seconds >= 1
    assert search.study.trials[0].values == [record.seconds, 4.0]


def test_constraints_hold_for_trials(fake: Make) -> None:
    space = {"groups": {"choice": [1, 2, 4, 8]}, "latent_dim": {"int": [4, 16]}}
    plan = plan_of({"trials": 8, "space": space}, where=["latent_dim % groups == 0", "bits_per_pixel <= 2"])
    search = fake(plan)
    search.run(lambda cell: 1.0)
    having = [trial for trial in search.study.trials if trial.state == TrialState.COMPLETE]
    assert len(having) == 8
    for trial in having:
        assert trial.params["latent_dim"] % trial.params["groups"] == 0 and trial.params["groups"] <= 4
    rest = [trial for trial in search.study.trials if trial.state != TrialState.COMPLETE]
    assert rest and all(t.state == TrialState.FAIL and "cell" not in t.user_attrs for t in rest)
    found = search_status(search.folder)
    assert found is not None and sum(found.left_out.values()) == len(rest) and found.counts["failed"] == 0


def test_a_space_of_which_nothing_is_allowed_is_refused_by_the_plan() -> None:
    with pytest.raises(UserError, match=r"space .*groups > 4"):
        plan_of({"space": {"groups": {"choice": [1, 2, 4]}}}, where="groups > 4")
    with pytest.raises(UserError, match=r"space .*does not divide"):
        plan_of({"space": {"groups": {"choice": [3, 5]}}})


def test_an_edited_search_goes_on_and_one_about_something_else_is_refused(fake: Make) -> None:
    fake(plan_of({"trials": 2})).run()
    wider = {"learning_rate": {"log_uniform": [1e-5, 1e-1]}}
    more = fake(plan_of({"trials": 4, "sampler": "random", "space": wider}))
    more.run()
    assert more.states() == ["COMPLETE"] * 4
    for changed, words in (
        (plan_of({"objectives": ["usage"]}), "has other objectives"),
        (plan_of({"space": {"optimizer.weight_decay": {"uniform": [0, 1]}}}), "other parameters in its space"),
        (plan_of(set={"steps": 200}), "another base, set or data"),
        (plan_of(set={"evaluation.num_images": 100}), "another base, set or data"),
    ):
        with pytest.raises(UserError, match=rf"{words}.*give this search another name"):
            fake(changed)
    assert more.study.trials == sweeps.search("found").trials


def test_the_plan_of_a_search_shows_its_space_and_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    from gsq.cli.main import app

    for words in (["plan", "search-optimizer"], ["plan", "search-optimizer", "--json", "--cells", "7"]):
        app(words, standalone_mode=False)
    text, _, document = capsys.readouterr().out.partition("{")
    values = json.loads("{" + document)
    assert values["search"]["trials"] == 7 and values["search"]["sampler"] == "tpe"
    # Examples: the first is the middle of the space.
    middle = values["cells"][0]["axes"]
    assert middle["optimizer.betas"] == pytest.approx([0.475, 0.9495])
    assert middle["learning_rate"] == pytest.approx((1e-4 * 3e-2) ** 0.5)
    spec = load_spec("search-optimizer")
    assert spec.search is not None
    for words in ("optimizer.betas[1]", "0.9 to 0.999", "0.0001 to 0.03, logarithmic", "minimize rfid, by tpe"):
        assert words in text
    assert f"{spec.search.trials} cells, 0 already done, {spec.search.trials} to run" in " ".join(text.split())
    assert values["forecast"]["to_run"] == 7 and values["forecast"]["device_seconds"] > 7


def test_a_budget_holds_for_the_trials_to_come(fake: Make) -> None:
    with pytest.raises(UserError, match=r"'found' .*budget: cells 5 \(limit 3\)"):
        sweeps.submit(plan_of(budget={"cells": 3}), Cluster(workers=1))
    assert not Path("runs/sweeps").exists()
    fake(plan_of({"trials": 3})).run()
    assert len(sweeps.forecast(plan_of()).left) == 2


def test_changed_choices_are_refused(fake: Make) -> None:
    first = fake(plan_of({"trials": 2, "space": {"groups": {"choice": [1, 2]}}}))
    first.run()
    with pytest.raises(UserError, match="values of a choice"):
        fake(plan_of({"trials": 4, "space": {"groups": {"choice": [1, 4]}}})).step()
    assert "RUNNING" not in first.states()


def test_a_grid_of_the_same_name_is_not_taken_for_a_search(fake: Make) -> None:
    grid = make_plan(load_spec({"name": "found", "base": "cpu-tiny"}))
    SweepFolder(Path("runs").absolute(), "found").write_plan(grid)
    with pytest.raises(UserError, match=r"'found' .*without search"):
        fake()


def test_trials_do_not_wait_for_each_other_in_a_job() -> None:
    with pytest.raises(UserError, match=r"cells_in_turn: 4.*leave it out for a search"):
        sweeps.submit(plan_of(), Cluster(kind="slurm", name="c", cells_in_turn=4))
