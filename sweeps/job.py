"""What a worker runs: one cell, by paths. The only module of sweeps that imports training and evaluation.

The same callable goes to submitit (pickled) and to the local queue (``python -m sweeps.job``). It carries paths,
never state: after a node failure SLURM starts the original pickle again, and it resumes from what is on disk.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsq.run import StopRequest

STARTED = time.time()
# Environment variable in which the local queue tells its workers its process id.
DRIVER_VARIABLE = "GSQ_QUEUE_PID"


@dataclass
class CellJob:
    """Trains and evaluates cells of a sweep, one a call."""

    runs: str
    sweep: str
    source: str
    """The copy of the source that the sweep was submitted with."""

    def __call__(self, signature: str) -> str:
        """Returns the run folder. On SIGUSR2 (submitit's sign of a time-out or preemption) it stops at the end of
        the step with a checkpoint, then hands over to submitit's own handler, which requeues the job."""
        from gsq.run import Stopped, StopRequest

        first = _share_run()
        submitit_handler = signal.getsignal(signal.SIGUSR2)
        stop = StopRequest()
        try:
            with stop.on_signals({signal.SIGUSR2: "preempted"}):
                return self.execute(signature, stop)
        except Stopped as stopped:
            if not first:
                # The first process requeues the job, which ends this one; an exit before that would end the job.
                time.sleep(60)
            elif stopped.reason == "preempted" and callable(submitit_handler):
                submitit_handler(signal.SIGUSR2, None)
            raise

    def checkpoint(self, signature: str) -> Any:
        """Called by submitit before it requeues: the same job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, signature)

    def execute(self, signature: str, stop: StopRequest) -> str:
        """Run one cell, reading its config from the sweep folder. Raises UserError where it has changed since, or
        where other code than the sweep's was imported."""
        from gsq.errors import UserError
        from gsq.identity import identity
        from gsq.run import execute
        from sweeps.folder import SweepFolder
        from sweeps.snapshot import imported_source

        if imported_source() != Path(self.source).resolve():
            raise UserError(
                f"this job imported gsq from {imported_source()}, not the copy {self.source} that the sweep was "
                "submitted with; does something in the job's setup change PYTHONPATH or PYTHONSAFEPATH?"
            )
        cell = SweepFolder(Path(self.runs), self.sweep).read_cell(signature)
        found = identity(cell.config)
        if found != signature:
            raise UserError(
                f"cell {signature} of sweep '{self.sweep}' would now be {found}: its images, weights or gsq's "
                "science version changed after it was planned; plan and submit it again"
            )
        return str(execute(cell.config, Path(self.runs), stop=stop, started=STARTED).path)


def _share_run() -> bool:
    """Tell torch who the processes of this SLURM job are, where there are several; whether this is the first."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return True
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    environment = JobEnvironment()
    if environment.num_tasks == 1:
        return True
    # A GPU is chosen by LOCAL_RANK, from all that the job was given.
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if environment.num_nodes == 1:
        # Also where a node cannot look up its own name.
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    return environment.global_rank == 0


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the driver dies, so that no worker of a dead driver runs on unseen."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # It may have died before this was asked.
    if os.environ.get(DRIVER_VARIABLE, str(os.getppid())) != str(os.getppid()):
        sys.exit(1)


def main(arguments: list[str]) -> int:
    """``python -m sweeps.job RUNS SWEEP SOURCE SIGNATURE``: a worker of the local queue.

    Exit code 3: stopped as asked.
    """
    _die_with_parent()
    from gsq.errors import UserError
    from gsq.run import Stopped, StopRequest

    stop = StopRequest()
    try:
        with stop.on_signals({signal.SIGTERM: "cancelled", signal.SIGINT: "cancelled", signal.SIGUSR2: "preempted"}):
            CellJob(*arguments[:3]).execute(arguments[3], stop)
    except Stopped:
        return 3
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
