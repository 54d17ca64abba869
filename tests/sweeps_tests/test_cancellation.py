"""Cells that are cancelled, and those that are tried again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from preamble import HandedOver, PlanOf, WriteRun
from typer.testing import CliRunner
from verbs_at_work import gsq

from gsq import sweeps
from gsq.cli.main import app
from gsq.errors import UserError
from gsq.records.attempt import DONE, FAILED, RUNNING
from gsq.records.folder import RunFolder
from gsq.records.read import RunRecord
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.cancel_retry import cancellable, failed_cells, last_cluster
from gsq.sweeps.running.local_queue import LocalQueue
from gsq.sweeps.running.snapshot import take
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.state.cancellation import claim_signal, clear, mark, marked, with_cancelled
from gsq.sweeps.state.reconcile import Job
from gsq.sweeps.state.slurm import ask, cancel_jobs
from gsq.sweeps.state.status import status

pytestmark = pytest.mark.usefixtures("cpu")


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
    """The list as SLURM 22.05 prints it, which has no option to expand it and refuses to be asked."""
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
    with pytest.raises(UserError, match="cluster 'mine': name its file"):
        last_cluster(four.name)
