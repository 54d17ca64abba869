"""What a worker runs: one cell, by paths. The only module of sweeps that imports training and evaluation.

``ArrayJob`` goes to SLURM (pickled by submitit), ``python -m sweeps.job`` is a worker of the local queue. They carry
paths, never state: after a node failure SLURM starts the original pickle again, and it resumes from what is on disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gsq.run import StopRequest
    from sweeps.folder import SweepFolder
    from sweeps.journal import Entry
    from sweeps.planning import Cell

STARTED = time.time()
# Environment variable in which a driver tells its workers its process id.
DRIVER_VARIABLE = "GSQ_QUEUE_PID"
# What a process is asked for that evaluates finished runs.
EVALUATE = "evaluate"


def run_cell(folder: SweepFolder, cell: Cell, source: str, stop: StopRequest) -> Path:
    """Train and evaluate a cell; returns its run folder.

    Raises UserError where its images or weights have changed since it was planned, where other code than the
    sweep's was imported, and (Busy) where another process trains it; else what ended the run.
    """
    from gsq.errors import UserError
    from gsq.identity import identity
    from gsq.run import execute

    _require_source(source)
    found = identity(cell.config)
    if found != cell.signature:
        raise UserError(
            f"cell {cell.signature} of sweep '{folder.name}' would now be {found}: its images, weights or gsq's "
            "science version changed after it was planned; plan and submit it again"
        )
    prune = _pruner(folder, cell.signature)
    return execute(cell.config, folder.runs, stop=stop, started=STARTED, prune=prune).path


def _require_source(source: str) -> None:
    from gsq.errors import UserError
    from sweeps.snapshot import imported_source

    if imported_source() != Path(source).resolve():
        raise UserError(
            f"this job imported gsq from {imported_source()}, not the copy {source} that the sweep was "
            "submitted with; does something in the job's setup change PYTHONPATH or PYTHONSAFEPATH?"
        )


def _pruner(folder: SweepFolder, signature: str) -> Callable[[dict[str, Any]], str | None]:
    """Who may give the run up at an intermediate evaluation: its search, if the sweep is one."""
    if folder.search_id is None:
        return lambda evaluation: None
    from sweeps.studies import pruner

    return pruner(folder, signature)


@dataclass
class ArrayJob:
    """The job of each task of a SLURM array. ``entry``: folder of the submission (sweeps.journal)."""

    entry: str

    def __call__(self) -> str:
        """Trains the task's cell, or its cells, each in a process of its own. Returns what became of them.

        On SIGUSR2 (submitit's sign of a time-out or preemption) it stops at the end of the step with a checkpoint,
        then hands over to submitit's own handler, which requeues the job.
        """
        from sweeps.restarts import note_start

        path = Path(self.entry)
        # Before what may take long.
        note_start(path)
        from gsq.run import Busy, Stopped, StopRequest
        from sweeps.folder import SweepFolder
        from sweeps.journal import read_entry
        from sweeps.reconcile import CANCELLED

        entry = read_entry(path)
        job, task = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
        if entry.open:
            entry = entry.decide(job)
        if entry.job != job:
            return _say("this submission was taken back, and its cells submitted again; nothing to do")
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
            return _say(str(error))
        except Stopped as stopped:
            if stopped.reason == CANCELLED:
                # The attempt has recorded it. What a preempted process raises would have its peers wait to be requeued.
                return _say(f"{', '.join(members)} was cancelled")
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

        from sweeps.restarts import give_up, steps_of, worthwhile

        path, task = Path(self.entry), int(os.environ["SLURM_ARRAY_TASK_ID"])
        if worthwhile(path, steps_of(path, task)):
            return DelayedSubmission(self)
        return _say(give_up(path, task, STARTED)) and None


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
        from gsq.record import RunFolder
        from gsq.surroundings import forget_group
        from sweeps.journal import read_entry

        entry = read_entry(Path(self.entry))
        job, task = os.environ["SLURM_ARRAY_JOB_ID"], int(os.environ["SLURM_ARRAY_TASK_ID"])
        if entry.open:
            entry = entry.decide(job)
        if entry.job != job:
            return _say("this submission was taken back, and its runs submitted again; nothing to do")
        forget_group()
        _require_source(entry.source)
        (signature,) = entry.members(task)
        results, problem = evaluate_run(RunFolder.of(Path(self.runs), signature).path, self.changes, self.data)
        return _say(problem or f"{signature}: {len(results)} new evaluations")

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues: the same job again; None where it has been tried often enough."""
        from submitit.helpers import DelayedSubmission

        from sweeps.journal import read_entry
        from sweeps.restarts import too_short, worthwhile

        if worthwhile(Path(self.entry), 0):
            return DelayedSubmission(self)
        return _say(too_short(read_entry(Path(self.entry)).minutes, time.time() - STARTED)) and None


def unevaluated(path: Path, changes: dict[str, Any]) -> tuple[bool, str | None]:
    """Whether an evaluation of a finished run is missing, and why not where its weights cannot be read.

    Raises UserError as gsq.run.unevaluated does, for what is wrong with the evaluation itself.
    """
    from gsq.run import DamagedRun, unevaluated

    try:
        return bool(unevaluated(path, changes)), None
    except DamagedRun as error:
        return False, str(error)


def evaluate_run(
    path: Path, changes: dict[str, Any], data: dict[str, Any] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """New evaluations of a finished run, and why there is none where its reconstructions are not finite or its weights
    are gone. data: fields of the DataConfig that says where its images lie now.

    Raises UserError as gsq.run.evaluate_finished does.
    """
    from gsq.config import DataConfig
    from gsq.evaluation import NonFiniteReconstruction
    from gsq.run import DamagedRun, evaluate_finished

    try:
        return evaluate_finished(path, changes, DataConfig(**data) if data is not None else None), None
    except NonFiniteReconstruction as error:
        return [], f"{path}: {error}"
    except DamagedRun as error:
        return [], str(error)


def evaluate_requests() -> int:
    """``python -m sweeps.job evaluate``: evaluates the run of each line of standard input, and answers with a line
    (sweeps.evaluators). Whatever else is printed goes to standard error."""
    import warnings

    from gsq.errors import UserError
    from gsq.evaluation import SmallEvaluationWarning

    # The plan has said it, and each row says it (rank_deficient).
    warnings.simplefilter("ignore", SmallEvaluationWarning)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        path, changes, data = json.loads(line)
        answer: dict[str, Any] = {"results": [], "problem": None, "error": None}
        try:
            answer["results"], answer["problem"] = evaluate_run(Path(path), changes, data)
        except UserError as error:
            answer["error"] = str(error)
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _say(text: str) -> str:
    print(text, flush=True)
    return text


@contextmanager
def cancellable(folder: SweepFolder, signature: str, stop: StopRequest) -> Iterator[None]:
    """SIGTERM stops the cell at the end of a step, with a checkpoint, where a user has cancelled it. Any other
    SIGTERM goes where it went before: on preemption SLURM sends one before SIGUSR2."""
    from sweeps.cancellation import marked
    from sweeps.reconcile import CANCELLED

    def handle(number: int, frame: FrameType | None) -> None:
        if signature in marked(folder):
            stop.reason, stop.signal = CANCELLED, number
        elif callable(before):
            before(number, frame)

    before = signal.signal(signal.SIGTERM, handle)
    if signature in marked(folder):
        stop.reason = CANCELLED
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_together(folder: SweepFolder, entry: Entry, signatures: tuple[str, ...], stop: StopRequest) -> str:
    """Cells that share an allocation: a worker for each, with its share of the GPUs. Each records its own end."""
    from gsq.run import Stopped
    from gsq.surroundings import visible_gpus
    from sweeps.cancellation import marked
    from sweeps.deaths import note_worker_death

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


def start_worker(
    folder: SweepFolder, source: str, signature: str, variables: Mapping[str, str], shared: bool = False
) -> subprocess.Popen[bytes]:
    """A process that runs one cell, with one thread unless ``variables`` say otherwise. It writes to the cell's log."""
    from gsq.surroundings import alone
    from sweeps.snapshot import environment

    path = folder.log(signature)
    path.parent.mkdir(parents=True, exist_ok=True)
    job = [str(folder.runs), folder.name, str(source), signature, *(["shared"] if shared else [])]
    with path.open("ab") as log:
        # Attempts share the file; gsq logs tells them apart by this line.
        log.write(f"--- gsq worker started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "sweeps.job", *job],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={
                # A cell on its own, whatever the driver's shell was left with.
                **alone(os.environ),
                "PYTHONUNBUFFERED": "1",
                DRIVER_VARIABLE: str(os.getpid()),
                **environment(Path(source), os.environ.get("PYTHONPATH", "")),
                **variables,
            },
            # Ctrl-C in the terminal reaches the driver alone, which then stops the workers in good order.
            start_new_session=True,
        )


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


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the job's first process dies, so that no worker of it runs on unseen."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # It may have died before this was asked.
    if os.environ.get(DRIVER_VARIABLE, str(os.getppid())) != str(os.getppid()):
        sys.exit(1)


# Exit code of a worker that stopped as asked.
STOPPED = 3


def main(arguments: list[str]) -> int:
    """``python -m sweeps.job RUNS SWEEP SOURCE SIGNATURE [shared]``: a worker of the local queue, or one of those that
    share a SLURM job. ``python -m sweeps.job evaluate``: see ``evaluate_requests``."""
    from gsq.errors import UserError
    from gsq.run import Stopped, StopRequest
    from sweeps.folder import SweepFolder
    from sweeps.reconcile import CANCELLED

    if arguments == [EVALUATE]:
        return evaluate_requests()
    runs, sweep, source, signature, *shared = arguments
    if shared:
        # The local queue's workers go on without their driver, and the next one adopts them.
        _die_with_parent()
    folder = SweepFolder(Path(runs), sweep)
    stop = StopRequest()
    reasons: dict[int, str] = {signal.SIGTERM: CANCELLED, signal.SIGINT: CANCELLED, signal.SIGUSR2: "preempted"}
    try:
        with ExitStack() as stack:
            if shared:
                del reasons[signal.SIGTERM]
                # What is not meant for this cell is nothing to it.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                stack.enter_context(cancellable(folder, signature, stop))
            stack.enter_context(stop.on_signals(reasons))
            run_cell(folder, folder.read_cell(signature), source, stop)
    except Stopped:
        return STOPPED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
