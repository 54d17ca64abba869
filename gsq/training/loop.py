"""The training loop of one run: steps, checkpoints, the curve, and intermediate evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gsq.records.attempt import Attempt
from gsq.training import checkpoint
from gsq.training.trainer import Trainer


def train(
    trainer: Trainer,
    attempt: Attempt | None,
    start: Any | None,
    *,
    tick: Callable[[Trainer], None],
    evaluate: Callable[[Trainer], None],
) -> None:
    """Train to config.train.steps, from the checkpoint ``start`` if there is one.

    attempt: the place of curve and checkpoints; None for processes that write nothing. tick is called after each step
    and can raise to stop, which first writes a checkpoint of the finished step. The curve has the losses,
    images_per_second and loader_wait_seconds (time that a step waited for its images), both means since the line
    before. evaluate is called every config.evaluation.every steps.
    """
    config = trainer.config
    if start is not None:
        trainer.load_state(checkpoint.load(start, trainer.device))
    steps, every, keep = config.train.steps, config.evaluation.every, config.kept_steps

    def due(step: int) -> bool:
        return bool(every) and step % every == 0 and 0 < step < steps

    if due(trainer.step_count):
        # The attempt that left this checkpoint may have ended before or during the evaluation of its step.
        evaluate(trainer)
    images_since, waited_since, since = 0, trainer.waited, time.perf_counter()
    while trainer.step_count < steps:
        losses = trainer.step()
        step = trainer.step_count
        images_since += config.train.batch_size
        if attempt is not None and (step % config.execution.log_every == 0 or step == steps):
            now = time.perf_counter()
            steps_since, waited = images_since / config.train.batch_size, trainer.waited
            timings = {
                "images_per_second": images_since / (now - since),
                "loader_wait_seconds": (waited - waited_since) / steps_since,
            }
            attempt.log_metrics(step, {**losses, **timings})
            images_since, waited_since, since = 0, waited, now
        try:
            tick(trainer)
            if due(step):
                evaluate(trainer)
        except BaseException:
            if attempt is not None:
                checkpoint.save(attempt.path, step, trainer.state(), keep)
            raise
        if attempt is not None and (step % config.execution.checkpoint_every == 0 or step == steps or step in keep):
            checkpoint.save(attempt.path, step, trainer.state(), keep)
