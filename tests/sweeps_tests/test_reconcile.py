"""The one reconciler, over its whole input space."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest

from gsq.records.attempt import FAILURES, STALE_SECONDS
from gsq.records.read import RunRecord
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.states import RESUME, RESUMED, RESUMED_ON_SUBMIT, STATES, resumed_classes
from gsq.sweeps.state.reconcile import PATIENCE, Action, CellState, Job, cell_state, reconcile

NOW = 1_000_000.0
SIG = "0123456789ab"

RECORDS: tuple[RunRecord | None, ...] = (
    None,
    RunRecord(SIG),
    RunRecord(SIG, attempts=1),
    RunRecord(SIG, "done", step=9, steps=9, attempts=1, heartbeat=NOW - 1e6),
    RunRecord(SIG, "pruned", step=3, steps=9, attempts=1, heartbeat=NOW - 1e6),
    RunRecord(SIG, "running", step=3, steps=9, attempts=1, heartbeat=NOW - STALE_SECONDS + 1),
    RunRecord(SIG, "running", step=3, steps=9, attempts=1, heartbeat=NOW - STALE_SECONDS - 1),
    *(RunRecord(SIG, "failed", failure, f"about {failure}", 3, 9, 1, NOW - 5) for failure in FAILURES),
)
HALVED = RunRecord(SIG, "failed", "out_of_memory", "no memory", 3, 9, 1, NOW - 5, next_micro_batch=4)
JOBS: tuple[Job | None, ...] = (
    None,
    Job("pending", name="7"),
    Job("running", name="7"),
    Job("unknown", name="7"),
    *(Job("gone", failure, "7") for failure in (None, *FAILURES)),
)
SETS = (frozenset(), RESUMED, RESUMED_ON_SUBMIT, frozenset(RESUME), frozenset({"error"}))
Case = tuple[RunRecord | None, Job | None, frozenset[str], int]


def act(record: RunRecord | None, job: Job | None, resumed: frozenset[str], fruitless: int = 0) -> Action:
    records = {} if record is None else {SIG: record}
    jobs = {} if job is None else {SIG: job}
    (action,) = reconcile([SIG], records, jobs, NOW, resumed=resumed, fruitless={SIG: fruitless})
    return action


def cases() -> Iterator[tuple[Case, Action]]:
    for case in product(RECORDS, JOBS, SETS, range(PATIENCE + 2)):
        yield case, act(*case)


def test_every_answer_is_one_of_the_known_ones() -> None:
    count = 0
    for _, action in cases():
        count += 1
        assert action.kind in ("submit", "wait", "finished", "leave")
        assert action.cell.signature == SIG and action.cell.state in STATES
        assert (action.cell.failure is not None) == (action.cell.state == "failed")
        assert action.cell.failure in (None, *FAILURES)
    assert count == len(RECORDS) * len(JOBS) * len(SETS) * (PATIENCE + 2)


def test_what_is_finished_stays_finished() -> None:
    for (record, _, _, _), action in cases():
        finished = record is not None and record.state == "done"
        assert (action.kind == "finished") == finished
        if finished:
            assert record is not None and action.cell == CellState(SIG, str(record.state))


def test_what_a_search_pruned_is_finished_for_that_search_alone() -> None:
    pruned = RunRecord(SIG, "pruned", step=3, steps=9, attempts=1, heartbeat=NOW, pruned_by="a search")
    for job, resumed, fruitless in product(JOBS, SETS, range(PATIENCE + 2)):
        jobs = {} if job is None else {SIG: job}

        def ask(search: str | None, jobs: dict[str, Job] = jobs, more: Any = (resumed, fruitless)) -> Action:
            (action,) = reconcile(
                [SIG], {SIG: pruned}, jobs, NOW, resumed=more[0], fruitless={SIG: more[1]}, search=search
            )
            return action

        assert ask("a search") == Action("finished", CellState(SIG, "pruned"))
        for other in (None, "another search"):
            action = ask(other)
            if job is not None and job.state in ("pending", "running", "unknown"):
                assert action == Action("wait", CellState(SIG, "queued"))
            else:
                assert action == Action("submit", CellState(SIG, "planned"))


def test_nothing_is_submitted_while_a_job_waits_or_runs() -> None:
    for (record, job, _, _), action in cases():
        if job is None or job.state == "gone" or action.kind == "finished":
            continue
        assert action.kind == "wait"
        running = job.state != "pending" and record is not None and record.state == "running"
        assert action.cell.state == ("running" if running else "queued")


def test_a_live_run_without_a_scheduler_is_waited_for() -> None:
    for (record, job, _, _), action in cases():
        if job is None and record is not None and record.state == "running" and not record.stale(NOW):
            assert action.kind == "wait" and action.cell.state == "running"


def test_what_never_began_is_submitted() -> None:
    for (record, job, _, _), action in cases():
        if (record is None or record.state is None) and job is None:
            assert action.kind == "submit" and action.cell.state == "planned"


def test_each_failure_is_resumed_or_left_as_the_tables_say() -> None:
    seen = set()
    for (_, _, resumed, fruitless), action in cases():
        if action.cell.state != "failed":
            continue
        again = action.cell.failure in resumed and fruitless < PATIENCE
        assert action.kind == ("submit" if again else "leave")
        seen.add((action.cell.failure, again))
    assert seen == set(product(FAILURES, (True, False)))


def test_out_of_memory_comes_back_as_long_as_its_micro_batch_can_be_halved() -> None:
    for job, resumed, fruitless in product(JOBS, SETS, range(PATIENCE + 2)):
        action = act(HALVED, job, resumed, fruitless)
        assert action.kind == ("wait" if job is not None and job.state != "gone" else "submit")


def test_every_failure_class_comes_back_by_somebody() -> None:
    assert set(RESUME) == set(FAILURES) == resumed_classes("request")
    # What another attempt would repeat is never tried again unasked; what came from outside always is.
    assert resumed_classes("request") - RESUMED_ON_SUBMIT == {"diverged", "out_of_memory", "error"}
    assert RESUMED == {"preempted", "node_failure", "timeout", "lost"} < RESUMED_ON_SUBMIT
    # A cluster file may say otherwise.
    mine = Cluster(resume={"error": "submit", "lost": "request"})
    assert mine.resumed("itself") == RESUMED - {"lost"}
    assert mine.resumed("submit") == RESUMED_ON_SUBMIT - {"lost"} | {"error"}


def test_a_silent_run_is_lost_and_comes_back() -> None:
    silent = next(r for r in RECORDS if r is not None and r.state == "running" and r.stale(NOW))
    action = act(silent, None, RESUMED)
    assert action.kind == "submit" and action.cell.failure == "lost" and "step 3" in str(action.cell.message)
    # The scheduler knows at once, long before the heartbeat is old.
    live = next(r for r in RECORDS if r is not None and r.state == "running" and not r.stale(NOW))
    assert act(live, Job("gone"), RESUMED) == action
    assert act(live, Job("gone", "out_of_memory"), RESUMED).cell.failure == "out_of_memory"
    # And a job that runs is not lost, however silent.
    assert act(silent, Job("running"), RESUMED).kind == "wait"


def test_a_run_of_an_earlier_job_is_lost_at_once_where_the_newest_one_is_over() -> None:
    """The newest job died before its attempt began, so that the run still tells of the one before. A job that this
    sweep never had may be alive, whatever became of ours."""
    newest = Job("gone", name="9_0", earlier=("7_0",))
    of_earlier, of_others = (
        RunRecord(SIG, "running", step=3, steps=9, attempts=1, heartbeat=NOW - 5, job=job) for job in ("7_0", "8_0")
    )
    assert act(of_earlier, newest, RESUMED) == Action(
        "submit", CellState(SIG, "failed", "lost", "no sign of life since step 3")
    )
    assert act(of_others, newest, RESUMED) == Action("wait", CellState(SIG, "running"))


def test_a_job_that_ended_before_it_wrote_anything_says_so() -> None:
    action = act(RunRecord(SIG), Job("gone", "node_failure", "12_3"), RESUMED)
    assert action.kind == "submit" and action.cell.failure == "node_failure" and "12_3" in str(action.cell.message)
    assert act(RunRecord(SIG), Job("gone", None, "12_3"), RESUMED).cell.failure == "lost"
    assert act(RunRecord(SIG), Job("gone", "error", "12_3"), RESUMED).kind == "leave"


def test_a_job_that_failed_by_itself_before_it_wrote_anything_is_left_to_the_user() -> None:
    failed = Job("gone", None, "12_3", exit_code="3:0", submitted=NOW - 10)
    action = act(RunRecord(SIG), failed, RESUMED_ON_SUBMIT)
    assert (action.kind, action.cell.failure) == ("leave", "error")
    assert all(word in str(action.cell.message) for word in ("12_3", "exit code 3"))
    # Also where an earlier attempt of the run says something else: trying again and again would tell nobody.
    for state, failure in (("failed", "preempted"), ("failed", "lost"), ("running", None), ("pruned", None)):
        earlier = RunRecord(SIG, state, failure, "earlier", 3, 9, 1, heartbeat=NOW - 1000, job="11_3")
        assert act(earlier, failed, RESUMED_ON_SUBMIT) == action
        # What the job's own attempt says, or one that was made since, counts.
        for own in (replace(earlier, job="12_3"), replace(earlier, job="", heartbeat=NOW - 5)):
            assert "exit code 3" not in str(act(own, failed, RESUMED_ON_SUBMIT).cell.message)
    # A job that was killed says nothing new.
    killed = replace(failed, exit_code="0:9")
    assert act(RunRecord(SIG), killed, RESUMED_ON_SUBMIT).cell.failure == "lost"
    stopped = RunRecord(SIG, "failed", "preempted", "stopped", 3, 9, 1, heartbeat=NOW - 1000, job="11_3")
    assert act(stopped, killed, RESUMED_ON_SUBMIT).cell.failure == "preempted"


def test_a_job_that_found_no_room_for_its_status_is_resumed_by_the_next_submission(tmp_path: Path) -> None:
    log = tmp_path / "12_3_0_log.out"
    log.write_text("submitit INFO (2026-01-02 03:04:09) - Starting\nOSError: [Errno 28] No space left on device\n")
    failed = Job("gone", None, "12_3", exit_code="1:0", submitted=NOW - 10, log=log)
    lost = RunRecord(SIG, "running", step=3, steps=9, attempts=2, heartbeat=NOW - 1000, job="11_3")
    for record in (RunRecord(SIG), lost):
        assert act(record, failed, RESUMED_ON_SUBMIT).kind == "submit"
        action = act(record, failed, RESUMED)
        assert (action.kind, action.cell.failure) == ("leave", "disk_full")


def test_a_job_that_slurm_started_again_and_that_failed_before_python_is_left_to_the_user(tmp_path: Path) -> None:
    log = tmp_path / "12_3_0_log.out"
    first = "--- gsq job started 2026-01-02 03:04:05\nsubmitit INFO (2026-01-02 03:04:09) - Starting\n"
    first += 1000 * "step\n"
    failed = Job("gone", None, "12_3", exit_code="3:0", submitted=NOW - 2000, log=log)
    for state, failure in (("failed", "preempted"), ("running", None)):
        own = RunRecord(SIG, state, failure, "stopped", 3, 9, 1, heartbeat=NOW - 1000, job="12_3")
        log.write_text(f"{first}--- gsq job started 2026-01-02 04:04:05\nno such module\n")
        action = act(own, failed, RESUMED_ON_SUBMIT)
        assert (action.kind, action.cell.failure) == ("leave", "error")
        assert all(word in str(action.cell.message) for word in ("12_3", "exit code 3", "no such module"))
        # One of the cells that share the job had come to an end of its own.
        diverged = replace(own, state="failed", failure="diverged")
        assert act(diverged, failed, RESUMED_ON_SUBMIT).cell.failure == "diverged"
        # Killed from outside it says nothing new; nor where Python began, or SLURM could not start it again.
        assert act(own, replace(failed, exit_code="0:9"), RESUMED_ON_SUBMIT).kind == "submit"
        for text in (first + first, first):
            log.write_text(text)
            assert act(own, failed, RESUMED_ON_SUBMIT).kind == "submit"


def test_a_waiting_cell_has_the_schedulers_reason_and_an_unknown_one_says_why() -> None:
    waits = act(None, Job("pending", name="7", reason="JobHeldUser"), RESUMED).cell
    assert waits.blocked and "JobHeldUser" in str(waits.reason)
    unknown = act(None, Job("unknown", name="7", reason="squeue: timed out"), RESUMED).cell
    assert not unknown.blocked and "squeue: timed out" in str(unknown.reason) and "not known" in str(unknown.reason)
    running = RunRecord(SIG, "running", step=3, steps=9, attempts=1, heartbeat=NOW)
    assert act(running, Job("running", name="7", reason="None"), RESUMED).cell.reason is None


@pytest.mark.parametrize("why", ["timeout", "node_failure"])
def test_the_scheduler_says_why_a_run_was_asked_to_stop(why: str) -> None:
    stopped = RunRecord(SIG, "failed", "preempted", "stopped", 3, 9, 1, NOW)
    assert cell_state(stopped, Job("gone", why), NOW).failure == why
    assert cell_state(stopped, Job("gone"), NOW).failure == "preempted"
    # But what the run itself found wrong stands.
    wrong = RunRecord(SIG, "failed", "diverged", "nan", 3, 9, 1, NOW)
    assert cell_state(wrong, Job("gone", why), NOW) == CellState(SIG, "failed", "diverged", "nan")


def test_patience_ends_attempts_that_get_nowhere() -> None:
    lost = RunRecord(SIG, "failed", "lost", "", 3, 9, 1, NOW)
    kinds = [act(lost, None, RESUMED, fruitless).kind for fruitless in range(PATIENCE + 2)]
    assert kinds == ["submit"] * PATIENCE + ["leave"] * 2
    # Another driver, without that memory, tries again.
    assert reconcile([SIG], {SIG: lost}, {}, NOW)[0].kind == "submit"


def test_a_plain_submission_resumes_what_the_user_can_have_mended() -> None:
    kinds = {
        failure: reconcile([SIG], {SIG: RunRecord(SIG, "failed", failure, "", 3, 9, 1, NOW)}, {}, NOW)[0].kind
        for failure in FAILURES
    }
    assert {failure for failure, kind in kinds.items() if kind == "submit"} == RESUMED_ON_SUBMIT


def test_cells_are_independent_and_in_order() -> None:
    pairs = [(r, j) for r, j in product(RECORDS, JOBS) if r is not None]
    names = [f"{i:012x}" for i in range(len(pairs))]
    records = {
        name: RunRecord(name, *[getattr(r, f) for f in ("state", "failure", "message", "step", "steps", "attempts")])
        for name, (r, _) in zip(names, pairs, strict=True)
    }
    jobs = {name: j for name, (_, j) in zip(names, pairs, strict=True) if j is not None}
    together = reconcile(names, records, jobs, NOW)
    alone = chain.from_iterable(reconcile([n], {n: records[n]}, {n: jobs[n]} if n in jobs else {}, NOW) for n in names)
    assert together == list(alone) and [a.cell.signature for a in together] == names
    assert reconcile(names[::-1], records, jobs, NOW) == together[::-1]


def test_it_is_a_function() -> None:
    """The same input gives the same output, and nothing that was handed in is changed."""
    for record, job, resumed in product(RECORDS, JOBS, SETS):
        records = {} if record is None else {SIG: record}
        jobs = {} if job is None else {SIG: job}
        fruitless = {SIG: 1}
        before = copy.deepcopy((records, jobs, resumed, fruitless))
        first = reconcile([SIG], records, jobs, NOW, resumed=resumed, fruitless=fruitless)
        assert first == reconcile([SIG], records, jobs, NOW, resumed=resumed, fruitless=fruitless)
        assert (records, jobs, resumed, fruitless) == before
