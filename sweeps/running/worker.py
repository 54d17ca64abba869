"""What a worker runs: one cell, by paths. The only module of sweeps that imports training and evaluation.

``ArrayJob`` goes to SLURM (pickled by submitit), ``python -m gsq.sweeps.running.worker`` is a worker of the local
queue. They carry paths, never state: after a node failure SLURM starts the original pickle again, and it resumes from
what is on disk.
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
from typing import TYPE_CHECKING, Any

from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.state.local import DRIVER_VARIABLE, recorded_worker

if TYPE_CHECKING:
    from gsq.runs.stop import StopRequest
    from gsq.sweeps.planning.cells import Cell


STARTED = time.time()
# What a process is asked for that evaluates finished runs.
EVALUATE = "evaluate"


def run_cell(folder: SweepFolder, cell: Cell, source: str, stop: StopRequest) -> Path:
    """Train and evaluate a cell; returns its run folder.

    Raises UserError where its images or weights have changed since it was planned, where other code than the
    sweep's was imported, and (Busy) where another process trains it; else what ended the run.
    """
    from gsq.errors import UserError
    from gsq.runs.execute import execute
    from gsq.runs.identity import identity

    require_source(source)
    found = identity(cell.config)
    if found != cell.signature:
        raise UserError(
            f"cell {cell.signature} of sweep '{folder.name}' would now be {found}: its images, weights or gsq's "
            "science version changed after it was planned; plan and submit it again"
        )
    prune = _pruner(folder, cell.signature)
    return execute(cell.config, folder.runs, stop=stop, started=STARTED, prune=prune).path


def require_source(source: str) -> None:
    from gsq.errors import UserError
    from gsq.sweeps.running.snapshot import imported_source

    if imported_source() != Path(source).resolve():
        raise UserError(
            f"this job imported gsq from {imported_source()}, not the copy {source} that the sweep was "
            "submitted with; does something in the job's setup change PYTHONPATH or PYTHONSAFEPATH?"
        )


def _pruner(folder: SweepFolder, signature: str) -> Callable[[dict[str, Any]], str | None]:
    """Who may give the run up at an intermediate evaluation: its search, if the sweep is one."""
    if folder.search_id is None:
        return lambda evaluation: None
    from gsq.sweeps.state.study import pruner

    return pruner(folder, signature)


def unevaluated(path: Path, changes: dict[str, Any]) -> tuple[bool, str | None]:
    """Whether an evaluation of a finished run is missing, and why not where its weights cannot be read.

    Raises UserError as gsq.runs.reevaluate.unevaluated does, for what is wrong with the evaluation itself.
    """
    from gsq.runs.reevaluate import DamagedRun, unevaluated

    try:
        return bool(unevaluated(path, changes)), None
    except DamagedRun as error:
        return False, str(error)


def evaluate_run(
    path: Path, changes: dict[str, Any], data: dict[str, Any] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """New evaluations of a finished run, and why there is none where its reconstructions are not finite or its weights
    are gone. data: fields of the DataConfig that says where its images lie now.

    Raises UserError as gsq.runs.reevaluate.evaluate_finished does.
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
    """``python -m gsq.sweeps.running.worker evaluate``: evaluates the run of each line of standard input, and answers
    with a line (gsq.sweeps.running.evaluators). Whatever else is printed goes to standard error."""
    import warnings

    from gsq.errors import UserError
    from gsq.evaluation.tally import SmallEvaluationWarning

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


def say(text: str) -> str:
    print(text, flush=True)
    return text


@contextmanager
def cancellable(folder: SweepFolder, signature: str, stop: StopRequest) -> Iterator[None]:
    """SIGTERM stops the cell at the end of a step, with a checkpoint, where a user has cancelled it. Any other
    SIGTERM goes where it went before: on preemption SLURM sends one before SIGUSR2."""
    from gsq.sweeps.spec.states import CANCELLED
    from gsq.sweeps.state.cancellation import marked

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


def start_worker(
    folder: SweepFolder, source: str, signature: str, variables: Mapping[str, str], shared: bool = False
) -> subprocess.Popen[bytes]:
    """A process that runs one cell, with one thread unless ``variables`` say otherwise. It writes to the cell's log."""
    from gsq.surroundings import alone
    from gsq.sweeps.running.snapshot import environment

    path = folder.log(signature)
    path.parent.mkdir(parents=True, exist_ok=True)
    job = [str(folder.runs), folder.name, str(source), signature, *(["shared"] if shared else [])]
    with path.open("ab") as log:
        # Attempts share the file; gsq logs tells them apart by this line.
        log.write(f"--- gsq worker started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", "gsq.sweeps.running.worker", *job],
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
    """``python -m gsq.sweeps.running.worker RUNS SWEEP SOURCE SIGNATURE [shared]``: a worker of the local queue, or
    one of those that share a SLURM job. ``python -m gsq.sweeps.running.worker evaluate``: see
    ``evaluate_requests``."""
    if arguments == [EVALUATE]:
        return evaluate_requests()
    runs, sweep, source, signature, *shared = arguments
    folder = SweepFolder(Path(runs), sweep)
    if shared:
        _die_with_parent()
        return work(folder, source, signature, shared=True)
    # The local queue's workers go on without their driver, and the next one adopts them by this record.
    with recorded_worker(folder, signature):
        return work(folder, source, signature)


def work(folder: SweepFolder, source: str, signature: str, shared: bool = False) -> int:
    """Run one cell, and return the exit code of its process. shared: it is one of several in a SLURM job."""
    from gsq.errors import UserError
    from gsq.runs.stop import Stopped, StopRequest
    from gsq.sweeps.spec.states import CANCELLED

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
