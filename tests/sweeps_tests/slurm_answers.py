"""SLURM's commands as shell scripts, and the state of a job."""

from __future__ import annotations

from pathlib import Path

from gsq.sweeps.state.reconcile import Job
from gsq.sweeps.state.slurm import (
    Known,
    states,
)


class FakeSlurm:
    """The commands of SLURM as shell scripts: each notes how it was called and prints a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sbatch", "sacct", "squeue", "scontrol"):
            self.answer(name, "")

    def answer(self, name: str, output: str, code: int = 0, error: str = "") -> None:
        (self.folder / f"{name}.out").write_text(output)
        (self.folder / f"{name}.err").write_text(error)
        script = self.folder / name
        here = f"'{self.folder}/{name}"
        script.write_text(
            f"#!/bin/sh\necho \"$*\" >>{here}.calls'\ncat {here}.out'\ncat {here}.err' >&2\nexit {code}\n"
        )
        script.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


# Jobs by number and name


OURS = Known("5_0", "gsq-small-1-0a1b2c3d")


def state_of(job: Known = OURS) -> Job:
    return states([job])[job]
