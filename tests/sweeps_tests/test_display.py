"""What is shown is what was said: texts of users and of errors are never taken for markup."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from gsq.record import RunRecord
from sweeps.display import LiveView, duration, print_plan, size, status_renderable
from sweeps.forecasting import forecast
from sweeps.monitoring import SweepStatus, row
from sweeps.planning import Plan
from sweeps.reconcile import Action, CellState, Job, cell_state

PlanOf = Callable[..., Plan]

MESSAGES = ["expected one of [cpu, cuda]", "no file at [/data/x]", "IndexError: [Errno 2] x[i]", "[bold]loud[/bold]"]


def console(width: int = 200) -> Console:
    return Console(file=StringIO(), width=width)


def text(target: Console) -> str:
    assert isinstance(target.file, StringIO)
    return target.file.getvalue()


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_of_a_failure_is_printed_as_it_is(plan_of: PlanOf, message: str) -> None:
    plan = plan_of(axes={"groups": [1]})
    (cell,) = plan.cells
    record = RunRecord(cell.signature, "failed", "error", message, 1, 9, 1)
    state = CellState(cell.signature, "failed", "error", message)
    live, whole = console(), console()
    with LiveView(plan, 1, "cpu", live) as view:
        view.update([Action("leave", state)], {cell.signature: record})
    assert f"failed G=1: error: {message}" in text(live)
    whole.print(status_renderable(SweepStatus(plan.name, (row(cell, state, record),))))
    assert f"1 failed as error: {message}" in text(whole)


def test_a_constraint_is_printed_as_it_is(plan_of: PlanOf) -> None:
    where = "groups in [latent_dim, 4]"
    plan = plan_of(axes={"groups": [1, 2, 4]}, where=where)
    target = console()
    print_plan(target, plan, forecast(plan))
    assert f"left out 2 by where: {where}" in text(target)


def test_a_plan_of_many_cells_is_cut_and_says_so(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4], "seed": {"range": [0, 29]}})
    target, whole = console(), console()
    found = forecast(plan)
    print_plan(target, plan, found)
    print_plan(whole, plan, found, None)
    assert "... and 30 more (--all shows them)" in text(target) and "90 cells" in text(target)
    assert sum(cell.signature in text(target) for cell in plan.cells) == 60
    assert sum(cell.signature in text(whole) for cell in plan.cells) == 90


def test_each_cell_that_ends_is_said_once(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2]})
    one, two = plan.cells
    target = console()
    with LiveView(plan, 1, "cpu", target) as view:
        for state in ("running", "running", "done", "done"):
            records = {
                one.signature: RunRecord(one.signature, state, step=3, steps=9, attempts=1, heartbeat=1.0),
                two.signature: RunRecord(two.signature),
            }
            actions = [Action("wait", cell_state(records[c.signature], None, 1.0)) for c in plan.cells]
            view.update(actions, records)
    assert text(target).count("done   G=1") == 1 and "G=2" not in text(target)


def test_a_run_says_once_what_will_not_start_and_status_says_why_cells_wait(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    jobs = [Job("pending", reason=reason) for reason in ("PartitionDown", "PartitionDown", "Priority")]
    records = {c.signature: RunRecord(c.signature) for c in plan.cells}
    states = [cell_state(records[c.signature], job, 1.0) for c, job in zip(plan.cells, jobs, strict=True)]
    target, whole = console(), console()
    with LiveView(plan, 1, "cpu", target) as view:
        for _ in range(3):
            view.update([Action("wait", state) for state in states], records)
    assert text(target).count("2 cells will not start: PartitionDown") == 1 and "Priority" not in text(target)
    # On a terminal it is drawn each time.
    drawn = console()
    drawn.print(view._render([row(c, s, records[s.signature]) for c, s in zip(plan.cells, states, strict=True)], 1.0))
    rows = tuple(row(c, s, records[s.signature]) for c, s in zip(plan.cells, states, strict=True))
    whole.print(status_renderable(SweepStatus(plan.name, rows)))
    for shown in (text(drawn), text(whole)):
        assert "2 cells will not start: PartitionDown" in shown and "1 cell waits: Priority" in shown


def test_numbers_are_readable() -> None:
    assert [duration(s) for s in (None, 0.4, 61, 3725, 90061)] == ["-", "0 s", "1 min 01 s", "1 h 02 min", "1 d 1 h"]
    assert [size(n) for n in (5, 1500, 2.5e9)] == ["5 B", "1.5 kB", "2.5 GB"]
