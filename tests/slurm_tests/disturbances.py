"""What faults.py does to the scheduler itself: squeue is silent, the controller away, numbers of jobs are given again,
jobs die before Python."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster

MODES = ("fail", "empty", "hang")
# squeue for gsq, in front of the real one: silent in the way that a file says.
SQUEUE = """\
#!/bin/sh
mode() {{ cat '{mode}' 2>/dev/null; }}
case "$(mode)" in
  fail) echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1;;
  empty) exit 0;;
esac
while [ "$(mode)" = hang ]; do sleep 0.2; done
exec {squeue} "$@"
"""
# In the setup of each job: those whose folder is there die, once, and not when they were requeued.
SETUP = (
    'if [ -z "$SLURM_RESTART_COUNT" ] && rmdir {die}/"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID" 2>/dev/null; '
    "then echo 'no module of that name'; exit 3; fi"
)
STRANGER = "a-stranger"


class Disturbances:
    """The disturbances of one round. ``folder``: what the jobs see as $GSQ_FAULTS."""

    def __init__(self, folder: Path, cluster: Cluster, draw: random.Random) -> None:
        self.folder, self.cluster, self.draw = folder, cluster, draw
        self.path, self.mode, self.die = folder / "bin", folder / "squeue.mode", folder / "die"
        for place in (self.path, self.die):
            place.mkdir(parents=True)
        squeue = self.path / "squeue"
        squeue.write_text(SQUEUE.format(mode=self.mode, squeue=shutil.which("squeue")))
        squeue.chmod(0o755)
        self.setup = SETUP.format(die=self.die)
        self.strangers: dict[str, int] = {}

    def silence(self) -> None:
        """squeue fails, says nothing or hangs for a while."""
        self.mode.write_text(self.draw.choice(MODES))
        time.sleep(self.draw.uniform(1, 8))
        self.mode.unlink(missing_ok=True)

    def without_controller(self, start: Callable[[], list[subprocess.Popen[str]]]) -> list[subprocess.Popen[str]]:
        """Start a driver; the controller is away from before that, or from some moment of it on, for some seconds."""
        moments = (self.draw.choice((0.0, self.draw.uniform(0.2, 2.5))), self.draw.uniform(1, 5))
        if not moments[0]:
            self.cluster.end("slurmctld")
        started = start()
        if moments[0]:
            time.sleep(moments[0])
            self.cluster.end("slurmctld")
        time.sleep(moments[1])
        self.cluster.bring_back("slurmctld")
        return started

    def strangers_take(self, first: int | None, tasks: int, seconds: int) -> str:
        """Jobs of somebody else, from the number ``first`` on where it is given; returns their array's number."""
        if first is not None:
            self.cluster.renumber(first)
        words = [f"--array=0-{tasks - 1}", "-J", STRANGER, "-o", "/dev/null", "--mem=50", "-p", "test"]
        said = self.cluster.output("sbatch", *words, "--wrap", f"sleep {seconds}")
        job = said.split()[-1]
        self.strangers[job] = tasks
        return job

    def harmed(self) -> list[str]:
        """Tasks of the strangers that did not end well."""
        found: dict[str, str] = {}
        for _ in range(100):  # Accounting lags behind.
            rows = self.cluster.output(
                *("sacct", "-D", "-X", "-n", "-P", "-o", "JobID,JobName,State"), "-j", ",".join(self.strangers)
            )
            split = [row.split("|") for row in rows.splitlines()]
            found = {job: state for job, name, state in split if name == STRANGER and state == "COMPLETED"}
            if len(found) == sum(self.strangers.values()):
                return []
            time.sleep(0.3)
        every = {f"{job}_{task}" for job, tasks in self.strangers.items() for task in range(tasks)}
        return sorted(every - set(found))

    def doom(self, job: str) -> None:
        """The job dies before Python, if it has not started yet."""
        (self.die / job).mkdir(exist_ok=True)

    def died(self, job: str) -> bool:
        """Whether a doomed job has met its fate; False also where it had started before."""
        return not (self.die / job).exists()

    def spare(self, job: str) -> None:
        """Take the doom back where the job was quicker."""
        if (self.die / job).exists():
            (self.die / job).rmdir()


def submissions_of(runs: Path, signature: str) -> list[dict[str, Any]]:
    """Entries of the journal with the cell that were handed over, oldest first, each with ``job``, the cell's own."""
    found = []
    for path in sorted((runs / "sweeps" / "faults" / "submissions").glob("*/entry.json")):
        entry = json.loads(path.read_text())
        verdict = path.with_name("verdict.json")
        job = json.loads(verdict.read_text())["job"] if verdict.exists() else None
        if job is not None and signature in entry["signatures"]:
            share = entry["cells_per_job"] * entry["cells_in_turn"]
            found.append({**entry, "job": f"{job}_{entry['signatures'].index(signature) // share}"})
    return found
