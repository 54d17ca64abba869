"""cancel, retry, logs, clean and status --watch: by hand-made run folders, and with workers that really train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from gsq import sweeps
from gsq.cli.main import app
from gsq.errors import UserError
from gsq.records.attempt import DONE, FAILED, RUNNING, Attempt
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord, read_metrics, read_run
from gsq.sweeps.planning.cells import Cell, Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.cancel_retry import cancellable, failed_cells, last_cluster
from gsq.sweeps.running.local_queue import LocalQueue
from gsq.sweeps.running.snapshot import take
from gsq.sweeps.running.submit import submit
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.cancellation import claim_signal, clear, mark, marked, with_cancelled
from gsq.sweeps.state.journal import Entry
from gsq.sweeps.state.reconcile import Job
from gsq.sweeps.state.selection import select, select_one
from gsq.sweeps.state.slurm import ask, cancel_jobs
from gsq.sweeps.state.status import status
from gsq.sweeps.tables.gather import gather

PlanOf = Callable[..., Plan]
HandedOver = Callable[..., Entry]
WriteRun = Callable[..., RunFolder]
TINY = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "steps": 60,
    "image_size": 32,
    "discriminator.channels": 8,
    "discriminator.norm_groups": 4,
    "batch_size": 2,
    "loss.discriminator_start": 0,
    "evaluation.num_images": 8,
    "data.max_crop": 2.0,
    "execution.checkpoint_every": 5,
    "execution.log_every": 1,
}


def gsq(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("gsq")), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def four(folder: Path, plan_of: PlanOf, write_run: WriteRun) -> Plan:
    """A sweep with a cell that is done, two that have failed and one that has not been tried."""
    plan = plan_of(axes={"groups": [1, 2], "model.channels": [16, 32]})
    SweepFolder(folder / "runs", plan.name).write_plan(plan)
    a, b, c, _ = plan.cells
    write_run(a, DONE, 9)
    write_run(b, FAILED, 3, failure="out_of_memory", message="no memory")
    write_run(c, FAILED, 4, failure="cancelled", message="stopped as asked after step 4")
    return plan


def chosen(plan: Plan, *words: str) -> list[int]:
    signatures = [cell.signature for cell in plan.cells]
    return [signatures.index(cell.signature) for cell in select(plan, status(plan.name), words)]


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


def test_the_log_of_the_only_cell_that_runs_needs_no_name(four: Plan, write_run: WriteRun) -> None:
    with pytest.raises(UserError) as error:
        gsq("logs", four.name)
    assert all(cell.signature in str(error.value) for cell in four.cells)
    write_run(four.cells[3], RUNNING, 3)
    assert gsq("logs", four.name).stdout.startswith(four.cells[3].signature)


# Selections


def test_a_selection_by_signature_state_failure_and_value(four: Plan) -> None:
    a, b, _, _ = (cell.signature for cell in four.cells)
    assert chosen(four) == [0, 1, 2, 3]
    assert chosen(four, a) == chosen(four, a[:6]) == [0]
    assert chosen(four, a, b[:7]) == [0, 1]
    assert chosen(four, "failed") == chosen(four, "cancelled", "out_of_memory") == [1, 2]
    # A cell that waits is queued to its user, and planned to the reconciler.
    assert chosen(four, "queued") == chosen(four, "planned") == [3]
    assert chosen(four, "running") == chosen(four, "diverged") == []
    assert chosen(four, "stopped") == chosen(four, "cancelled") == [2]
    assert chosen(four, "groups=1") == chosen(four, "quantizer.groups=1") == [0, 1]
    assert chosen(four, "groups=2", "width=32") == [3]
    assert chosen(four, "groups=2", "groups=1", "model.channels=16.0") == [0, 2]
    assert chosen(four, "failed", "groups=2") == [2]
    # Also by what is no axis.
    assert chosen(four, "quantizer=gsq", "data.kind=photos", "model.adaptive_norm=true") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("zzz", ["'zzz'", "no signature", "states: ", "failed (2)", "out_of_memory (1)", "groups=1|2", "signatures: "]),
        ("faild", ["did you mean 'failed'"]),
        ("groups=3", ["groups=3", "groups is 1 (2 cells), 2 (2 cells)"]),
        ("grups=1", ["'grups' is not a config key", "did you mean 'groups'"]),
        ("", ["''", "states: "]),
    ],
)
def test_an_unknown_selection_says_what_there_is(four: Plan, word: str, parts: list[str]) -> None:
    for act in (lambda: sweeps.cancel(four.name, [word]), lambda: sweeps.retry(four.name, [word])):
        with pytest.raises(UserError) as error:
            act()
        assert all(part in str(error.value) for part in parts), str(error.value)
    assert marked(SweepFolder(Path("runs").absolute(), four.name)) == set()


def test_one_cell_is_named_by_what_fits_no_other(four: Plan) -> None:
    found = status(four.name)
    assert select_one(four, found, ["groups=1", "done"]).signature == four.cells[0].signature
    with pytest.raises(UserError, match=r"'groups=1' is 2 cells .* name one: .* groups=1 model.channels=16;"):
        select_one(four, found, ["groups=1"])
    with pytest.raises(UserError, match="no cell of sweep 'small' is running; there are states"):
        select_one(four, found, ["running"])


def test_a_beginning_that_fits_several_cells_is_refused(plan_of: PlanOf, folder: Path) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4, 8], "seed": {"range": [0, 9]}})
    SweepFolder(folder / "runs", plan.name).write_plan(plan)
    first = next(c for c in "0123456789abcdef" if sum(cell.signature[0] == c for cell in plan.cells) > 1)
    with pytest.raises(UserError, match=f"cells begin with '{first}', give more of one: {first}"):
        chosen(plan, first)


def test_levels_and_floats_are_values_too(folder: Path, plan_of: PlanOf) -> None:
    cases = [
        {"quantizer": "fsq", "latent_dim": 2, "groups": 2, "codebook_size": 8, "quantizer.levels": [8, 5]},
        {"learning_rate": 0.0005},
    ]
    plan = plan_of(cases=cases)
    SweepFolder(folder / "runs", plan.name).write_plan(plan)
    assert chosen(plan, "quantizer.levels=8x5") == chosen(plan, "quantizer.levels=[8, 5]") == [0]
    assert chosen(plan, "learning_rate=5e-4") == [1]


# Cancelled cells, by hand


def test_what_a_marker_means(plan_of: PlanOf) -> None:
    waits, preempted, broken, done, lost, alive = (
        RunRecord("a"),
        RunRecord("b", FAILED, "preempted", "m", 5, 9, 1),
        RunRecord("c", FAILED, "error", "m", 5, 9, 1),
        RunRecord("d", DONE, step=9, steps=9, attempts=1),
        RunRecord("e", RUNNING, step=3, steps=9, attempts=1),
        RunRecord("f", RUNNING, step=3, steps=9, attempts=1),
    )
    # A queue would try it again, with a smaller micro-batch.
    large = RunRecord("g", FAILED, "out_of_memory", "m", 5, 9, 1, next_micro_batch=2)
    given = {r.signature: r for r in (waits, preempted, broken, done, lost, alive, large)}
    jobs = {"e": Job("gone"), "f": Job("running")}
    records, told = with_cancelled("abcdefgh", given, jobs)
    assert [(records[s].state, records[s].failure) for s in "abcdg"] == [
        (FAILED, "cancelled"),
        (FAILED, "cancelled"),
        (FAILED, "error"),
        (DONE, None),
        (FAILED, "cancelled"),
    ]
    assert (records["a"].message, records["b"].message) == ("cancelled before its first step", "cancelled at step 5")
    assert told == {"e": Job("gone", "cancelled"), "f": Job("running")} and jobs["e"] == Job("gone")
    assert with_cancelled("", given, jobs) == (given, jobs)


def test_markers_come_and_go_and_a_worker_is_signalled_once(folder: Path) -> None:
    sweep = SweepFolder(folder / "runs", "s")
    assert marked(sweep) == set() and not claim_signal(sweep, "a", 1)
    clear(sweep, ["a"])
    mark(sweep, ["a", "b"])
    assert claim_signal(sweep, "a", 1) and not claim_signal(sweep, "a", 1) and claim_signal(sweep, "a", 2)
    assert marked(sweep) == {"a", "b"}
    clear(sweep, ["a"])
    assert marked(sweep) == {"b"} and [p.name for p in (sweep.path / "cancelled").iterdir()] == ["b"]


def test_cells_that_wait_are_cancelled_and_submitted_again(four: Plan) -> None:
    done = gsq("cancel", four.name)
    assert done.exit_code == 0 and done.output.startswith("cancelled 1 ")
    found = status(four.name)
    assert (found.counts["planned"], found.failures["cancelled"]) == (0, 2)
    assert found.cells[3].message == "cancelled before its first step"
    assert "nothing to cancel" in gsq("cancel", four.name).output
    assert json.loads(gsq("cancel", four.name, "--json").output) == {"sweep": "small", "waiting": [], "running": []}
    # A cell that failed is no matter for cancel; nor is one that is done for retry.
    assert "nothing to cancel" in gsq("cancel", four.name, "failed").output
    assert [cell.axes for cell in failed_cells(four.name).cells] == [cell.axes for cell in four.cells[1:]]
    assert failed_cells(four.name, ["groups=1"]).cells == four.cells[1:2]
    done = gsq("retry", four.name, "done")
    assert done.exit_code == 0 and done.output.startswith("nothing to retry")
    assert sweeps.retry(four.name, ["done"]) is None


def test_a_queue_never_starts_a_cancelled_cell(four: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after its marker is gone: then somebody else submitted it."""
    sweep = SweepFolder(folder / "runs", four.name)
    started: list[str] = []
    monkeypatch.setattr(LocalQueue, "_start", lambda self, signature: started.append(signature))
    queue = LocalQueue(sweep, take(sweep), [cell.signature for cell in four.cells], Cluster(workers=1))
    assert [action.kind for action in queue._look()[0]] == ["finished", "leave", "submit", "submit"]
    mark(sweep, [four.cells[3].signature])
    assert [action.kind for action in queue._look()[0]] == ["finished", "leave", "submit", "leave"]
    clear(sweep, [four.cells[3].signature])
    assert [action.kind for action in queue._look()[0]] == ["finished", "leave", "submit", "leave"]
    mark(sweep, [four.cells[2].signature])
    assert [action.kind for action in queue.run()] == ["finished", "leave", "leave", "leave"] and not started


def test_what_a_queue_would_try_again_is_cancelled(four: Plan, write_run: WriteRun, handed_over: HandedOver) -> None:
    a, b, _, d = four.cells
    write_run(b, FAILED, 4, failure="out_of_memory", next_micro_batch=1)
    write_run(d, RUNNING, 2, heartbeat=1.0)
    assert status(four.name).cells[3].failure == "lost"
    assert [c.signature for c in cancellable(four.name)] == [b.signature, d.signature]
    handed_over(four.name, [b], "1")
    sweep = SweepFolder(Path("runs").absolute(), four.name)
    # SLURM does nothing by itself.
    assert [c.signature for c in cancellable(four.name, ["failed"])] == [d.signature]
    assert a.signature not in marked(sweep)


def test_a_terminal_is_asked_where_several_cells_are_hit(four: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = SweepFolder(Path("runs").absolute(), four.name)
    (RunFolder.of(sweep.runs, four.cells[2].signature).path / "attempts" / "1" / "status.json").unlink()
    for module in ("options", "cancel_retry"):
        monkeypatch.setattr(f"gsq.cli.{module}.on_terminal", lambda: True)
    done = CliRunner().invoke(app, ["cancel", four.name], input="n\n")
    assert done.exit_code == 1 and "Stop 2 cells?" in done.output and marked(sweep) == set()
    # One needs no question.
    assert CliRunner().invoke(app, ["cancel", four.name, "width=32"]).exit_code == 0
    assert marked(sweep) == {four.cells[3].signature}
    clear(sweep, marked(sweep))
    assert CliRunner().invoke(app, ["cancel", four.name, "--yes"]).exit_code == 0
    assert len(marked(sweep)) == 2


def test_scancel_is_called_once_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "scancel"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n[ -z "$SAY" ] || {{ echo "$SAY" >&2; exit 1; }}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    cancel_jobs([])
    cancel_jobs(["7_1", "7_0", "12"])
    assert (folder / "calls").read_text() == "12 7_0 7_1\n"
    monkeypatch.setenv("SAY", "scancel: error: Kill job error on job id 12: Job/step already completing or completed")
    cancel_jobs(["12"])
    monkeypatch.setenv("SAY", "scancel: error: Access denied")
    with pytest.raises(UserError, match="Access denied"):
        cancel_jobs(["12"])
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(UserError, match="not found on the PATH"):
        cancel_jobs(["12"])


def test_sacct_lists_what_waits_as_one_array(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SLURM 22.05 prints it, which has no option to expand it and refuses to be asked."""
    program = folder / "bin" / "sacct"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\ncase "$*" in *--array*) exit 1;; esac\n'
        "printf '7_[1,4-6:2,8-9%%2]|PENDING\\n7_0|RUNNING\\n7_2|CANCELLED by 0\\n12|COMPLETED\\n'\n"
    )
    program.chmod(0o755)
    # What neither lists is over only where squeue answers.
    (program.parent / "squeue").write_text("#!/bin/sh\n")
    (program.parent / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin")
    found = ask([*(f"7_{task}" for task in range(10)), "12"])
    assert {name for name, job in found.items() if job.state == "pending"} == {"7_1", "7_4", "7_6", "7_8", "7_9"}
    assert found["7_0"].state == "running" and found["7_2"] == Job("gone", "cancelled", "7_2")
    assert {found[name].state for name in ("7_3", "7_5", "7_7", "12")} == {"gone"}


def test_a_retry_goes_where_the_sweep_was_submitted(four: Plan, handed_over: HandedOver) -> None:
    assert last_cluster(four.name) == "local"
    handed_over(four.name, four.cells)
    assert last_cluster(four.name) == "slurm"
    handed_over(four.name, four.cells, cluster="mine")
    with pytest.raises(UserError, match="was submitted to cluster 'mine': name its file"):
        last_cluster(four.name)


# Logs


def test_the_log_of_each_attempt(four: Plan, folder: Path) -> None:
    cell = four.cells[1]
    sweep = SweepFolder(folder / "runs", four.name)
    run = RunFolder.of(sweep.runs, cell.signature)
    second = run.new_attempt()
    second.write_status(FAILED, 6, 9, failure="error", message="ValueError: [x]")
    (second.path / "traceback.txt").write_text("Traceback ...\nValueError: [x]\n")
    (second.path / "metrics.jsonl").write_text('{"step": 5, "loss": 0.5, "extra": 1}\n{"step": 6, "loss": 0.25}\n{"st')
    path = sweep.log(cell.signature)
    path.parent.mkdir(parents=True)
    first_start, second_start = (
        "--- gsq worker started 2026-01-02 03:04:05",
        "--- gsq worker started 2026-01-02 03:05:05",
    )
    path.write_text(f"{first_start}\nfirst\n{second_start}\nsecond\n")
    shown = gsq("logs", four.name, cell.signature[:7]).output.splitlines()
    steps = cell.config.train.steps
    assert shown == [
        f"{cell.signature} groups=1 model.channels=32, attempt 2 of 2, failed (error) at step 6/{steps}: "
        "ValueError: [x]",
        second_start,
        "second",
        "step 5, loss 0.5",
        "step 6, loss 0.25",
        "Traceback ...",
        "ValueError: [x]",
    ]
    earlier = gsq("logs", four.name, cell.signature, "--attempt", "1", "--lines", "1").output.splitlines()
    assert earlier[1:] == ["first"] and "attempt 1 of 2, failed (out_of_memory): no memory" in earlier[0]
    value = json.loads(gsq("logs", four.name, cell.signature, "--json").output)
    assert (value["attempt"], value["failure"], value["lines"][1], value["files"]) == (
        2,
        "error",
        "second",
        [str(path)],
    )
    with pytest.raises(UserError, match="has no attempt 3; there are 1, 2"):
        sweeps.read_log(four.name, cell.signature, 3)
    with pytest.raises(UserError, match="leave out --json and --attempt"):
        gsq("logs", four.name, cell.signature, "-f", "--attempt", "1")
    # A traceback that the log has is not said twice.
    path.write_text(f"{first_start}\nfirst\n{second_start}\nTraceback ...\nValueError: [x]\n")
    assert sweeps.read_log(four.name, cell.signature).traceback == ""


def test_the_log_of_a_job_and_of_a_cell_that_was_not_tried(four: Plan, folder: Path, handed_over: HandedOver) -> None:
    sweep, cell = SweepFolder(folder / "runs", four.name), four.cells[3]
    log = sweeps.read_log(four.name, "planned")
    assert (log.attempt, log.text, log.state) == (0, "", "planned") and "no attempt yet" in log.headline
    with pytest.raises(UserError, match="has no attempt 1; it has not been tried yet"):
        sweeps.read_log(four.name, "planned", 1)
    first, second = handed_over(four.name, four.cells, "7"), handed_over(four.name, [cell], "9")
    run = RunFolder.of(sweep.runs, cell.signature)
    line = "submitit INFO (2026-01-02 03:0{}:05,123) - {}\n"
    (first.path / "7_3_0_log.out").write_text(
        line.format(1, "Starting with JobEnvironment(...)") + "lost\n" + line.format(2, "Loading pickle")
        + line.format(3, "Starting with JobEnvironment(...)") + "one\n"
    )  # fmt: skip
    (second.path / "9_0_0_log.out").write_text(line.format(5, "Starting with JobEnvironment(...)") + "two\n")
    # The first start made no attempt, so that attempts are found by their time.
    for number, minute in ((1, 3), (2, 5)):
        attempt = run.new_attempt()
        begun = time.mktime((2026, 1, 2, 3, minute, 6, 0, 0, -1))
        attempt = Attempt(attempt.path, number, clock=lambda begun=begun: begun, started=begun)
        attempt.write_status(FAILED, number, 9, failure="preempted")
    assert sweeps.read_log(sweep, cell.signature, 1).text.splitlines()[-1] == "one"
    assert sweeps.read_log(sweep, cell.signature).text.splitlines()[-1] == "two"


# What can go


def files_of(result: Any, runs: Path) -> dict[str, list[str]]:
    return {kind: [p.relative_to(runs).as_posix() for p in paths] for kind, paths in result.files.items() if paths}


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")


def test_clean_takes_what_no_reader_needs(four: Plan, folder: Path, write_run: WriteRun) -> None:
    runs = folder / "runs"
    done, failed, _, running = four.cells
    steps = done.config.train.steps
    last = f"checkpoint-{steps:08d}"
    kept = ("model.safetensors", "metrics.jsonl", "samples.png", "evaluations/p-00000009.json")
    run = write_run(done, FAILED, 3, failure="lost")
    run.write_config({"execution": {"keep_checkpoint": False}})
    first, second = run.attempt_folders()
    put(first, *kept, "checkpoint-00000004.pt", "checkpoint-00000004.json", f"{last}.pt", f"{last}.json")
    put(second, "model.safetensors", "samples.png", ".reserve", "checkpoint-00000005.partial")
    put(
        RunFolder.of(runs, failed.signature).path / "attempts" / "1", "checkpoint-00000003.pt", ".status.json.1.partial"
    )
    alive = write_run(running, RUNNING, 3).attempt_folders()[0]
    put(alive, "checkpoint-00000003.pt", "checkpoint-00000004.partial")
    put(runs / "sweeps" / four.name, ".plan-0002-0123456789ab.jsonl.1.partial")
    before = sorted(p for p in runs.rglob("*") if p.is_file())

    shown = sweeps.clean(dry_run=True)
    one = run.path.relative_to(runs).as_posix() + "/attempts/"
    other = RunFolder.of(runs, failed.signature).path.relative_to(runs).as_posix()
    assert files_of(shown, runs) == {
        "checkpoints": [f"{one}1/{name}.{e}" for name in ("checkpoint-00000004", last) for e in ("json", "pt")],
        "leftovers": [f"{one}2/.reserve"],
        "partial": sorted([f"{one}2/checkpoint-00000005.partial", f"{other}/attempts/1/.status.json.1.partial"]),
    }  # fmt: skip
    assert shown.bytes == {"checkpoints": 20, "leftovers": 5, "partial": 10} and not shown.removed
    assert sorted(p for p in runs.rglob("*") if p.is_file()) == before
    # A file outside an attempt may be in the making, until it is old.
    os.utime(runs / "sweeps" / four.name / ".plan-0002-0123456789ab.jsonl.1.partial", (1, 1))
    output = gsq("clean", four.name, "--dry-run").output
    assert (
        "20 B       4 files  checkpoints of finished runs" in output
        and "40 B       8 files  would be removed" in output
    )
    value = json.loads(gsq("clean", "--json").output)
    assert value["removed"] and value["bytes"] == 40 and value["kinds"]["partial"] == {"files": 3, "bytes": 15}
    after = sorted(p for p in runs.rglob("*") if p.is_file())
    assert len(after) == len(before) - 8
    assert all((first / name).is_file() for name in kept) and (alive / "checkpoint-00000004.partial").is_file()
    assert (RunFolder.of(runs, failed.signature).path / "attempts" / "1" / "checkpoint-00000003.pt").is_file()
    assert not any(files_of(sweeps.clean(), runs).values())


def test_clean_keeps_the_checkpoint_that_longer_runs_start_from(four: Plan, folder: Path) -> None:
    cell = four.cells[0]
    run = RunFolder.of(folder / "runs", cell.signature)
    (attempt,) = run.attempt_folders()
    last = f"checkpoint-{cell.config.train.steps:08d}.pt"
    put(attempt, "checkpoint-00000004.pt", last)
    # No config says anything; nor is the folder a run's that can be read: it stays.
    assert [p.name for p in sweeps.clean(dry_run=True).files["checkpoints"]] == ["checkpoint-00000004.pt"]
    run.write_config({"execution": {"keep_checkpoint": False}})
    assert len(sweeps.clean(dry_run=True).files["checkpoints"]) == 2
    put(folder / "runs" / "lineage" / "0123456789ab", f"{cell.config.train.steps}-{cell.signature}")
    assert [p.name for p in sweeps.clean().files["checkpoints"]] == ["checkpoint-00000004.pt"]
    assert (attempt / last).is_file()
    # An attempt of the same run that may be alive needs everything.
    put(attempt, "checkpoint-00000004.pt")
    run.new_attempt().write_status(RUNNING, 0, 9)
    assert not any(sweeps.clean().files.values())


def test_runs_that_no_sweep_mentions_go_when_asked_for(
    four: Plan, folder: Path, plan_of: PlanOf, write_run: WriteRun
) -> None:
    runs = folder / "runs"
    lone, alive = plan_of(name="never", axes={"groups": [4, 8]}).cells
    path = write_run(lone, DONE, 9).path
    write_run(alive, RUNNING, 1)
    assert "orphans" not in sweeps.clean(dry_run=True).files
    shown = gsq("clean", "--orphans", "--dry-run")
    assert "1 file   runs that no sweep mentions" in shown.output and path.is_dir()
    with pytest.raises(UserError, match="leave out 'small'"):
        sweeps.clean("small", orphans=True)
    with pytest.raises(UserError, match="no sweep 'smal'"):
        sweeps.clean("smal")
    assert sweeps.clean(orphans=True).runs == (lone.signature,)
    assert not path.exists() and RunFolder.of(runs, alive.signature).path.is_dir()
    assert all(RunFolder.of(runs, cell.signature).path.is_dir() for cell in four.cells[:3])
    (plan_file,) = (runs / "sweeps" / "small").glob("plan-*.jsonl")
    plan_file.write_text(plan_file.read_text()[:-1].rsplit("\n", 1)[0] + "\nno cell\n")
    with pytest.raises(UserError, match=r"plan cannot be read.*line 5: not a cell"):
        sweeps.clean(orphans=True)


# With workers that really train


def science(runs: Path, name: str, cells: list[Cell], where: Path) -> pd.DataFrame:
    frame = read_table(gather(SweepFolder(runs, name), where))
    return frame.set_index("signature").loc[
        [cell.signature for cell in cells], [c for c in SCIENCE_COLUMNS if c != "signature"]
    ]


@pytest.fixture
def driver(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A queue of one worker on three cells."""
    document = {"name": "trio", "base": "cpu-tiny", "set": TINY, "axes": {"groups": [1, 2, 4]}}
    Path("trio.yaml").write_text(yaml.safe_dump(document))
    Path("one.yaml").write_text("kind: local\nworkers: 1\n")
    process = start("submit", "trio.yaml", "--cluster", "one.yaml")
    yield process
    process.kill()
    process.wait()


def test_a_cancelled_sweep_goes_on_to_the_same_numbers(driver: subprocess.Popen[str], folder: Path) -> None:
    """The cell that trains and one that waits are cancelled; the queue finishes the third and starts no other."""
    runs = folder / "runs"
    plan = make_plan(load_spec("trio.yaml"))
    run_of = {cell.signature: RunFolder.of(runs, cell.signature) for cell in plan.cells}

    def training() -> list[str]:
        return [s for s, run in run_of.items() if read_run(run).state == RUNNING and read_run(run).step >= 7]

    wait_for(training)
    (running,) = training()
    waiting = next(s for s in run_of if s != running)
    told = gsq("cancel", "trio", running, waiting)
    assert told.output.splitlines()[0] == "cancelled 1 queued cell"
    assert "asked 1 cell to stop" in told.output and "gsq status trio" in told.output
    follower = start("logs", "trio", running, "-f")
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1 and output.count("stopped") >= 2, output
    said, _ = follower.communicate(timeout=30)
    assert follower.returncode == 0 and f"{running} stopped: stopped as asked after step" in said
    found = {cell.signature: cell for cell in status("trio").cells}
    stopped = found[running].step
    assert 7 <= stopped < 60 and (found[running].failure, found[waiting].failure) == ("cancelled", "cancelled")
    assert [cell.state for cell in found.values()].count("done") == 1
    assert read_run(run_of[waiting]).attempts == 0 and read_run(run_of[running]).attempts == 1
    assert list((run_of[running].path / "attempts" / "1").glob(f"checkpoint-{stopped:08d}.json"))
    # clean leaves alone what the run goes on from.
    sweeps.clean()

    assert sweeps.retry("trio", [running], cluster=Cluster(workers=1)) is not None
    assert read_run(run_of[running]).state == DONE and read_run(run_of[waiting]).attempts == 0
    assert [line["step"] for line in read_metrics(run_of[running])] == list(range(1, 61))
    second = (run_of[running].path / "attempts" / "2" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(second[0])["step"] == stopped + 1
    # submit takes up the one that was cancelled before it began.
    assert {a.kind for a in submit(plan, Cluster(workers=1)).actions} == {"finished"}
    cells = [cell for cell in plan.cells if cell.signature == running]
    reference = folder / "reference"
    submit(Plan("trio", tuple(cells)), Cluster(workers=1), runs=reference)
    pd.testing.assert_frame_equal(
        science(runs, "trio", cells, folder / "a.parquet"),
        science(reference, "trio", cells, folder / "b.parquet"),
        check_exact=True,
    )


def test_watching_and_following_end_with_the_sweep_or_with_ctrl_c(driver: subprocess.Popen[str], folder: Path) -> None:
    wait_for(lambda: list((folder / "runs" / "sweeps" / "trio").glob("plan-*.jsonl")))
    watcher, follower = start("status", "trio", "--watch"), start("logs", "trio", "groups=4", "-f")
    other = start("status", "trio", "--watch")
    time.sleep(2.5)
    for process in (watcher, follower):
        process.send_signal(signal.SIGINT)
    for process in (watcher, follower):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in output, output
    # At once after the start of a worker, too, which has no handler for signals yet.
    gsq("cancel", "trio")
    driver.communicate(timeout=90)
    output, _ = other.communicate(timeout=60)
    assert other.returncode == 0 and "3 stopped" in output, output
    assert status("trio").failures == {"cancelled": 3}
