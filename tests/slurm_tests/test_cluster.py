"""The test cluster is a real one: two nodes, jobs through submitit with accounting, requeue and kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import submitit


def test_two_nodes(slurm: Any) -> None:
    if not slurm.ours:
        pytest.skip("this SLURM is not the test cluster")

    def nodes() -> dict[str, str]:
        return dict(line.split() for line in slurm.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines())

    slurm.wait(lambda: set(nodes().values()) <= {"idle", "mixed", "allocated"}, 30)
    assert set(nodes()) == {"n1", "n2"}


def test_submitit_array(slurm: Any, tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(name="gsq-array", timeout_min=5, mem_gb=0.25, slurm_array_parallelism=3)
    jobs = executor.map_array(math.sqrt, [4.0, 9.0, 16.0])

    assert [job.result() for job in jobs] == [2.0, 3.0, 4.0]
    ids = [job.job_id for job in jobs]

    def states() -> list[str]:
        rows = slurm.sacct(ids)
        return [rows.get(job_id, {}).get("State", "") for job_id in ids]

    slurm.wait(lambda: states() == ["COMPLETED"] * 3, 20)


def test_requeue(slurm: Any, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    # the first run would last for minutes; the second one ends by itself
    script.write_text('#!/bin/sh\necho "run ${SLURM_RESTART_COUNT:-0}"\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 300\n')
    output = tmp_path / "out.txt"
    options = ["--parsable", "--requeue", "--open-mode=append", "--mem=100", "--time=5", f"--output={output}"]
    job_id = slurm.run("sbatch", *options, f"--chdir={tmp_path}", str(script)).strip()
    try:
        slurm.wait(lambda: output.exists() and output.read_text() == "run 0\n", 20)
        slurm.scontrol("requeue", job_id)
        slurm.wait(lambda: slurm.job(job_id)["JobState"] == "COMPLETED", 40)
    finally:
        slurm.run("scancel", job_id)
    assert slurm.job(job_id)["Restarts"] == "1"
    assert "run 1\n" in output.read_text()
    slurm.wait(lambda: slurm.sacct(job_id).get(job_id, {}).get("State") == "COMPLETED", 20)


def test_killed_step(slurm: Any, tmp_path: Path) -> None:
    """srun reports the SIGKILL of its task, as after a crash or the kernel's lack of memory."""
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\nsrun sh -c 'kill -9 $$'\n")
    options = ["--parsable", "--mem=100", "--time=5", f"--output={tmp_path / 'out.txt'}"]
    job_id = slurm.run("sbatch", *options, f"--chdir={tmp_path}", str(script)).strip()
    slurm.wait(lambda: slurm.sacct(job_id).get(job_id, {}).get("State") == "FAILED", 30)
    assert slurm.sacct(job_id)[f"{job_id}.0"]["ExitCode"] == "0:9"
