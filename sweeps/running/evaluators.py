"""Processes on this machine that evaluate finished runs: ``python -m gsq.sweeps.running.worker evaluate``.

multiprocessing would import the caller's main module again, which may be a notebook or a script without a guard.
Requests and answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gsq.errors import UserError
from gsq.sweeps.running.snapshot import environment, imported_source
from gsq.sweeps.running.worker import EVALUATE
from gsq.sweeps.spec.cluster import local_gpus
from gsq.sweeps.state.local import DRIVER_VARIABLE


class Request(NamedTuple):
    """Arguments of gsq.sweeps.running.worker.evaluate_run for one run."""

    path: Path
    changes: dict[str, Any]
    data: dict[str, Any] | None


class WorkerDied(Exception):
    """A worker ended during an evaluation; the message says how."""


class _Worker:
    def __init__(self, gpu: str) -> None:
        # The worker can import what the caller can, such as a user's own features. Threads of several workers on the
        # same cores would slow each other down many times over.
        variables = {
            **environment(imported_source(), os.pathsep.join(path for path in sys.path if path)),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            DRIVER_VARIABLE: str(os.getpid()),
            **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gsq.sweeps.running.worker", EVALUATE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
            # Ctrl-C reaches only the caller, which ends the workers; they end with it if it is killed.
            start_new_session=True,
        )

    def ask(self, request: Request) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps([str(request.path), request.changes, request.data]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            code = self.process.wait()
            raise WorkerDied("was killed (out of memory?)" if code < 0 else f"failed with exit code {code}, see above")
        found = json.loads(answer)
        assert isinstance(found, dict)
        return found


def evaluate_in_processes(
    requests: Mapping[str, Request], count: int
) -> Iterator[tuple[str, list[dict[str, Any]], str | None]]:
    """Yield the key of each request with its new evaluations and its problem, in the order of completion.

    count: processes at a time, each with its own core or GPU. Raises WorkerDied, and UserError like
    gsq.runs.reevaluate.evaluate_finished. The processes end with the generator.
    """
    gpus = local_gpus()
    workers: list[_Worker] = []
    own, starting, over = threading.local(), threading.Lock(), threading.Event()

    def evaluate(request: Request) -> dict[str, Any]:
        if not hasattr(own, "worker"):
            with starting:
                if over.is_set():
                    raise WorkerDied("was not started any more")
                own.worker = _Worker(gpus[len(workers) % len(gpus)] if gpus else "")
                workers.append(own.worker)
        found: dict[str, Any] = own.worker.ask(request)
        return found

    pool = ThreadPoolExecutor(count)
    try:
        futures = {pool.submit(evaluate, request): key for key, request in requests.items()}
        for future in as_completed(futures):
            answer = future.result()
            if answer["error"] is not None:
                raise UserError(answer["error"])
            yield futures[future], answer["results"], answer["problem"]
    finally:
        # An interrupted evaluation leaves nothing behind.
        pool.shutdown(wait=False, cancel_futures=True)
        over.set()
        with starting:
            for worker in workers:
                worker.process.kill()
        pool.shutdown()
        for worker in workers:
            # Unsent requests are lost with the worker.
            with suppress(BrokenPipeError):
                worker.process.communicate()
