"""The log of a cell, by attempts and jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from preamble import HandedOver, WriteRun
from verbs_at_work import gsq

from gsq import sweeps
from gsq.errors import UserError
from gsq.records.attempt import FAILED, RUNNING, Attempt
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder

pytestmark = pytest.mark.usefixtures("cpu")


def test_the_log_of_the_only_cell_that_runs_needs_no_name(four: Plan, write_run: WriteRun) -> None:
    with pytest.raises(UserError) as error:
        gsq("logs", four.name)
    assert all(cell.signature in str(error.value) for cell in four.cells)
    write_run(four.cells[3], RUNNING, 3)
    assert gsq("logs", four.name).stdout.startswith(four.cells[3].signature)


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
    with pytest.raises(UserError, match="no attempt 1; "):
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
