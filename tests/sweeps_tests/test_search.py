"""Searches: what a driver does to its study, with run folders made by hand; then real workers, killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from gsq import sweeps
from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord, read_metrics, read_run
from gsq.sweeps.planning.cells import Cell, Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running import search as searching
from gsq.sweeps.running.search import Driver
from gsq.sweeps.schema.columns import read_table
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.states import RESUMED
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.local import local_jobs
from gsq.sweeps.state.reconcile import reconcile
from gsq.sweeps.state.status import status
from gsq.sweeps.state.study import describe, pruner, search_status
from gsq.sweeps.tables.gather import gather

LEARNING_RATE = {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}
PROTOCOL = "0" * 12


def plan_of(search: dict[str, Any] | None = None, name: str = "found", **more: Any) -> Plan:
    """A search of cpu-tiny, five trials over the learning rate but for what is given."""
    whole = {"trials": 5, "space": LEARNING_RATE, **(search or {})}
    return make_plan(load_spec({"name": name, "base": "cpu-tiny", "search": whole, **more}))


class Fake:
    """A driver whose workers are this test: passes over run folders made by hand."""

    def __init__(self, write_run: Callable[..., RunFolder], plan: Plan, parallel: int = 2, **options: Any) -> None:
        self.write_run = write_run
        self.folder = SweepFolder(Path("runs").absolute(), plan.name)
        self.driver = Driver(self.folder, plan, parallel, **options)
        self.study = self.driver.study

    def step(self) -> list[Cell]:
        """One pass; returns the cells that wait for a worker."""
        while True:
            signatures = list(self.driver.cells)
            records = self.folder.records(signatures)
            actions = reconcile(signatures, records, {}, time.time(), resumed=RESUMED, search=self.folder.search_id)
            if not self.driver.advance(actions, records) and list(self.driver.cells) == signatures:
                return [self.driver.cells[a.cell.signature] for a in actions if a.kind == "submit"]

    def end(self, cell: Cell, rfid: float = 1.0, protocol: str = PROTOCOL, **more: Any) -> None:
        """The run of a cell is done."""
        steps = cell.config.train.steps
        self.write_run(cell, "done", steps, evaluations=(evaluation(cell, steps, rfid, protocol=protocol),), **more)

    def run(self, value: Callable[[Cell], float] = lambda cell: cell.config.optimizer.learning_rate) -> None:
        """Passes until there is nothing more to do."""
        while cells := self.step():
            for cell in cells:
                self.end(cell, value(cell))

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.study.trials]


def evaluation(cell: Cell, step: int, rfid: float, protocol: str = PROTOCOL) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "step": step,
        "features": "efficientnet_lite0@57934424",
        "num_images": cell.config.evaluation.num_images,
        "rfid": rfid,
    }


Make = Callable[..., Fake]


@pytest.fixture
def fake(folder: Path, write_run: Callable[..., RunFolder]) -> Make:
    def make(plan: Plan | None = None, parallel: int = 2, **options: Any) -> Fake:
        return Fake(write_run, plan or plan_of(), parallel, **options)

    return make


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
    with pytest.raises(UserError, match=r"nothing in the space is allowed.*groups > 4"):
        plan_of({"space": {"groups": {"choice": [1, 2, 4]}}}, where="groups > 4")
    with pytest.raises(UserError, match=r"nothing in the space is allowed.*does not divide"):
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
        with pytest.raises(UserError, match=f"{words}.*give this search another name"):
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
    with pytest.raises(UserError, match=r"'found' would be over its budget: cells 5 \(limit 3\)"):
        sweeps.submit(plan_of(budget={"cells": 3}), Cluster(workers=1))
    assert not Path("runs/sweeps").exists()
    fake(plan_of({"trials": 3})).run()
    assert len(sweeps.forecast(plan_of()).left) == 2


def test_changed_choices_are_refused(fake: Make) -> None:
    first = fake(plan_of({"trials": 2, "space": {"groups": {"choice": [1, 2]}}}))
    first.run()
    with pytest.raises(UserError, match="cannot change the values of a choice"):
        fake(plan_of({"trials": 4, "space": {"groups": {"choice": [1, 4]}}})).step()
    assert "RUNNING" not in first.states()


def test_a_grid_of_the_same_name_is_not_taken_for_a_search(fake: Make) -> None:
    grid = make_plan(load_spec({"name": "found", "base": "cpu-tiny"}))
    SweepFolder(Path("runs").absolute(), "found").write_plan(grid)
    with pytest.raises(UserError, match="'found' was submitted before without search"):
        fake()


class Killed(BaseException):
    """Nothing of the process goes on after this."""


def test_a_driver_killed_between_any_two_writes_loses_nothing(fake: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its n-th write to the study or the plan, for every n; the next driver finishes the search."""
    append, write_plan = JournalFileBackend.append_logs, SweepFolder.write_plan
    process = subprocess.Popen(["true"])
    process.wait()
    dead = {"host": os.uname().nodename, "pid": process.pid}
    for fatal in itertools.count():
        writes = itertools.count()

        def count(writes: Iterator[int] = writes, fatal: int = fatal) -> None:
            if next(writes) >= fatal:
                raise Killed

        def counted_append(self: Any, logs: Any, count: Callable[[], None] = count) -> None:
            count()
            append(self, logs)

        def counted_plan(self: Any, plan: Plan, count: Callable[[], None] = count) -> None:
            count()
            write_plan(self, plan)

        plan = plan_of({"trials": 2, "sampler": "random"}, f"killed-{fatal}")
        with monkeypatch.context() as patch:
            patch.setattr(JournalFileBackend, "append_logs", counted_append)
            patch.setattr(SweepFolder, "write_plan", counted_plan)
            patch.setattr(searching, "_this_process", lambda: dead)
            try:
                fake(plan, 1).run()
                break
            except Killed:
                pass
        search = fake(plan, 1)
        search.run()
        states = search.states()
        assert set(states) <= {"COMPLETE", "FAIL"} and states.count("COMPLETE") == 2, fatal
        planned = {cell.signature for cell in search.folder.read_plan().cells}
        tied = [t.user_attrs["cell"]["signature"] for t in search.study.trials if "cell" in t.user_attrs]
        assert planned == set(tied) and len(tied) == 2, fatal
        # The one that had no run is all that may be lost, and its number.
        assert states.count("FAIL") <= 1, fatal
    assert fatal > 10


def test_a_driver_that_is_alive_is_left_alone(fake: Make) -> None:
    """A trial that another driver is drawing just now is not failed."""
    search = fake()
    search.study.enqueue_trial({}, user_attrs={"driver": searching._this_process()})
    search.study.ask()
    other = fake()
    assert other.states() == ["RUNNING"]


def test_two_drivers_at_the_same_time_share_the_study(fake: Make) -> None:
    one, other = fake(), fake()
    for _ in range(5):
        for search in (one, other):
            for cell in search.step():
                search.end(cell)
    assert one.step() == other.step() == []
    assert one.states() == ["COMPLETE"] * 5
    assert len({trial.params["learning_rate"] for trial in one.study.trials}) == 5


def test_a_torn_line_in_the_journal_is_mended(fake: Make) -> None:
    search = fake()
    search.step()
    journal = search.folder.path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.splitlines()[-1][:17])
    later = fake()
    later.run()
    assert later.states() == ["COMPLETE"] * 5
    assert [json.loads(line) for line in journal.read_text().splitlines()]


def test_a_database_by_its_url(fake: Make, folder: Path) -> None:
    plan = plan_of({"trials": 3, "storage": "sqlite:///search.db"})
    search = fake(plan)
    search.run()
    assert (folder / "search.db").is_file() and not (search.folder.path / "study.journal").exists()
    # Workers start elsewhere.
    os.chdir(folder / "runs")
    assert sweeps.search("found").best_value == search.study.best_value
    # A sweep of the same name below another runs folder is another one.
    with pytest.raises(UserError, match="belongs to another sweep folder"):
        Driver(SweepFolder(folder / "elsewhere", "found"), plan_of({"storage": f"sqlite:///{folder}/search.db"}), 1)


def test_a_database_that_does_not_answer_is_one_sentence_without_the_password(
    fake: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("nosuch://me:secret@nowhere/db", "sqlite:////no/such/folder/search.db"):
        with pytest.raises(UserError) as caught:
            fake(plan_of({"storage": url}))
        assert "search.storage: " in str(caught.value) and "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
    # From a variable it is in no file.
    monkeypatch.setenv("SEARCH_DB", f"sqlite:///{Path('hidden.db').absolute()}")
    search = fake(plan_of({"trials": 1, "storage": "$SEARCH_DB"}, "hidden"))
    search.run()
    assert Path("hidden.db").is_file() and "hidden.db" not in search.folder.search.read_text()


def test_an_unknown_search_is_an_error_that_names_what_there_is(fake: Make) -> None:
    fake(plan_of({"trials": 1})).run()
    with pytest.raises(UserError, match=r"no sweep 'fund'.*did you mean 'found'"):
        sweeps.search("fund")


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


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


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
        wait_for(running)
        (killed,) = running()
        os.kill(killed.pid, signal.SIGKILL)
        wait_for(lambda: read_run(RunFolder.of(runs.runs, killed.signature)).attempts == 2)
        wait_for(lambda: [r for r in running() if r.attempts == 2])
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
