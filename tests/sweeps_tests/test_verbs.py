"""Cancelling, watching and following a sweep whose workers really train."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from preamble import wait_for
from verbs_at_work import TINY, gsq, start

from gsq import sweeps
from gsq.records.attempt import DONE, RUNNING
from gsq.records.folder import RunFolder
from gsq.records.read import read_metrics, read_run
from gsq.sweeps.planning.cells import Cell, Plan, make_plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.running.submit import submit
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table
from gsq.sweeps.spec.cluster import Cluster
from gsq.sweeps.spec.sweep import load_spec
from gsq.sweeps.state.status import status
from gsq.sweeps.tables.gather import gather

pytestmark = pytest.mark.usefixtures("cpu")


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
    assert follower.returncode == 0 and f"{running} stopped: " in said
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
