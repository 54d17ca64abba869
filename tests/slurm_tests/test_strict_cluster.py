"""What strict centres and bad luck do to jobs: peers killed, restarts without progress, limits, odd paths."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsq.records.folder import RunFolder

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from cluster import Cluster  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_inherited_job")

SWEEP = """\
name: strict
base: cpu-tiny
set:
  steps: {steps}
  evaluation.num_images: 8
  execution: {{checkpoint_every: 10, log_every: 1}}
axes:
  groups: {groups}
"""


class Folder:
    """A working folder with a sweep and a cluster file."""

    def __init__(self, path: Path, cluster: str, steps: int = 20, groups: str = "[1]", runs: str = "runs") -> None:
        self.path, self.runs = path, path / runs
        (path / "strict.yaml").write_text(SWEEP.format(steps=steps, groups=groups))
        (path / "mine.yaml").write_text(f"kind: slurm\nminutes: 10\nmemory_gb: 2\n{cluster}")

    def gsq(self, *words: str, fails: bool = False, **variables: str) -> str:
        """What the command prints."""
        environment = {**os.environ, "GSQ_RUNS": str(self.runs), "OMP_NUM_THREADS": "1", **variables}
        command = [str(Path(sys.executable).with_name("gsq")), *words]
        done = subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def submit(self, **more: Any) -> str:
        return self.gsq("submit", "strict.yaml", "--cluster", "mine.yaml", **more)

    def cells(self) -> list[dict[str, Any]]:
        return list(json.loads(self.gsq("status", "strict", "--json"))["cells"])


def processes_of(job: str, rank: int) -> list[int]:
    """Process ids of one process of a run that several share, on this host."""
    found = []
    array, _, task = job.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}", f"SLURM_PROCID={rank}"}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = set((entry / "environ").read_text(errors="replace").split("\0"))
        except OSError:
            continue
        if b"submitit.core._submit" in words and b"srun" not in words[0] and wanted <= variables:
            found.append(int(entry.name))
    return found


def test_a_killed_peer_is_lost_and_the_next_submission_goes_on(slurm: Any, tmp_path: Path) -> None:
    # Variables of a torchrun shell are handed on by sbatch, and mean nothing to the job.
    left = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": "3"}
    folder = Folder(tmp_path, "cpus: 2\nprocesses: 2\n", steps=60)
    folder.submit(**left)
    (cell,) = slurm.wait(lambda: [c for c in folder.cells() if c["step"] >= 12], 120)
    slurm.wait(lambda: processes_of(cell["job"], 1), 10)
    for pid in processes_of(cell["job"], 1):
        os.kill(pid, signal.SIGKILL)
    (cell,) = slurm.wait(lambda: [c for c in folder.cells() if c["state"] == "failed"], 90)
    assert cell["failure"] == "lost" and "another process" in cell["message"]
    folder.submit()
    slurm.wait(lambda: folder.cells()[0]["state"] == "done", 180, every=1)
    attempts = RunFolder.of(folder.runs, cell["signature"]).path / "attempts"
    resumed = json.loads((attempts / "2" / "metrics.jsonl").read_text().splitlines()[0])
    assert resumed["step"] > 10


# Stands for a start that takes longer than a job may last.
SLOW = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "gsq.runs.stop":
            print("staging", flush=True)
            time.sleep(300)
if "submitit.core._submit" in " ".join(sys.orig_argv):
    sys.meta_path.insert(0, Slow())
"""


def test_a_job_that_is_requeued_without_a_step_ends_as_a_time_out(slurm: Any, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    folder = Folder(tmp_path, f"setup: export PYTHONPATH={tmp_path}/slow\n")
    folder.submit()
    (cell,) = folder.cells()
    log = folder.runs / "sweeps" / "strict" / "submissions" / "000001" / f"{cell['job']}_0_log.out"
    for start in range(4):
        slurm.wait(lambda n=start: log.exists() and log.read_text().count("staging") == n + 1, 90)
        (cell,) = folder.cells()
        assert cell["state"] in ("queued", "running") and cell["restarts"] == start
        # SLURM does so before the end of the wall time, to the steps of the job.
        slurm.run("scancel", "--signal=USR2", cell["job"])
    (cell,) = slurm.wait(lambda: [c for c in folder.cells() if c["state"] == "failed"], 60)
    assert cell["failure"] == "timeout" and "minutes in the cluster file" in cell["message"]
    slurm.wait(lambda: not slurm.squeue(), 60)
    assert log.read_text().count("--- gsq job started") == 4


def test_odd_paths_options_and_a_foreign_python(slurm: Any, tmp_path: Path) -> None:
    cluster = """\
setup: export PYTHONHOME=/nowhere
environment: {A: on}
sbatch: {export: NONE, comment: it's "3.10", requeue: true, wckey: mine}
"""
    folder = Folder(tmp_path, cluster, steps=2, runs='100%N %% it\'s $HOME `x` "y" #z')
    folder.submit()
    (cell,) = folder.cells()
    shown = slurm.scontrol("show", "job", cell["job"])
    assert 'Comment=it\'s "3.10"' in shown
    slurm.wait(lambda: folder.cells()[0]["state"] == "done", 90, every=1)
    assert "submitit INFO" in folder.gsq("logs", "strict", cell["signature"])


@pytest.fixture
def limited(slurm: Any, tmp_path: Path) -> Iterator[str]:
    """SLURM_CONF of a cluster of its own, on which a user may have three jobs at a time."""
    if not slurm.ours or os.geteuid() != 0:
        pytest.skip("limits are set up by cluster.py alone")
    cluster = Cluster(Path("/tmp") / f"gsq-limited-{os.getpid()}")
    try:
        cluster.start()
        for words in (
            ("add", "account", "course"),
            ("add", "user", "root", "account=course"),
            ("modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=3"),
        ):
            cluster.output("sacctmgr", "-i", *words)
        cluster.end("slurmctld")
        with cluster.conf.open("a") as file:
            file.write("AccountingStorageEnforce=associations,limits,qos\n")
        cluster.bring_back("slurmctld")
        yield str(cluster.conf)
    finally:
        cluster.stop()
        shutil.rmtree(cluster.dir, ignore_errors=True)


def test_above_the_limit_of_a_qos_what_is_allowed_is_handed_over(
    slurm: Any, limited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", limited)
    folder = Folder(tmp_path, "account: course\n", steps=2, groups="[1, 2, 4, 8]")
    printed = folder.submit(fails=True)
    assert "refused 1 of 4 cells, and took 3" in printed and "gsq submit" in printed
    assert len(slurm.squeue()) == 3
    slurm.wait(lambda: sum(c["state"] == "done" for c in folder.cells()) == 3, 180, every=1)
    slurm.wait(lambda: not slurm.squeue(), 30)
    folder.submit()
    slurm.wait(lambda: all(c["state"] == "done" for c in folder.cells()), 120, every=1)
    assert {c["attempts"] for c in folder.cells()} == {1}
