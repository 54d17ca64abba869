"""Searches: the cells of a sweep are trials of an Optuna study, drawn while it runs.

A trial is an ordinary run. The study (a journal in the sweep folder, or a database) lists the trials, and each has the
signature and axis values of its run before that is submitted. So after any kill the next pass of a driver finds every
run: it tells the study of those that ended, fails those that make no progress, and draws new ones. Workers only report
intermediate evaluations and ask whether to continue.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsq.errors import UserError
from gsq.pretrained.required import require_weights
from gsq.records.attempt import DONE, PRUNED
from gsq.records.folder import RunFolder, runs_root
from gsq.records.read import RunRecord, read_results
from gsq.sweeps.costing.forecast import admit
from gsq.sweeps.planning.cells import DRAWS, Cell, CellMaker, Plan, derived
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.local_queue import LocalQueue
from gsq.sweeps.running.search_probes import probe_finished, probe_of, study_probe
from gsq.sweeps.running.snapshot import take
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.search_space import METRICS
from gsq.sweeps.spec.states import CANCELLED
from gsq.sweeps.state.cancellation import clear, marked, with_cancelled
from gsq.sweeps.state.local import alive, with_local_jobs
from gsq.sweeps.state.reconcile import Action, OnUpdate, no_update, reconcile
from gsq.sweeps.state.slurm import require_known, slurm_jobs
from gsq.sweeps.state.study import JOURNAL, counted, create_study, explained, neutral, parallel_trials

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from gsq.sweeps.running.slurm_arrays import Submission

# After so many excluded draws in a row the sampler is replaced by random draws.
STUBBORN = 20
# Age at which a trial without a run counts as abandoned by a driver on another machine [s].
ORPHAN_SECONDS = 60.0
POLL_SECONDS = 5.0


def submit_search(
    plan: Plan,
    cluster: Cluster,
    *,
    runs: Path | None = None,
    retry: bool = False,
    over_budget: bool = False,
    on_update: OnUpdate = no_update,
    wait: bool = False,
) -> Submission:
    """Submit a search, like ``submit``. local: blocks until the study has its trials. slurm: makes one pass, or with
    ``wait`` one whenever a job has ended, until the study has its trials. retry: retry failed trials as new ones.
    Raises UserError like ``submit``, and for a study with another subject.
    """
    from gsq.sweeps.running.slurm_arrays import Submission, check

    if cluster.cells_in_turn != 1:
        raise UserError(
            f"cluster '{cluster.name}': cells_in_turn: {cluster.cells_in_turn}: the trials of a search follow from the "
            "results of earlier ones, so they cannot wait for each other in a job; leave it out for a search"
        )
    folder = SweepFolder(runs or runs_root(), plan.name)
    check(plan, cluster, folder)
    if not over_budget:
        admit(plan, cluster, runs=folder.runs, retry=retry)
    driver = Driver(folder, plan, parallel_trials(plan, cluster), retry, cluster.kind == "local")
    with explained(driver.storage, "; the same command resumes"):
        if cluster.kind == "slurm":
            return _submit_to_slurm(driver, cluster, retry, on_update, wait)
        source = take(folder)
        clear(folder, set(driver.cells))
        queue = LocalQueue(folder, source, list(driver.cells), cluster, on_update, retry, driver.advance)
        return Submission(folder, _failed_trials(queue.run()), {})


def _failed_trials(actions: Sequence[Action]) -> list[Action]:
    """Leave out runs that diverged, which is a result of a search."""
    return [a for a in actions if not (a.kind == "leave" and a.cell.failure == "diverged")]


def _submit_to_slurm(
    driver: Driver,
    cluster: Cluster,
    retry: bool,
    on_update: OnUpdate,
    wait: bool,
) -> Submission:
    from gsq.sweeps.running.slurm_arrays import NotTaken, Submission, submit_cells

    folder = driver.folder
    arrays: dict[str, list[str]] = {}
    resumed = cluster.resumed("request" if retry else "submit")
    fruitless: Counter[str] = Counter()
    steps: dict[str, int] = {}
    seen: dict[str, tuple[Action, RunRecord]] = {}

    def look() -> list[Action]:
        signatures = list(driver.cells)
        records = folder.records(signatures)
        jobs = with_local_jobs(slurm_jobs(folder), records)
        records, jobs = with_cancelled(marked(folder), records, jobs)
        actions = reconcile(
            signatures, records, jobs, time.time(), resumed=resumed, fruitless=fruitless, search=folder.search_id
        )
        if not wait:
            waiting = [action.cell.signature for action in actions if action.kind == "wait"]
            require_known(cluster.name, (jobs[signature] for signature in waiting if signature in jobs))
        seen.update({a.cell.signature: (a, records[a.cell.signature]) for a in actions})
        return actions

    def at_work() -> int:
        """Trials that SLURM has now."""
        return sum(action.kind == "wait" for action in look())

    def show() -> None:
        on_update([a for a, _ in seen.values()], {s: record for s, (_, record) in seen.items()})

    while True:
        actions = look()
        while driver.advance(actions, {s: record for s, (_, record) in seen.items()}):
            actions = look()
        missing = [driver.cells[a.cell.signature] for a in actions if a.kind == "submit"]
        for cell in missing:
            step = seen[cell.signature][1].step
            if cell.signature in steps:
                fruitless[cell.signature] = 0 if step > steps[cell.signature] else fruitless[cell.signature] + 1
            steps[cell.signature] = step
        if missing:
            try:
                arrays |= submit_cells(
                    Plan(folder.name, tuple(missing)), cluster, runs=folder.runs, retry=retry, over_budget=True
                ).arrays
            except NotTaken as refused:
                arrays |= refused.arrays
                if not (wait and refused.limit and at_work()):
                    raise
                # A limit on the number of jobs has room again once one of them has ended.
                jobs_now = at_work()
                while at_work() >= jobs_now:
                    show()
                    time.sleep(POLL_SECONDS)
                # These have not been tried.
                for signature in {cell.signature for cell in missing} - {s for a in arrays.values() for s in a}:
                    steps.pop(signature, None)
                continue
        # Later passes resume only what resumes by itself.
        resumed, retry = cluster.resumed("itself"), False
        while wait and (actions := look()):
            show()
            ended = [a for a in actions if a.kind != "wait"]
            if any(a.cell.failure != CANCELLED for a in ended) or len(ended) == len(actions):
                break
            time.sleep(POLL_SECONDS)
        if not wait or all(a.cell.failure == CANCELLED for a in actions):
            return Submission(folder, _failed_trials([a for a, _ in seen.values()]), arrays)


class Driver:
    """A pass over the study of a search; several drivers may make one at the same time."""

    def __init__(
        self, folder: SweepFolder, plan: Plan, parallel: int, retry: bool = False, local: bool = False
    ) -> None:
        """parallel: trials at the same time. retry: retry failed trials. local: runs are trained on this machine."""
        assert plan.search is not None and plan.search.search is not None
        self.folder, self.spec, self.search = folder, plan.search, plan.search.search
        self.parallel, self.local = parallel, local
        self.make = CellMaker(self.spec)
        self.storage = self.search.storage or str(folder.path / JOURNAL)
        try:
            with explained(self.storage):
                self.study = create_study(folder, self.spec.base, self.search)
                self.neutral = neutral(self.study)
        except OSError as error:
            raise UserError(f"{folder.path}: cannot write: {error.strerror}; $GSQ_RUNS names the folder") from None
        self.cells: dict[str, Cell] = {}
        """Cells of the open trials, by signature."""
        self.open: dict[int, str] = {}
        with explained(self.storage):
            self._take_up()
            self._bring_back(retry)

    def advance(self, actions: Sequence[Action], records: dict[str, RunRecord]) -> list[str]:
        """Tell the study which trials have ended, and draw new ones. Returns the signatures of the new ones."""
        by_signature = {action.cell.signature: action for action in actions}
        for number, signature in list(self.open.items()):
            action = by_signature.get(signature)
            # A cancelled trial stays open until the user submits the sweep again.
            if action is None or action.kind in ("wait", "submit") or action.cell.failure == CANCELLED:
                continue
            self._tell(number, self.cells[signature], action, records[signature])
            del self.open[number]
        drawn = []
        while len(self.open) < self.parallel:
            if len(counted(self.study.get_trials(deepcopy=False))) >= self.search.trials and not self._waiting():
                break
            drawn.append(self._draw())
        self.cells = {signature: self.cells[signature] for signature in self.open.values()}
        if drawn:
            self.folder.write_plan(Plan(self.folder.name, tuple(drawn)))
        return [cell.signature for cell in drawn]

    def _take_up(self) -> None:
        """Adopt the running trials of earlier drivers, and leave out those whose driver died before they had a run."""
        import optuna

        for trial in self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            tied = trial.user_attrs.get("cell")
            if tied is None:
                if self._orphaned(trial):
                    self._leave_out(trial.number, "its driver died before the trial had a run")
                continue
            cell = self._cell(tied["axes"])
            if isinstance(cell, str) or cell.signature != tied["signature"]:
                now = cell if isinstance(cell, str) else cell.signature
                self._look_at(trial).set_user_attr("ended", f"its run is not what it was: {now}")
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
                continue
            self.open[trial.number], self.cells[cell.signature] = cell.signature, cell
        if self.cells:
            # The driver that drew them may have died before it wrote the plan.
            self.folder.write_plan(Plan(self.folder.name, tuple(self.cells.values())))

    def _bring_back(self, retry: bool) -> None:
        """Enqueue failed trials as new ones, on ``retry`` or if their run has finished since."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in counted(trials):
            if trial.state.name == "FAIL":
                signature = trial.user_attrs["cell"]["signature"]
                done = self.folder.records([signature])[signature].state == DONE
                # A finished run that could not complete its trial would not do so next time either.
                if (done and "measured" not in trial.user_attrs) or (retry and not done):
                    attributes = {"driver": _this_process(), "retries": trial.number}
                    self.study.enqueue_trial(trial.params, user_attrs=attributes)

    @staticmethod
    def _orphaned(trial: FrozenTrial) -> bool:
        driver = trial.user_attrs.get("driver", {})
        begun = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        if driver.get("host") == os.uname().nodename and Path("/proc/self").exists():
            return not alive(driver["pid"], begun)
        return time.time() - begun > ORPHAN_SECONDS

    def _cell(self, axes: dict[str, Any]) -> Cell | str:
        try:
            return self.make(axes)
        except UserError as error:
            return str(error)

    def _waiting(self) -> list[FrozenTrial]:
        import optuna

        return self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING])

    def _draw(self) -> Cell:
        """Draw the next trial, with its cell in the storage. Raises UserError if none is allowed."""
        import optuna

        for attempt in range(DRAWS):
            if not self._waiting():
                # An enqueued trial has its driver's name from the beginning, so a kill cannot orphan it.
                self.study.enqueue_trial({}, user_attrs={"driver": _this_process()})
            number = next((trial.number for trial in self._waiting()), 0)
            search = self.search if attempt < STUBBORN else replace(self.search, sampler="random", sampler_options={})
            self.study.sampler = search.make_sampler(number)
            trial = self.study.ask()
            try:
                trial.set_user_attr("driver", _this_process())
                cell = self._cell(self.search.suggest(trial))
                if isinstance(cell, Cell):
                    require_weights(cell.config)
                    trial.set_user_attr("cell", {"signature": cell.signature, "axes": cell.axes})
                    self.open[trial.number], self.cells[cell.signature] = cell.signature, cell
                    return cell
            except optuna.exceptions.UpdateFinishedTrialError:
                continue  # Another driver considered us dead.
            except ValueError as error:
                self._leave_out(trial.number, "error")
                if "dynamic value space" not in str(error):
                    raise UserError(f"search.sampler: {self.search.sampler}: {error}") from None
                raise UserError(
                    f"sweep '{self.spec.name}': search.space: a study cannot change the values of a choice; give this "
                    "search another name"
                ) from None
            except BaseException:
                self._leave_out(trial.number, "interrupted")
                raise
            self._leave_out(trial.number, cell)
        raise UserError(
            f"sweep '{self.spec.name}': search: {DRAWS} draws in a row were left out, the last by '{cell}'; "
            "make the space or where wider"
        )

    def _leave_out(self, number: int, why: str) -> None:
        """Fail a trial without a run, which does not count."""
        import optuna

        trial = self.study.get_trials(deepcopy=False)[number]
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._look_at(trial).set_user_attr("left_out", why)
        self.study.tell(number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _look_at(self, trial: FrozenTrial) -> Trial:
        """Open a drawn trial for writing."""
        from optuna.trial import Trial

        return Trial(self.neutral, trial._trial_id)

    def _tell(self, number: int, cell: Cell, action: Action, record: RunRecord) -> None:
        import optuna
        from optuna.trial import TrialState

        trial = self.study.get_trials(deepcopy=False)[number]
        values: list[float] | None = None
        state, why = TrialState.FAIL, f"{action.cell.failure}: {action.cell.message}"
        try:
            if action.cell.state in (DONE, PRUNED):
                unprobed = ""
                if action.cell.state == DONE and (wanted := study_probe(self.study, cell, self.make)):
                    unprobed = probe_finished(self.folder, cell, self.search.objectives, wanted, self.local)
                evaluations = self._evaluations(cell)
                self._report(trial, evaluations[:-1] if action.cell.state == DONE else evaluations)
                if action.cell.state == PRUNED:
                    state, why = TrialState.PRUNED, ""
                else:
                    values = self._values(cell, record, evaluations)
                    state = TrialState.COMPLETE if values else TrialState.FAIL
                    unknown = unprobed or "not measured at its last step under the study's protocol, or not finite"
                    why = "" if values else unknown
                    self._look_at(trial).set_user_attr("measured", bool(values))
            elif action.cell.failure == "diverged" and len(self.search.objectives) == 1:
                # Samplers learn nothing from a failed trial, but they should learn to avoid this one.
                state = TrialState.PRUNED
            if why:
                self._look_at(trial).set_user_attr("ended", why)
            self.study.tell(number, values, state=state, skip_if_finished=True)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # Another driver was quicker.

    def _evaluations(self, cell: Cell) -> list[dict[str, Any]]:
        """Evaluations of a run under the study's protocol, by step. The first finished run sets the protocol."""
        results = read_results(RunFolder.of(self.folder.runs, cell.signature))
        found = list(results.evaluations.values())
        wanted = cell.config.evaluation
        protocol = self.study.user_attrs.get("protocol")
        if protocol is None:
            fitting = [
                e for e in found if e["features"].startswith(wanted.features) and e["num_images"] <= wanted.num_images
            ]
            if not fitting:
                return []
            protocol = max(fitting, key=lambda e: (e["num_images"], e["step"]))["protocol"]
            self.study.set_user_attr("protocol", protocol)
        probe = probe_of(cell, results.probes, protocol, study_probe(self.study, cell, self.make))
        found = [{**e, **probe} for e in found if e["protocol"] == protocol]
        return sorted(found, key=lambda e: e["step"])

    def _report(self, trial: FrozenTrial, evaluations: list[dict[str, Any]]) -> None:
        """Report what the worker did not, because it was killed or belongs to another sweep."""
        if self.search.objectives[0] not in METRICS or len(self.search.objectives) > 1:
            return
        missing = [e for e in evaluations if e["step"] not in trial.intermediate_values]
        for evaluation in missing:
            self._look_at(trial).report(evaluation[self.search.objectives[0]], evaluation["step"])

    def _values(self, cell: Cell, record: RunRecord, evaluations: list[dict[str, Any]]) -> list[float] | None:
        last = evaluations[-1] if evaluations else {}
        known: dict[str, Any] = {
            **last,
            "device_seconds": record.seconds,
            "train_flops": cell.cost.train_flops,
            "parameters": cell.cost.parameters,
            **derived(cell.config),
        }
        values = [float(known.get(name, math.nan)) for name in self.search.objectives]
        whole = last.get("step") == cell.config.train.steps
        return values if whole and all(map(math.isfinite, values)) else None


def _this_process() -> dict[str, Any]:
    return {"host": os.uname().nodename, "pid": os.getpid()}
