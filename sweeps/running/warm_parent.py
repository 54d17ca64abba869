"""The process that workers are forked from: ``python -m gsq.sweeps.running.warm_parent KIND``.

It imports what cells need, once, and then forks a worker for each request of its driver (gsq.sweeps.running.workers).
Requests and answers are lines of JSON. It holds the code of one source copy under one set of environment variables, and
has neither threads nor a CUDA context, which no child could use. It ends with its driver; its workers go on.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from gsq.ending import end_without_threads

TOKENIZER, PROGRAM = "tokenizer", "program"
# What a cell imports before it trains. A program may do without torch, and imports its own packages in its own process.
PRELOADED = {
    TOKENIZER: (
        *("torch", "yaml", "PIL.Image", "PIL.PngImagePlugin", "PIL.JpegImagePlugin", "scipy.linalg"),
        *("gsq.config.flops", "gsq.data.staging", "gsq.evaluation.evaluate", "gsq.evaluation.protocol"),
        *("gsq.pretrained.efficientnet", "gsq.runs.execute", "gsq.runs.identity", "gsq.runs.provenance"),
        *("gsq.training.loop", "gsq.training.losses", "gsq.training.trainer", "gsq.sweeps.running.worker"),
    ),
    PROGRAM: ("yaml", "gsq.runs.program", "gsq.runs.identity", "gsq.sweeps.running.worker"),
}
READY = "ready"
# A signal for all processes of a SLURM job must not end the parent, because its workers would end with it.
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def unfit() -> str:
    """Return why children of this process would not be sound; empty if they would be."""
    # OpenBLAS ends its threads at a fork, and starts them again in the process that needs them.
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        return f"it has {threads} threads"
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "nvidia" in os.readlink(entry):
                return f"it has opened {os.readlink(entry)}"
    return ""


def main(arguments: list[str]) -> int:
    (kind,) = arguments
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    for name in PRELOADED[kind]:
        importlib.import_module(name)
    # Collections of a child would otherwise copy the pages of every object made so far.
    gc.collect()
    gc.freeze()
    why = unfit()
    print(why or READY, flush=True)
    if why:
        return 1
    child = _serve()
    # Modules that are torn down take time, and complain of objects that outlive them since they are frozen.
    _leave(_exit_code(child) if child is not None else 0)


def _serve() -> Callable[[], int] | None:
    """Answer the driver until it is gone. In a new worker, returns what the worker does."""
    from gsq.sweeps.running.worker import OF_A_JOB

    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            answer: dict[str, Any] = {"code": os.waitstatus_to_exitcode(status)}
        else:
            parent, (answered, announce) = os.getpid(), os.pipe()
            # The worker of a job takes these signals once it has handlers for them.
            held = OF_A_JOB if request["shared"] else ()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
            if (pid := os.fork()) == 0:
                os.close(answered)
                return lambda: _work(request, announce, parent)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(announce)
            # The worker has written its record, or has ended.
            told = os.read(answered, 64)
            os.close(answered)
            answer = {"pid": pid, "start": told.decode()}
        print(json.dumps({"id": request["id"], **answer}), flush=True)
    return None


def _exit_code(work: Callable[[], int]) -> int:
    """Return the exit code that Python would end with."""
    try:
        return work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1


def _leave(code: int) -> NoReturn:
    """End this process like Python, threads and exit functions included, but for the modules."""
    end_without_threads(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _work(request: dict[str, Any], announce: int, parent: int) -> int:
    """Become the worker of a request, as if it had been started alone."""
    from gsq.records.attempt import process_start
    from gsq.sweeps.running import worker
    from gsq.sweeps.state.local import DRIVER_VARIABLE

    started = time.time()
    os.setsid()
    for number in IGNORED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for opened, standard in ((null, 0), (log, 1), (log, 2)):
        os.dup2(opened, standard)
    os.close(null)
    os.close(log)
    sys.argv = [worker.__file__, *request["words"]]
    os.environ.update(request["variables"])
    if request["shared"]:
        os.environ[DRIVER_VARIABLE] = str(parent)
    if (numpy := sys.modules.get("numpy")) is not None:
        # Otherwise all children would draw the same numbers where a program sets no seed.
        numpy.random.seed()

    def begun() -> None:
        os.write(announce, process_start(os.getpid()).encode())
        os.close(announce)

    return worker.main(request["words"], begun, started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
