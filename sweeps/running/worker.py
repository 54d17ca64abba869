"""Run one cell in a worker. Only this module of sweeps imports training and evaluation.

``ArrayJob`` goes to SLURM (pickled by submitit); ``python -m gsq.sweeps.running.worker`` is a worker of the local
queue, and so is a process that gsq.sweeps.running.warm_parent has forked. All carry paths and no state: after a node
failure SLURM starts the original pickle, which resumes from disk.
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
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO

from gsq.ending import end_without_threads
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state.local import DRIVER_VARIABLE, recorded_worker

if TYPE_CHECKING:
    from gsq.runs.stop import StopRequest
    from gsq.sweeps.planning.cells import Cell


STARTED = time.time()
# Argument of a process that evaluates finished runs.
EVALUATE = "evaluate"


def run_cell(folder: SweepFolder, cell: Cell, source: str, stop: StopRequest, started: float = STARTED) -> Path:
    """Train and evaluate a cell. Returns its run folder. started: when its process began.

    Raises UserError if images or weights have changed since the plan, or if the imported code is not the sweep's; Busy
    if another process trains the cell; or what ended the run.
    """
    from gsq.config.program import ProgramConfig
    from gsq.errors import UserError
    from gsq.runs.execute import execute
    from gsq.runs.identity import identity

    require_source(source)
    found = identity(cell.config)
    if found != cell.signature:
        raise UserError(
            f"cell {cell.signature} of sweep '{folder.name}' would now be {found}: its images, weights, program, "
            "data or gsq's science version changed after it was planned; plan and submit it again"
        )
    if isinstance(cell.config, ProgramConfig):
        from gsq.runs.program import execute_program

        return execute_program(cell.config, folder.runs, cell.signature, stop=stop, started=started).path
    prune = _pruner(folder, cell.signature)
    return execute(cell.config, folder.runs, stop=stop, started=started, prune=prune).path


def require_source(source: str) -> None:
    from gsq.errors import UserError
    from gsq.sweeps.running.snapshot import imported_source

    if imported_source() != Path(source).resolve():
        raise UserError(
            f"this job imported gsq from {imported_source()}, not from the sweep's copy {source}; does the job's setup "
            "change PYTHONPATH or PYTHONSAFEPATH?"
        )


def _pruner(folder: SweepFolder, signature: str) -> Callable[[dict[str, Any]], str | None]:
    """Return the function that may prune the run at an intermediate evaluation, for its search if there is one."""
    if folder.search_id is None:
        return lambda evaluation: None
    from gsq.sweeps.state.study import pruner

    return pruner(folder, signature)


def unevaluated(path: Path, changes: dict[str, Any]) -> tuple[bool, str | None]:
    """Return whether a finished run lacks an evaluation, and the problem if its weights cannot be read.

    Raises UserError like gsq.runs.reevaluate.unevaluated for a wrong evaluation.
    """
    from gsq.runs.reevaluate import DamagedRun, unevaluated

    try:
        return bool(unevaluated(path, changes)), None
    except DamagedRun as error:
        return False, str(error)


def evaluate_run(
    path: Path, changes: dict[str, Any], data: dict[str, Any] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return new evaluations of a finished run, or the problem: non-finite reconstructions or lost weights.

    data: fields of the DataConfig with the present place of the images. Raises UserError like
    gsq.runs.reevaluate.evaluate_finished.
    """
    from gsq.config.run import DataConfig
    from gsq.evaluation.evaluate import NonFiniteReconstruction
    from gsq.runs.reevaluate import DamagedRun, evaluate_finished

    try:
        return evaluate_finished(path, changes, DataConfig(**data) if data is not None else None), None
    except NonFiniteReconstruction as error:
        return [], f"{path}: {error}"
    except DamagedRun as error:
        return [], str(error)


def evaluate_requests() -> int:
    """Evaluate the run of each line of standard input, and answer with a line (gsq.sweeps.running.evaluators).

    All other output goes to standard error.
    """
    import warnings

    from gsq.errors import UserError
    from gsq.evaluation.tally import SmallEvaluationWarning

    # No evaluation outlives the command that waits for it, and would run twice when the command is given again.
    _die_with_parent()
    # The plan has already warned of it, and each row says so (rank_deficient).
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


def say(text: str) -> str:
    print(text, flush=True)
    return text


# SLURM sends these to all processes of a job at once: to a worker that has no handlers yet or any more, too.
OF_A_JOB = (signal.SIGTERM, signal.SIGUSR2)


@contextmanager
def signals_of_a_job(how: int) -> Iterator[None]:
    """Hold back the signals of a job while the block runs (SIG_BLOCK), or let them through (SIG_UNBLOCK)."""
    before = signal.pthread_sigmask(how, OF_A_JOB)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def cancellable(folder: SweepFolder, signature: str, stop: StopRequest) -> Iterator[None]:
    """Let SIGTERM stop a cancelled cell at the end of a step, with a checkpoint. Any other SIGTERM acts as before, such
    as the one that SLURM sends before SIGUSR2 on preemption."""
    from gsq.runs.stop import handled
    from gsq.sweeps.spec.states import CANCELLED
    from gsq.sweeps.state.cancellation import marked

    def handle(number: int, frame: FrameType | None) -> None:
        if signature in marked(folder):
            stop.reason, stop.signal = CANCELLED, number
        elif callable(before):
            before(number, frame)

    before = signal.getsignal(signal.SIGTERM)
    with handled((signal.SIGTERM,), handle):
        if signature in marked(folder):
            stop.reason = CANCELLED
        yield


def worker_words(folder: SweepFolder, source: str, signature: str, shared: bool) -> list[str]:
    """Return the arguments of ``main`` for a worker."""
    return [str(folder.runs), folder.name, source, signature, *(["shared"] if shared else [])]


def worker_environment(source: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: this process's, for a cell that runs alone, with the given variables."""
    from gsq.surroundings import alone
    from gsq.sweeps.running.snapshot import environment

    return {
        **alone(os.environ),
        "PYTHONUNBUFFERED": "1",
        DRIVER_VARIABLE: str(os.getpid()),
        **environment(Path(source), os.environ.get("PYTHONPATH", "")),
        **variables,
    }


def open_log(folder: SweepFolder, signature: str) -> BinaryIO:
    """Open the log of a cell, after the line by which gsq logs separates the starts of workers."""
    path = folder.log(signature)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab")
    log.write(f"--- gsq worker started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    log.flush()
    return log


def start_worker(
    folder: SweepFolder, source: str, signature: str, variables: Mapping[str, str], shared: bool = False
) -> subprocess.Popen[bytes]:
    """Start a process that runs one cell and writes to its log, with the given environment variables."""
    with ExitStack() as stack:
        log = stack.enter_context(open_log(folder, signature))
        if shared:
            stack.enter_context(signals_of_a_job(signal.SIG_BLOCK))
        return subprocess.Popen(
            [sys.executable, "-m", "gsq.sweeps.running.worker", *worker_words(folder, source, signature, shared)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=worker_environment(source, variables),
            # Ctrl-C in the terminal reaches only the driver, which then stops the workers cleanly.
            start_new_session=True,
        )


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent dies: a job's first process, a warm parent, or gsq evaluate."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # The parent may have died before this request.
    if os.environ.get(DRIVER_VARIABLE, str(os.getppid())) != str(os.getppid()):
        sys.exit(1)


# Exit code of a worker that stopped on request.
STOPPED = 3


def main(arguments: list[str], begun: Callable[[], None] | None = None, started: float = STARTED) -> int:
    """Run ``python -m gsq.sweeps.running.worker RUNS SWEEP SOURCE SIGNATURE [shared]``, a worker of the local queue or
    of a shared SLURM job, or ``... evaluate`` (see ``evaluate_requests``).

    A process that a warm parent has forked passes ``begun``, which is called once the worker is known, and when it was
    forked.
    """
    if arguments == [EVALUATE]:
        return evaluate_requests()
    runs, sweep, source, signature, *shared = arguments
    folder = SweepFolder(Path(runs), sweep)
    if shared:
        _die_with_parent()
        if begun is not None:
            begun()
        return work(folder, source, signature, shared=True, started=started)
    # The local queue's workers outlive their driver, and the next driver adopts them by this record.
    with recorded_worker(folder, signature) as recorded:
        if begun is not None:
            if not recorded:
                return 1  # Drivers know a forked worker by its record alone, so this one has to start anew.
            begun()
        return work(folder, source, signature, started=started)


def work(folder: SweepFolder, source: str, signature: str, shared: bool = False, started: float = STARTED) -> int:
    """Run one cell and return the exit code of its process.

    shared: it is one of several in a SLURM job. started: seconds since the epoch at which the process began.
    """
    from gsq.errors import UserError
    from gsq.runs.stop import Stopped, StopRequest
    from gsq.sweeps.spec.states import CANCELLED

    stop = StopRequest()
    reasons: dict[int, str] = {signal.SIGTERM: CANCELLED, signal.SIGINT: CANCELLED, signal.SIGUSR2: "preempted"}
    try:
        with ExitStack() as stack:
            if shared:
                del reasons[signal.SIGTERM]
                # It was started with them held back. Once the cell has ended, none changes the exit code any more.
                stack.enter_context(signals_of_a_job(signal.SIG_BLOCK))
                stack.enter_context(cancellable(folder, signature, stop))
            stack.enter_context(stop.on_signals(reasons))
            if shared:
                stack.enter_context(signals_of_a_job(signal.SIG_UNBLOCK))
            run_cell(folder, folder.read_cell(signature), source, stop, started)
    except Stopped:
        return STOPPED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        end_without_threads(code)
    sys.exit(code)
