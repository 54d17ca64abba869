"""Sweeps as a whole: listed, renamed and removed, and what a shell offers of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from preamble import PlanOf, WriteRun
from typer.testing import CliRunner

from gsq.cli.main import app
from gsq.errors import UserError
from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder, sweep_names
from gsq.sweeps.state.sweeps import remove_sweep, rename_sweep, sweep_bytes


@pytest.fixture
def sweep(plan_of: PlanOf, write_run: WriteRun, folder: Path) -> SweepFolder:
    """Two cells, of which one is done; another sweep has that one, too."""
    plan = plan_of(axes={"width": [8, 16]})
    write_run(plan.cells[0], "done", 300, heartbeat=1.0)
    write_run(plan.cells[1], "failed", 20, heartbeat=1.0, failure="diverged", message="nan")
    SweepFolder(folder / "runs", "other").write_plan(Plan("other", plan.cells[:1]))
    found = SweepFolder(folder / "runs", "small")
    found.write_plan(plan)
    return found


def test_the_list_has_state_age_and_size(sweep: SweepFolder) -> None:
    done = CliRunner().invoke(app, ["sweeps", "--json"], catch_exceptions=False)
    rows = {row["sweep"]: row for row in json.loads(done.stdout)["sweeps"]}
    assert rows["small"]["counts"] == {"done": 1, "failed": 1} and rows["other"]["counts"] == {"done": 1}
    files = [path for path in sweep.runs.rglob("*") if path.is_file() and "other" not in path.parts]
    assert rows["small"]["bytes"] == sum(path.stat().st_size for path in files) == sweep_bytes("small")
    assert 0 <= rows["small"]["seconds"] < 60
    assert "small" in CliRunner().invoke(app, ["sweeps"], catch_exceptions=False).stdout


def test_a_renamed_sweep_keeps_its_cells(sweep: SweepFolder) -> None:
    signatures = sweep.signatures()
    assert rename_sweep("small", "first.try").signatures() == signatures
    assert sweep_names(sweep.runs) == ["first.try", "other"]
    for name, words in (("other", "already"), ("a/b", "letters"), (".x", "letters")):
        with pytest.raises(UserError, match=words):
            rename_sweep("first.try", name)
    with pytest.raises(UserError, match="no sweep 'small'"):
        rename_sweep("small", "again")


def test_a_removed_sweep_leaves_runs_and_other_sweeps(sweep: SweepFolder) -> None:
    shared, lone = sweep.signatures()
    # Where nobody can be asked, what is final needs --yes.
    refused = CliRunner().invoke(app, ["sweeps", "remove", "small"])
    assert isinstance(refused.exception, UserError) and "--yes" in str(refused.exception) and sweep.exists
    assert remove_sweep("small").lone == 1
    assert sweep_names(sweep.runs) == ["other"] and not sweep.path.exists()
    assert all(RunFolder.of(sweep.runs, signature).path.is_dir() for signature in (shared, lone))
    assert list((sweep.runs / "sweeps").iterdir()) == [sweep.runs / "sweeps" / "other"]


def test_a_live_sweep_is_refused(sweep: SweepFolder, plan_of: PlanOf, write_run: WriteRun) -> None:
    from gsq.records.attempt import process_start

    write_run(plan_of(axes={"width": [16]}).cells[0], "running", 30, pid_start=process_start(os.getpid()))
    for act in (lambda: rename_sweep("small", "x"), lambda: remove_sweep("small")):
        with pytest.raises(UserError, match="gsq cancel small"):
            act()
    assert sweep.exists


def test_a_sweep_whose_queue_is_at_work_is_refused(sweep: SweepFolder) -> None:
    import fcntl

    with (sweep.path / "queue.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="gsq run is at work"):
            remove_sweep("small")
    assert sweep.exists


def test_a_sweep_whose_plan_is_damaged_is_named_with_the_folder_to_remove(sweep: SweepFolder) -> None:
    (plan,) = sweep.path.glob("plan-*.jsonl")
    plan.write_text("{")
    for act in (lambda: rename_sweep("small", "x"), lambda: remove_sweep("small")):
        with pytest.raises(UserError) as refused:
            act()
        assert str(plan) in str(refused.value) and f"remove the folder {sweep.path} " in str(refused.value)
    assert sweep.path.exists()


def offered(words: str) -> list[str]:
    """What bash gets for the last word of a line."""
    variables = {**os.environ, "_GSQ_COMPLETE": "complete_bash", "COMP_WORDS": words}
    variables["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    code = "import sys; sys.argv = ['gsq']; from gsq.cli.main import app; app(prog_name='gsq')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=60)
    return done.stdout.split()


def test_the_shell_completes_sweeps_and_cells(sweep: SweepFolder) -> None:
    assert offered("gsq status s") == ["small"]
    first = sweep.signatures()[0]
    assert offered(f"gsq logs small {first[:4]}") == [first]
    assert "diverged" in offered("gsq retry small d")
    assert "quickstart" in offered("gsq run qu")
    assert offered("gsq logs nosuch a") == []
