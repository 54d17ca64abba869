"""Run SLURM's commands with a time limit, and without the user's own filters and formats."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

# Time limits of the commands [s].
LIMITS = {"scontrol": 30.0, "squeue": 60.0, "sacct": 60.0, "scancel": 120.0, "sbatch": 90.0}
DEFAULT_LIMIT = 60.0
# The commands read options from such variables; the user's would hide jobs or reorder columns.
OWN_VARIABLES = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")


@dataclass(frozen=True)
class Answer:
    """The answer of one command."""

    command: str
    """Name of the command."""
    output: str = ""
    errors: str = ""
    code: int | None = None
    """Exit code; None if the command was not found or did not end in time."""
    seconds: float | None = None
    """The time limit that it reached; None if it ended."""

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def timed_out(self) -> bool:
        return self.seconds is not None

    @property
    def lines(self) -> list[str]:
        """Lines of the output; empty unless the command succeeded."""
        return self.output.splitlines() if self.ok else []

    @property
    def problem(self) -> str:
        """Why there is no answer, with everything that the command printed; empty if it succeeded."""
        if self.ok:
            return ""
        if self.timed_out:
            return f"{self.command} did not answer within {self.seconds:g} s"
        if self.code is None:
            return f"{self.command} not found on the PATH"
        words = [line.strip() for line in (self.errors + "\n" + self.output).splitlines() if line.strip()]
        return f"{self.command}: {'; '.join(words) or f'exit code {self.code}'}"


def run(*words: str, seconds: float | None = None, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a command of SLURM. Never raises for what the command does.

    words: the command and its arguments. seconds: the time limit, by default that of LIMITS, after which the command
    and its children are killed. environment: by default ``clean_environment``.
    """
    name = words[0]
    limit = LIMITS.get(name, DEFAULT_LIMIT) if seconds is None else seconds
    variables = clean_environment() if environment is None else dict(environment)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
            text=True,
            errors="replace",
            # A site's command may be a script, whose children a time-out must kill too.
            start_new_session=True,
        )
    except OSError:
        return Answer(name)
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return Answer(name, seconds=limit)
    finally:
        if process.returncode is None:
            _kill(process)
    return Answer(name, output, errors, process.returncode)


def clean_environment() -> dict[str, str]:
    """Return this process's variables, without those that change the questions or output of SLURM's commands."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OWN_VARIABLES) and k != "SLURM_TIME_FORMAT"}
    # This lifts the limit on the list of an array's tasks, which SLURM cuts at 64 characters.
    return {**kept, "SLURM_BITSTR_LEN": "0"}


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with suppress(subprocess.TimeoutExpired):
        # A process that hangs in the kernel cannot be killed, so do not wait for it.
        process.wait(5)
