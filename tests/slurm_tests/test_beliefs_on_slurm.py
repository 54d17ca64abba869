"""What gsq believes of a real cluster: numbers given again, a controller that is away, jobs that die before Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cluster import Cluster  # noqa: E402

SWEEP = """\
name: beliefs
base: cpu-tiny
set: {steps: 6, batch_size: 4, loss.perceptual: none, evaluation.num_images: 8}
axes: {groups: [1, 4]}
"""
PLAIN = "kind: slurm\npartition: test\nminutes: 10\nmemory_gb: 1\n"


@pytest.fixture
def cluster(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    if slurm.conf is None or not slurm.ours:
        pytest.skip("stops the controller: only on a cluster that cluster.py started")
    for name in [n for n in os.environ if n.startswith("SLURM_") and n != "SLURM_CONF"]:
        monkeypatch.delenv(name)
    found = Cluster(Path(slurm.conf).parent.parent)
    try:
        yield found
    finally:
        if found.pid("slurmctld") is None:
            found.bring_back("slurmctld")
        slurm.scontrol("update", "PartitionName=test", "State=UP")
        if jobs := slurm.squeue():
            slurm.run("scancel", *jobs)
        slurm.wait(lambda: not slurm.squeue(), 60)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "beliefs.yaml").write_text(SWEEP)
    (tmp_path / "plain.yaml").write_text(PLAIN)
    (tmp_path / "broken.yaml").write_text(f"{PLAIN}setup: ['echo no module of that name >&2; exit 3']\n")
    return tmp_path


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("gsq")), *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def gsq(*words: str, folder: Path, code: int = 0) -> str:
    """What the command prints; fails the test where it ends with another code."""
    process = start(*words, folder=folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


def cells(folder: Path) -> list[dict[str, Any]]:
    return json.loads(gsq("status", "beliefs", "--json", folder=folder))["cells"]


def test_a_job_that_died_before_python_stays_an_error_when_its_number_is_a_strangers(
    slurm: Any, cluster: Cluster, sweep: Path
) -> None:
    gsq("submit", "beliefs.yaml", "--cluster", "broken.yaml", folder=sweep)
    slurm.wait(lambda: all(c["state"] == "failed" for c in cells(sweep)), 60, every=0.5)
    # Accounting may hear of the exit code a moment later.
    slurm.wait(lambda: all("exit code 3" in c["message"] for c in cells(sweep)), 30, every=0.5)
    before = cells(sweep)
    assert all(c["failure"] == "error" and "no module of that name" in c["message"] for c in before)
    assert "nothing to submit" in gsq("submit", "beliefs.yaml", "--cluster", "plain.yaml", folder=sweep, code=1)

    number = before[0]["job"].split("_")[0]
    slurm.wait(lambda: not slurm.squeue(), 60)
    cluster.renumber(int(number))
    words = ["--array=0-1", "-J", "a-stranger", "-o", "/dev/null", "--mem=50", "--wrap", "sleep 300"]
    assert slurm.run("sbatch", *words).split()[-1] == number
    slurm.wait(lambda: [job["State"] for job in slurm.squeue().values()] == ["RUNNING"] * 2, 30)
    assert [c["job"] for c in cells(sweep)] == [f"{number}_0", f"{number}_1"]
    assert [(c["state"], c["failure"], c["message"]) for c in cells(sweep)] == [
        ("failed", "error", c["message"]) for c in before
    ]
    assert "nothing to cancel" in gsq("cancel", "beliefs", "--yes", folder=sweep)

    from gsq.sweeps.state.slurm import cancel_jobs

    # Also where the number changed hands after it was asked for.
    cancel_jobs([f"{number}_0"], name="gsq-beliefs-1-of-ours")
    gsq("retry", "beliefs", "--cluster", "plain.yaml", folder=sweep)
    slurm.wait(lambda: all(c["state"] == "done" for c in cells(sweep)), 180, every=1)
    strangers = {job: row for job, row in slurm.squeue().items() if row["Name"] == "a-stranger"}
    assert [row["State"] for row in strangers.values()] == ["RUNNING"] * 2


def test_a_job_that_died_before_python_when_slurm_started_it_again_is_an_error(
    slurm: Any, cluster: Cluster, sweep: Path
) -> None:
    setup = "if [ -n \"$SLURM_RESTART_COUNT\" ]; then echo 'no module of that name'; exit 3; fi"
    (sweep / "plain.yaml").write_text(f"{PLAIN}setup: {json.dumps([setup])}\n")
    (sweep / "beliefs.yaml").write_text(SWEEP.replace("steps: 6", "steps: 20000").replace("[1, 4]", "[1]"))
    gsq("submit", "beliefs.yaml", "--cluster", "plain.yaml", folder=sweep)
    slurm.wait(lambda: cells(sweep)[0]["step"], 120, every=0.5)
    slurm.scontrol("requeue", cells(sweep)[0]["job"])
    slurm.wait(lambda: "exit code 3" in (cells(sweep)[0]["message"] or ""), 60, every=0.5)
    (cell,) = cells(sweep)
    assert cell["failure"] == "error" and "no module of that name" in cell["message"]
    assert "nothing to submit" in gsq("submit", "beliefs.yaml", "--cluster", "plain.yaml", folder=sweep, code=1)


def test_gsq_waits_while_the_controller_is_away_and_says_why_cells_wait(
    slurm: Any, cluster: Cluster, sweep: Path
) -> None:
    slurm.scontrol("update", "PartitionName=test", "State=DOWN")
    run = start("run", "beliefs.yaml", "--cluster", "plain.yaml", folder=sweep)
    try:
        slurm.wait(lambda: len(slurm.squeue()) == 2, 60)
        slurm.wait(lambda: all(c["blocked"] for c in cells(sweep)), 30, every=0.5)
        assert all("will not start: PartitionDown" in c["reason"] for c in cells(sweep))
        assert "2 cells will not start: PartitionDown" in gsq("status", "beliefs", folder=sweep)
        jobs = list(slurm.squeue())
        # Held first, since an open partition starts a job at once.
        slurm.scontrol("hold", *jobs)
        slurm.scontrol("update", "PartitionName=test", "State=UP")
        slurm.wait(lambda: all("JobHeld" in (c["reason"] or "") for c in cells(sweep)), 30, every=0.5)

        cluster.end("slurmctld")
        found = cells(sweep)
        assert [(c["state"], c["failure"]) for c in found] == [("queued", None)] * 2, found
        for words in (("submit", "beliefs.yaml", "--cluster", "plain.yaml"), ("cancel", "beliefs", "--yes")):
            output = gsq(*words, folder=sweep, code=2)
            assert "error:" in output and "nothing to" not in output and "Traceback" not in output
        # The second of these marked them; the user changes her mind.
        for marker in (sweep / "runs" / "sweeps" / "beliefs" / "cancelled").iterdir():
            marker.unlink()
        time.sleep(5)
        assert run.poll() is None
        cluster.bring_back("slurmctld")
        assert len(slurm.squeue()) == 2
        slurm.scontrol("release", *jobs)
        output, _ = run.communicate(timeout=240)
    finally:
        if run.poll() is None:
            run.kill()
            run.wait()
    assert run.returncode == 0, output
    assert "will not start: PartitionDown" in output and "lost" not in output
    assert [(c["state"], c["attempts"]) for c in cells(sweep)] == [("done", 1)] * 2
