"""A controller of SLURM that takes job arrays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.running.array_job import ArrayJob
from gsq.sweeps.spec.cluster import Cluster

SLURM = Cluster(kind="slurm", name="c")


class Controller:
    """sbatch, squeue and sacct over a folder with one file for each job array that was taken."""

    def __init__(self, folder: Path) -> None:
        self.jobs = folder / "jobs"
        self.jobs.mkdir(parents=True)
        self.delay = folder / "delay"
        # Two at once get a number each, as from a controller.
        self.write(
            folder / "sbatch",
            f"""\
            [ -e '{self.delay}' ] && sleep "$(cat '{self.delay}')"
            n=1; until (set -C; : >'{self.jobs}'/$n) 2>/dev/null; do n=$((n + 1)); done
            cat "$1" >'{self.jobs}'/$n
            echo "Submitted batch job $n"
            """,
        )
        self.write(
            folder / "squeue",
            f"""\
            cd '{self.jobs}'
            for n in *; do [ -e $n ] || continue
              name=$(sed -n 's/^#SBATCH --job-name=//p' $n)
              last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' $n)
              case "$*" in
                *%F*) echo "$n|$name";;
                *) for task in $(seq 0 $last); do echo "${{n}}_$task|PENDING|Priority|$name"; done;;
              esac
            done
            """,
        )
        self.write(folder / "sacct", "")
        self.write(folder / "scontrol", "echo 'MaxArraySize = 3'")

    def write(self, path: Path, body: str) -> None:
        path.write_text("#!/bin/sh\n" + "".join(line.strip() + "\n" for line in body.splitlines()))
        path.chmod(0o755)

    def scripts(self) -> dict[str, str]:
        """The job scripts that were taken, by the array's id."""
        return {path.name: path.read_text() for path in sorted(self.jobs.iterdir(), key=lambda p: int(p.name))}

    def trained(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Start every job that was taken; how often each cell is trained."""
        started: Counter[str] = Counter()
        monkeypatch.setattr(
            "gsq.sweeps.running.array_job.run_cell", lambda folder, cell, *rest: started.update([cell.signature])
        )
        for job, script in self.scripts().items():
            lines = [line for line in script.splitlines() if "--array=" in line or "submitit.core._submit" in line]
            last, entry = int(lines[0].split("-")[-1].split("%")[0]), lines[1].split()[-1]
            monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
            for task in range(last + 1):
                monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
                ArrayJob(entry)()
        return started


def each_once(plan: Plan) -> Counter[str]:
    return Counter(cell.signature for cell in plan.cells)
