"""The quickstart sweep, cut down, on a real two-node cluster: killed, requeued, preempted, and equal to a local run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gsq.files import read_json
from gsq.records.folder import RunFolder
from gsq.sweeps.schema.columns import SCIENCE_COLUMNS, read_table

pytestmark = pytest.mark.usefixtures("no_inherited_job")

CELLS = 6
STEPS = 80
CUT = """\
name: quickstart-cut
base: cpu-tiny
set:
  steps: {steps}
  loss.discriminator_start: 20
  evaluation.num_images: 24
  execution: {{checkpoint_every: 5, log_every: 1}}
axes:
  downsample: [4, 2]
  groups: [1, 4]
  codebook_size: {{log2: [6, 10], step: 4}}
where: groups == 1 or codebook_size == 1024
"""


def gsq(*words: str, folder: Path) -> str:
    """What the command prints; fails the test where it fails."""
    command = [str(Path(sys.executable).with_name("gsq")), *words]
    environment = {**os.environ, "GSQ_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def status(folder: Path) -> dict[str, Any]:
    return json.loads(gsq("status", "quickstart-cut", "--json", folder=folder))


def sorted_science(path: Path) -> pd.DataFrame:
    return read_table(path)[list(SCIENCE_COLUMNS)].sort_values("signature").reset_index(drop=True)


def test_sweep_survives_a_kill_and_a_preemption_and_equals_the_local_queue(slurm: Any, tmp_path: Path) -> None:
    there, here = tmp_path / "slurm", tmp_path / "local"
    for folder in (there, here):
        folder.mkdir()
        (folder / "cut.yaml").write_text(CUT.format(steps=STEPS))

    printed = gsq("submit", "cut.yaml", "--cluster", "slurm", folder=there)
    assert printed.count("submitted SLURM job") == 1
    assert f"{CELLS} cells" in printed
    # Said again at once, it submits nothing.
    assert "nothing to submit" in gsq("submit", "cut.yaml", "--cluster", "slurm", folder=there)

    def running() -> list[dict[str, Any]]:
        """Cells in the middle of their training, past their first checkpoint."""
        return [c for c in status(there)["cells"] if c["state"] == "running" and 6 <= c["step"] <= STEPS - 30]

    def one_attempt(cell: dict[str, Any]) -> dict[str, Any]:
        return read_json(RunFolder.of(there / "runs", cell["signature"]).path / "attempts" / "1" / "status.json")

    # One task is killed outright, and its job requeued as an administrator or a node failure would.
    killed = slurm.wait(running, 90, every=0.1)[0]
    os.kill(one_attempt(killed)["pid"], signal.SIGKILL)
    slurm.scontrol("requeue", killed["job"])
    # Another is told to leave, as on preemption: it writes a checkpoint and requeues itself.
    preempted = slurm.wait(lambda: [c for c in running() if c["signature"] != killed["signature"]], 90, every=0.1)[0]
    slurm.run("scancel", "--signal=USR2", preempted["job"])

    def finished() -> bool:
        counts = status(there)["counts"]
        return counts["queued"] + counts["running"] == 0

    slurm.wait(finished, 280, every=1)
    found = status(there)
    assert found["counts"]["done"] == CELLS, json.dumps(found, indent=1)
    attempts = {c["signature"]: c["attempts"] for c in found["cells"]}
    assert attempts[killed["signature"]] == 2
    assert attempts[preempted["signature"]] == 2
    first = one_attempt(preempted)
    assert (first["state"], first["failure"]) == ("failed", "preempted")
    # A preempted run goes on at the step it stopped at; a killed one at its last checkpoint.
    for cell, lost in ((preempted, 0), (killed, 5)):
        folder = RunFolder.of(there / "runs", cell["signature"]).path / "attempts"
        stopped = read_json(folder / "1" / "status.json")["step"]
        resumed = json.loads((folder / "2" / "metrics.jsonl").read_text().splitlines()[0])["step"] - 1
        assert stopped - lost - 1 <= resumed, (stopped, resumed)
        assert resumed > 0
    # sacct knows where each task ran: both nodes did.
    nodes = {row["NodeList"] for job, row in slurm.sacct(killed["job"].split("_")[0]).items() if "." not in job}
    assert nodes == {"n1", "n2"}

    gsq("gather", "quickstart-cut", folder=there)
    gsq("run", "cut.yaml", folder=here)
    remote, local = (sorted_science(f / "results" / "quickstart-cut.parquet") for f in (there, here))
    assert len(remote) == CELLS
    pd.testing.assert_frame_equal(remote, local, check_exact=True)


def test_two_processes_of_a_job_share_a_run(slurm: Any, tmp_path: Path) -> None:
    """And leave together when they are told to."""
    (tmp_path / "cut.yaml").write_text(CUT.format(steps=40))
    (tmp_path / "two.yaml").write_text("kind: slurm\npartition: test\nprocesses: 2\ncpus: 2\n")
    gsq("submit", "cut.yaml", "--cells", "1", "--cluster", "two.yaml", folder=tmp_path)

    def running() -> list[dict[str, Any]]:
        return [c for c in status(tmp_path)["cells"] if c["state"] == "running" and c["step"] >= 3]

    (cell,) = slurm.wait(running, 90, every=0.1)
    slurm.run("scancel", "--signal=USR2", cell["job"])
    slurm.wait(lambda: status(tmp_path)["counts"]["done"] == 1, 120, every=1)
    folder = RunFolder.of(tmp_path / "runs", cell["signature"]).path / "attempts"
    assert [read_json(folder / n / "status.json")["failure"] for n in ("1",)] == ["preempted"]
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]
    for attempt in ("1", "2"):
        environment = read_json(folder / attempt / "env.json")
        assert environment["world_size"] == 2 and environment["micro_batch"] == 4
    stopped = read_json(folder / "1" / "status.json")["step"]
    assert json.loads((folder / "2" / "metrics.jsonl").read_text().splitlines()[0])["step"] == stopped + 1


def test_cells_that_share_a_job_are_preempted_together_and_cancelled_alone(slurm: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.yaml").write_text(CUT.format(steps=STEPS))
    (tmp_path / "two.yaml").write_text("kind: slurm\npartition: test\ncells_per_job: 2\ncpus: 2\n")
    printed = gsq("submit", "cut.yaml", "--cells", "4", "--cluster", "two.yaml", folder=tmp_path)
    assert printed.count("submitted SLURM job") == 1 and "4 cells" in printed

    def jobs() -> dict[str, list[dict[str, Any]]]:
        """Cells by their job, where all of them are in the middle of their training."""
        cells = status(tmp_path)["cells"]
        found = {job: [c for c in cells if c["job"] == job] for job in sorted({c["job"] for c in cells})}
        ready = all(c["state"] == "running" and 3 <= c["step"] <= STEPS - 25 for c in cells)
        return found if ready else {}

    one, two = slurm.wait(jobs, 180, every=0.1).values()
    assert (len(one), len(two)) == (2, 2)
    slurm.run("scancel", "--signal=USR2", one[0]["job"])
    gsq("cancel", "quickstart-cut", two[0]["signature"], folder=tmp_path)

    def ended() -> bool:
        return status(tmp_path)["counts"]["done"] == 3 and status(tmp_path)["counts"]["running"] == 0

    slurm.wait(ended, 300, every=1)
    states = {c["signature"]: (c["state"], c["failure"], c["attempts"]) for c in status(tmp_path)["cells"]}
    assert states == {
        one[0]["signature"]: ("done", None, 2),
        one[1]["signature"]: ("done", None, 2),
        two[0]["signature"]: ("failed", "cancelled", 1),
        two[1]["signature"]: ("done", None, 1),
    }
    for cell in one:
        folder = RunFolder.of(tmp_path / "runs", cell["signature"]).path / "attempts"
        stopped = read_json(folder / "1" / "status.json")
        assert stopped["failure"] == "preempted"
        assert json.loads((folder / "2" / "metrics.jsonl").read_text().splitlines()[0])["step"] == stopped["step"] + 1
    gsq("submit", "cut.yaml", "--cells", "4", "--cluster", "two.yaml", folder=tmp_path)
    slurm.wait(lambda: status(tmp_path)["counts"]["done"] == 4, 180, every=1)


def test_run_waits_for_slurm_and_reports(slurm: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.yaml").write_text(CUT.format(steps=6))
    begun = time.time()
    printed = gsq("run", "cut.yaml", "--cells", "2", "--cluster", "slurm", folder=tmp_path)
    assert "results/quickstart-cut.parquet" in printed.replace(str(tmp_path), "")
    table = read_table(tmp_path / "results" / "quickstart-cut.parquet")
    assert list(table["state"]) == ["done", "done"]
    assert time.time() - begun < 290


def test_a_cluster_file_reaches_sbatch(slurm: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.yaml").write_text(CUT.format(steps=6))
    (tmp_path / "mine.yaml").write_text("kind: slurm\npartition: nosuch\n")
    command = [str(Path(sys.executable).with_name("gsq")), "submit", "cut.yaml", "--cluster", "mine.yaml"]
    environment = {**os.environ, "GSQ_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "partition" in done.stderr
    (tmp_path / "mine.yaml").write_text(
        "kind: slurm\npartition: test\nmemory_gb: 3\nminutes: 20\nparallel: 1\nenvironment: {MARK: here}\n"
    )
    job = gsq("submit", "cut.yaml", "--cluster", "mine.yaml", folder=tmp_path).split("job ")[1].split(":")[0]
    shown = slurm.job(f"{job}_0")
    try:
        assert shown["Partition"] == "test"
        assert shown["TimeLimit"] == "00:20:00"
        assert shown["ArrayTaskThrottle"] == "1"
        assert 'export MARK="here"' in slurm.scontrol("write", "batch_script", f"{job}_0", "-")
    finally:
        slurm.run("scancel", job)
