"""A few steps of training with a part of a user's own: twice, in micro-batches, resumed, and by two processes.

Run as a module it is one of the two processes.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from gsq.config.overrides import from_dict, to_dict
from gsq.config.run import RunConfig
from gsq.data.batches import ImageSource
from gsq.training.trainer import Trainer

STEPS, BATCH = 3, 4
# Sums in another order differ by so much, relatively.
TOLERANCE = 1e-4
Tests = Iterator[tuple[str, Callable[[], str | None]]]


def require(truth: bool, message: str) -> None:
    """Raise AssertionError with the message unless it is true."""
    if not truth:
        raise AssertionError(message)


def training_checks(config: RunConfig) -> Tests:
    """Steps of a tiny run with the part: alike whatever the split of the batch, and after a resume."""
    whole: dict[str, Any] = {}

    def alone() -> None:
        whole.update(_losses(config))
        require(_losses(config) == whole, "two runs with one seed differ")

    def micro() -> None:
        execution = replace(config.execution, micro_batch=BATCH // 2)
        _close(_losses(replace(config, execution=execution)), whole, "in micro-batches")

    def resumed() -> None:
        source, half = ImageSource(config.data), 2
        first = Trainer(config, source)
        for _ in range(half):
            first.step()
        state = copy.deepcopy(first.state())
        second = Trainer(config, source)
        second.load_state(state)
        last: dict[str, float] = {}
        for _ in range(STEPS - half):
            last = second.step()
        require(last == whole["steps"][-1], "a resumed run differs from one that was not stopped")

    yield f"{STEPS} steps, twice the same", alone
    yield "micro-batches change nothing", micro
    yield "a resumed run goes on the same", resumed
    yield "two processes change nothing", lambda: _close(_two_processes(config), whole, "with two processes")


def _losses(config: RunConfig) -> dict[str, Any]:
    trainer = Trainer(config, ImageSource(config.data))
    return {"steps": [trainer.step() for _ in range(STEPS)]}


def _close(found: dict[str, Any], wanted: dict[str, Any], how: str) -> None:
    for step, (one, other) in enumerate(zip(found["steps"], wanted["steps"], strict=True)):
        for name, value in other.items():
            gap = abs(one[name] - value)
            require(
                gap <= TOLERANCE * max(1.0, abs(value)),
                f"{how}, {name} of step {step} is {one[name]:.6g} instead of {value:.6g}; a loss must be a mean over "
                "the images, and a part must not look at the whole batch",
            )


def _two_processes(config: RunConfig) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "gsq.runs.part_training", json.dumps(to_dict(config))]
    workers = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate() for worker in workers]
    failed = [error for worker, (_, error) in zip(workers, outputs, strict=True) if worker.returncode]
    if failed:
        raise AssertionError((failed[0].strip().splitlines() or ["a process died"])[-1])
    found: dict[str, Any] = json.loads(outputs[0][0].strip().splitlines()[-1])
    return found


def _worker(text: str) -> None:
    from gsq.training.distributed import join, leave

    config = from_dict(json.loads(text))
    torch.set_num_threads(1)
    group = join(config, lambda: None)
    trainer = Trainer(config, ImageSource(config.data), group)
    steps = [trainer.step() for _ in range(STEPS)]
    if group.first:
        print(json.dumps({"steps": steps}))
    leave()


if __name__ == "__main__":
    _worker(sys.argv[1])
