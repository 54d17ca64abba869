"""The jobs of SLURM arrays: each trains one cell, or several that share the job, or evaluates a finished run."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsq.sweeps.state.journal import Entry

from gsq.sweeps.running.shared_job import SharedJob
from gsq.sweeps.running.worker import STARTED, cancellable, evaluate_run, require_source, run_cell, say


def _claimed(path: Path) -> tuple[Entry, tuple[str, ...]] | None:
    """The entry of a submission and the signatures of this task; None if the submission was revoked."""
    from gsq.sweeps.state.journal import read_entry

    entry = read_entry(path)
    job, task = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
    if entry.open:
        entry = entry.decide(job)
    return (entry, entry.members(task)) if entry.job == job else None


REVOKED = "this submission was revoked, and its cells were submitted again; nothing to do"


@dataclass
class ArrayJob:
    """The job of each task of a SLURM array. ``entry``: folder of the submission (gsq.sweeps.state.journal)."""

    entry: str

    def __call__(self) -> str:
        """Train the task's cell, or its cells in a process each (SharedJob). Returns what became of them.

        On SIGUSR2 (submitit's sign of a time-out or preemption) it stops at the end of the step with a checkpoint,
        then calls submitit's own handler, which requeues the job.
        """
        from gsq.sweeps.state.restarts import note_start

        path = Path(self.entry)
        # This comes before anything that may take long.
        note_start(path)
        from gsq.runs.stop import Busy, Stopped, StopRequest
        from gsq.sweeps.planning.folder import SweepFolder
        from gsq.sweeps.spec.states import CANCELLED

        if (claimed := _claimed(path)) is None:
            return say(REVOKED)
        entry, members = claimed
        folder = SweepFolder(path.parents[3], path.parents[1].name)
        first = entry.share > 1 or _share_run()
        submitit_handler = signal.getsignal(signal.SIGUSR2)
        stop = StopRequest()
        try:
            with stop.on_signals({signal.SIGUSR2: "preempted"}):
                if entry.share > 1:
                    return SharedJob(folder, entry, members, stop).run()
                with cancellable(folder, members[0], stop):
                    return str(run_cell(folder, folder.read_cell(members[0]), entry.source, stop))
        except Busy as error:
            return say(str(error))
        except Stopped as stopped:
            if stopped.reason == CANCELLED:
                # The attempt has recorded it. Raising, as for preemption, would make the peers wait to be requeued.
                return say(f"{', '.join(members)} was cancelled")
            if not first:
                # The first process requeues the job, which ends this one. Exiting earlier would end the job.
                time.sleep(60)
            elif callable(submitit_handler):
                submitit_handler(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> Any:
        """Return the job for submitit to requeue; after restarts without progress record a time-out and return None."""
        from submitit.helpers import DelayedSubmission

        from gsq.sweeps.state.restarts import give_up, steps_of, worthwhile

        path, task = Path(self.entry), int(os.environ["SLURM_ARRAY_TASK_ID"])
        if worthwhile(path, steps_of(path, task)):
            return DelayedSubmission(self)
        return say(give_up(path, task, STARTED)) and None


@dataclass
class EvaluationJob:
    """The job of each task of a SLURM array that evaluates finished runs. ``entry``: folder of the submission."""

    entry: str
    runs: str
    changes: dict[str, Any]
    """Fields of EvaluationConfig."""
    data: dict[str, Any] | None = None
    """Fields of DataConfig with the present place of the images, if they have moved since training."""

    def __call__(self) -> str:
        """Evaluate the task's run. Returns what became of it; an interrupted evaluation starts over, and a generation
        probe goes on."""
        from gsq.records.folder import RunFolder
        from gsq.surroundings import forget_group

        if (claimed := _claimed(Path(self.entry))) is None:
            return say(REVOKED)
        entry, (signature,) = claimed
        forget_group()
        require_source(entry.source)
        results, problem = evaluate_run(RunFolder.of(Path(self.runs), signature).path, self.changes, self.data)
        return say(problem or f"{signature}: {len(results)} new evaluations")

    def checkpoint(self) -> Any:
        """Return the job for submitit to requeue, or None after enough restarts without progress."""
        from submitit.helpers import DelayedSubmission

        from gsq.records.folder import RunFolder, probe_progress
        from gsq.sweeps.state.journal import read_entry
        from gsq.sweeps.state.restarts import too_short, worthwhile

        entry = read_entry(Path(self.entry))
        (signature,) = entry.members(int(os.environ["SLURM_ARRAY_TASK_ID"]))
        if worthwhile(Path(self.entry), probe_progress(RunFolder.of(Path(self.runs), signature))):
            return DelayedSubmission(self)
        return say(too_short(entry.minutes, time.time() - STARTED)) and None


def _share_run() -> bool:
    """Tell torch about the other processes of this SLURM job. Returns whether this is the first."""
    from gsq.surroundings import forget_group

    # sbatch passes on variables that were left in the submitting shell.
    forget_group()
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return True
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    environment = JobEnvironment()
    if environment.num_tasks == 1:
        return True
    # LOCAL_RANK chooses a GPU from all GPUs of the job.
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if environment.num_nodes == 1:
        # This works even if a node cannot resolve its own name.
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    return environment.global_rank == 0
