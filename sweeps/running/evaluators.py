"""Processes on this machine that evaluate finished runs, each one after the other: ``python -m
gsq.sweeps.running.worker evaluate``.

They are started like the workers of the local queue rather than by multiprocessing, which would import the caller's
main module again: a notebook, or a script without a guard. Requests and answers are lines of JSON.
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


class Request(NamedTuple):
    """One run to evaluate: the arguments of gsq.sweeps.running.worker.evaluate_run."""

    path: Path
    changes: dict[str, Any]
    data: dict[str, Any] | None


class WorkerDied(Exception):
    """A worker ended in the middle of an evaluation: how, in words."""


class _Worker:
    def __init__(self, gpu: str) -> None:
        # What the caller imports, the worker can: a user's own features, too. Threads of several workers on the same
        # cores would slow each other down many times over.
        variables = {
            **environment(imported_source(), os.pathsep.join(path for path in sys.path if path)),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gsq.sweeps.running.worker", EVALUATE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
            # Ctrl-C is for the caller, who ends the workers.
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
    """The key of each request with its new evaluations and what went wrong, in the order in which they end.

    count: processes at a time, each with a core or a GPU of its own. Raises WorkerDied, and UserError as
    gsq.runs.reevaluate.evaluate_finished does; then, and where the caller stops early, the processes are ended.
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
        # A half-made evaluation leaves nothing behind.
        pool.shutdown(wait=False, cancel_futures=True)
        over.set()
        with starting:
            for worker in workers:
                worker.process.kill()
        pool.shutdown()
        for worker in workers:
            # What was still to be written to it is lost with it.
            with suppress(BrokenPipeError):
                worker.process.communicate()
