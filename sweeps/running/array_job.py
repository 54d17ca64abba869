"""What a SLURM job array runs: one cell, or several that share the job."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsq.runs.stop import StopRequest
    from gsq.sweeps.planning.folder import SweepFolder
    from gsq.sweeps.state.journal import Entry

from gsq.sweeps.running.worker import (
    STARTED,
    STOPPED,
    cancellable,
    evaluate_run,
    require_source,
    run_cell,
    say,
    start_worker,
)


@dataclass
class ArrayJob:
    """The job of each task of a SLURM array. ``entry``: folder of the submission (gsq.sweeps.state.journal)."""

    entry: str

    def __call__(self) -> str:
        """Trains the task's cell, or its cells, each in a process of its own. Returns what became of them.

        On SIGUSR2 (submitit's sign of a time-out or preemption) it stops at the end of the step with a checkpoint,
        then hands over to submitit's own handler, which requeues the job.
        """
        from gsq.sweeps.state.restarts import note_start

        path = Path(self.entry)
        # Before what may take long.
        note_start(path)
        from gsq.runs.stop import Busy, Stopped, StopRequest
        from gsq.sweeps.planning.folder import SweepFolder
        from gsq.sweeps.spec.states import CANCELLED
        from gsq.sweeps.state.journal import read_entry

        entry = read_entry(path)
        job, task = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
        if entry.open:
            entry = entry.decide(job)
        if entry.job != job:
            return say("this submission was taken back, and its cells submitted again; nothing to do")
        folder = SweepFolder(path.parents[3], path.parents[1].name)
        members = entry.members(task)
        first = entry.cells_per_job > 1 or _share_run()
        submitit_handler = signal.getsignal(signal.SIGUSR2)
        stop = StopRequest()
        try:
            with stop.on_signals({signal.SIGUSR2: "preempted"}):
                if entry.cells_per_job > 1:
                    return _run_together(folder, entry, members, stop)
                with cancellable(folder, members[0], stop):
                    return str(run_cell(folder, folder.read_cell(members[0]), entry.source, stop))
        except Busy as error:
            return say(str(error))
        except Stopped as stopped:
            if stopped.reason == CANCELLED:
                # The attempt has recorded it. What a preempted process raises would have its peers wait to be requeued.
                return say(f"{', '.join(members)} was cancelled")
            if not first:
                # The first process requeues the job, which ends this one; an exit before that would end the job.
                time.sleep(60)
            elif callable(submitit_handler):
                submitit_handler(signal.SIGUSR2, None)
            raise

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues: the same job again; None where that is no use, since it has been
        started again and again without a further step. The runs then end as a time-out."""
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
    """Fields of DataConfig, where the images lie now; by default where the run was trained on them."""

    def __call__(self) -> str:
        """Evaluates the task's run. Returns what became of it; an evaluation that was cut off begins anew."""
        from gsq.records.folder import RunFolder
        from gsq.surroundings import forget_group
        from gsq.sweeps.state.journal import read_entry

        entry = read_entry(Path(self.entry))
        job, task = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
        if entry.open:
            entry = entry.decide(job)
        if entry.job != job:
            return say("this submission was taken back, and its runs submitted again; nothing to do")
        forget_group()
        require_source(entry.source)
        (signature,) = entry.members(task)
        results, problem = evaluate_run(RunFolder.of(Path(self.runs), signature).path, self.changes, self.data)
        return say(problem or f"{signature}: {len(results)} new evaluations")

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues: the same job again; None where it has been tried often enough."""
        from submitit.helpers import DelayedSubmission

        from gsq.sweeps.state.journal import read_entry
        from gsq.sweeps.state.restarts import too_short, worthwhile

        if worthwhile(Path(self.entry), 0):
            return DelayedSubmission(self)
        return say(too_short(read_entry(Path(self.entry)).minutes, time.time() - STARTED)) and None


def _run_together(folder: SweepFolder, entry: Entry, signatures: tuple[str, ...], stop: StopRequest) -> str:
    """Cells that share an allocation: a worker for each, with its share of the GPUs. Each records its own end."""
    from gsq.runs.stop import Stopped
    from gsq.surroundings import visible_gpus
    from gsq.sweeps.state.cancellation import marked
    from gsq.sweeps.state.deaths import note_worker_death

    gpus = visible_gpus() or []
    share = len(gpus) // entry.cells_per_job
    before = {signature: record.heartbeat for signature, record in folder.records(signatures).items()}
    workers: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack:

        def tell(number: int, frame: FrameType | None = None) -> None:
            for worker in workers.values():
                worker.send_signal(number)

        stack.callback(tell, signal.SIGKILL)
        # Whoever is meant knows it by the marker of its cell.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, tell))
        for index, signature in enumerate(signatures):
            if signature in marked(folder):
                continue
            variables = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * share :][:share])} if share else {}
            workers[signature] = start_worker(folder, entry.source, signature, variables, shared=True)
        told = False
        while any(worker.poll() is None for worker in workers.values()):
            if stop.reason and not told:
                told = True
                tell(signal.SIGUSR2)
            time.sleep(0.2)
    for signature, record in folder.records(workers).items():
        # The job goes on whatever becomes of one of its workers, so that SLURM does not know it.
        if workers[signature].returncode not in (0, STOPPED) and record.heartbeat == before[signature]:
            with suppress(OSError):
                note_worker_death(folder, signature, workers[signature].returncode)
    if stop.reason and any(worker.returncode == STOPPED for worker in workers.values()):
        raise Stopped(stop.reason)
    return ", ".join(f"{signature}: exit code {worker.returncode}" for signature, worker in workers.items())


def _share_run() -> bool:
    """Tell torch who the processes of this SLURM job are, where there are several; whether this is the first."""
    from gsq.surroundings import forget_group

    # sbatch has handed on what the submitting shell was left with.
    forget_group()
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
