"""Training programs of one's own for the tests: a good one, and broken ones."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gsq


def train(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Adds up its steps, and saves after every second one."""
    state = run.state or {"step": 0, "total": torch.zeros(())}
    total = state["total"]
    for step in range(state["step"] + 1, config["steps"] + 1):
        total = total + step * config["scale"]
        run.log(step, total=total, half=np.float32(step / 2))
        if step == 4:
            run.evaluate(step, total=total)
        if run.stop_requested or step % 2 == 0:
            run.save({"step": step, "total": total})
    (run.folder / "notes.txt").write_text("done")
    return {"total": total, "steps_made": config["steps"]}


def deaf(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Never looks whether it is to stop."""
    for step in range(config["steps"]):
        run.log(step)
    return {"loss": 1.0}


def silent(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Neither logs nor saves."""
    return {"loss": 1.0}


def hangs(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Never returns, nor logs."""
    Path(config["started"]).touch()
    while True:
        time.sleep(0.05)


def endless(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Goes on after its steps."""
    step = 0
    while True:
        step += 1
        run.log(step)


def nothing(config: dict[str, Any], run: gsq.Run) -> None:
    """Returns no dict."""


def empty(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Returns no metric."""
    return {}


def saves_first(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Saves before it evaluates, so that a run stopped between the two lacks the evaluation."""
    for step in range((run.state or {"step": 0})["step"] + 1, 7):
        run.log(step)
        if run.stop_requested or step % 2 == 0:
            run.save({"step": step})
        run.evaluate(step, loss=1 / step)
    return {}


def text_metric(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Returns a text."""
    return {"loss": "low"}


def text_log(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Logs a text."""
    run.log(1, phase="warm-up")  # type: ignore[arg-type]
    return {}


def named_as_a_key(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Returns a metric that is called like a key."""
    return {"scale": 1.0}


def backwards(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Logs an earlier step."""
    run.log(3)
    run.log(2)
    return {}


def diverges(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Logs NaN."""
    run.log(1, loss=float("nan"))
    return {}


def odd_state(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Saves what cannot be read back."""
    run.save({"rows": np.zeros(3), "path": Path("x")})
    return {}


def memory(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Runs out of memory."""
    raise MemoryError


def dies(config: dict[str, Any], run: gsq.Run) -> dict[str, Any]:
    """Ends its process after step 3 of the first attempt."""
    if run.state is None:
        run.log(2)
        run.save({"step": 2})
        run.log(3)
        sys.stdout.flush()
        os._exit(1)
    run.log(4)
    return {"resumed_at": run.state["step"]}
