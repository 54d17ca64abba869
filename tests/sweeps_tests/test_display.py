"""What is shown is what was said: texts of users and of errors are never taken for markup."""

from __future__ import annotations

import signal
import time
from io import StringIO

import pytest
from preamble import PlanOf
from rich.console import Console

from gsq.cli.live import LiveView
from gsq.cli.show_plan import print_plan
from gsq.cli.show_status import overview_renderable, status_renderable
from gsq.cli.tables import fitting_table, head_of
from gsq.cli.wording import duration, end_time, size
from gsq.records.read import RunRecord
from gsq.sweeps.costing.forecast import forecast
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.state.reconcile import Action, CellState, Job, cell_state
from gsq.sweeps.state.status import SweepLine, SweepStatus, row

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


HEADED = ("downsample", "codebook_size", "bits_per_pixel", "perplexity", "latent_dim", "psnr_db")


def lines_of_heads(width: int, spare: tuple[str, ...] = ()) -> list[str]:
    target = console(width)
    columns = {head_of(name): ["1", "16"] for name in HEADED}
    target.print(fitting_table(target, {**columns, "images": ["2.4k", "1"]}, spare))
    return text(target).rstrip().splitlines()


def test_heads_are_words_on_one_line_where_there_is_room() -> None:
    head, *rows = lines_of_heads(120)
    assert len(rows) == 2
    assert head.split("  ")[0].strip() == "downsample codebook bits/pixel perplexity latent dim PSNR dB images"


def test_heads_wrap_between_words_and_then_axes_are_symbols() -> None:
    first, second, *_ = lines_of_heads(62)
    assert "latent" in first and "dim" in second and "downsample" in second and "perplexity" in second
    narrow = lines_of_heads(45)
    assert narrow[1].split()[:4] == ["f", "V", "pixel", "perplexity"] and "bits/" in narrow[0]
    assert "images" not in "".join(lines_of_heads(36, ("images",)))


def test_values_are_broken_before_heads_are_cut_anywhere() -> None:
    target = console(17)
    target.print(fitting_table(target, {"a": ["123456789"], head_of("perplexity"): ["4"]}))
    assert "perplexity" in text(target) and "123456789" not in text(target)


def test_the_end_names_a_year_that_is_another() -> None:
    new_year = time.mktime((2027, 1, 1, 6, 30, 0, 0, 0, -1))
    assert "2027" in end_time(new_year, 43200 + 3600) and "06:30" in end_time(new_year, 43200 + 3600)
    assert end_time(new_year, 3600) == "06:30"
    later = time.mktime((2027, 3, 1, 6, 30, 0, 0, 0, -1))
    assert end_time(later, 5 * 86400) == "Mon 01 Mar, 06:30"


def stopped(plan: Plan) -> SweepStatus:
    first, second, third = plan.cells
    rows = [
        row(first, CellState(first.signature, "failed", "cancelled", "stopped"), RunRecord(first.signature, step=4)),
        row(second, CellState(second.signature, "failed", "error", "boom"), RunRecord(second.signature)),
        row(third, CellState(third.signature, "planned"), RunRecord(third.signature)),
    ]
    return SweepStatus(plan.name, tuple(rows))


def test_a_stopped_cell_is_not_called_failed_and_a_verb_that_helps_is_named(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1, 2, 4]})
    target = console()
    target.print(status_renderable(stopped(plan)))
    shown = text(target)
    assert "1 queued, 0 running, 0 done, 1 failed, 1 stopped" in shown and "cancelled" not in shown
    assert f"gsq retry {plan.name}" in shown and f"gsq logs {plan.name}" in shown and "boom" in shown
    live = console()
    first = plan.cells[0]
    with LiveView(plan, 1, "cpu", live) as view:
        record = RunRecord(first.signature, "failed", "cancelled", "stopped", 4, 9, 1)
        view.update([Action("leave", cell_state(record, None, 1.0))], {first.signature: record})
    assert "stopped G=1 at step 4" in text(live) and "failed G=1" not in text(live)


def test_ctrl_c_is_acknowledged_before_the_cells_have_stopped(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1]})
    (cell,) = plan.cells
    target, before = console(), signal.getsignal(signal.SIGINT)
    record = RunRecord(cell.signature, "running", step=3, steps=9, attempts=1, heartbeat=1.0)
    with LiveView(plan, 1, "cpu", target) as view:
        view.update([Action("wait", cell_state(record, None, 1.0))], {cell.signature: record})
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert "stopping: 1 running cell" in text(target)
    assert signal.getsignal(signal.SIGINT) is before
    with LiveView(plan, 1, "cpu", target, stops_cells=False):
        assert signal.getsignal(signal.SIGINT) is before


def test_the_list_of_sweeps_names_running_cells(plan_of: PlanOf) -> None:
    plan = plan_of(axes={"groups": [1]})
    (cell,) = plan.cells
    running = row(cell, CellState(cell.signature, "running"), RunRecord(cell.signature, "running", step=3, steps=350))
    target = console()
    lines = [
        SweepLine("one", 1.0, {"running": 1, "failed": 2}, (running,)),
        SweepLine("bad", 0.0, {}, problem="[torn]"),
    ]
    target.print(overview_renderable(lines))
    assert "1 running, 0 done, 2 failed" in text(target) and cell.signature in text(target) and "[torn]" in text(target)
