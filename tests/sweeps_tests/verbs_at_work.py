"""What the tests of verbs share: the command line, and waiting for something."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gsq.cli.main import app

TINY = {
    "model.channels": 8,
    "model.norm_groups": 4,
    "steps": 60,
    "image_size": 32,
    "discriminator.channels": 8,
    "discriminator.norm_groups": 4,
    "batch_size": 2,
    "loss.discriminator_start": 0,
    "evaluation.num_images": 8,
    "data.max_crop": 2.0,
    "execution.checkpoint_every": 5,
    "execution.log_every": 1,
}


def gsq(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("gsq")), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
