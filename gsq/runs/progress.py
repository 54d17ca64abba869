"""Heartbeat and timings of a run while it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gsq.config.run import RunConfig
from gsq.records.attempt import RUNNING, Attempt
from gsq.runs.failures import classify, peak_memory_bytes, smaller_micro_batch
from gsq.runs.stop import PeerFailed, Stopped, StopRequest

if TYPE_CHECKING:
    from gsq.training.distributed import Group


class Progress:
    """Writes the attempt's heartbeat about once a second, and passes on a request to stop."""

    def __init__(
        self,
        attempt: Attempt | None,
        config: RunConfig,
        stop: StopRequest,
        device: str,
        on_step: Callable[[int], None],
        group: Group,
    ) -> None:
        self.attempt, self.config, self.stop, self.device = attempt, config, stop, device
        self.on_step, self.group = on_step, group
        self.started_from: str | None = None
        self.smaller = smaller_micro_batch(config, group.size)
        self.step, self.written = 0, 0.0
        self.first_step: int | None = None
        self.first_time = 0.0
        self.timings: dict[str, float] = {}
        self.first_step_ended = 0.0
        self.evaluation_seconds, self.evaluations, self.rfid = 0.0, 0, math.nan

    def __call__(self, step: int) -> None:
        """Report a step. Every process of the run calls this after the same step, so all of them stop together."""
        self._time_step()
        self.alive(step)
        if reason := self.group.agree(self.stop.reason):
            raise Stopped(reason)

    def _time_step(self) -> None:
        """Time start-up with the first step, and the later steps, both without evaluations."""
        now = time.monotonic() - self.evaluation_seconds
        if self.attempt is not None and not self.timings:
            self.first_step_ended = now
            started = max(0.0, time.time() - self.attempt.started - self.evaluation_seconds)
            self.timings = {"startup_seconds": started, "training_seconds": 0.0, "trained_steps": 0}
        elif self.timings:
            self.timings["training_seconds"] = now - self.first_step_ended
            self.timings["trained_steps"] += 1

    def evaluated(self, seconds: float, rfid: float) -> None:
        """Record the end of an evaluation, which does not count as training time."""
        self.evaluation_seconds += seconds
        self.evaluations += 1
        self.rfid = rfid

    def alive(self, step: int) -> None:
        self.step = step
        self.on_step(step)
        if self.first_step is None:
            self.first_step, self.first_time = step, time.monotonic()
        self._beat()

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self.written >= 1:
            self.written = now
            self.write(RUNNING)

    def staging(self) -> None:
        """Give a sign of life while each process copies images on its own."""
        self._beat()
        if self.stop.reason:
            raise Stopped(self.stop.reason)

    def evaluating(self, error: BaseException | None = None) -> None:
        """Report a batch of an evaluation, which every process of the run has finished. error: what failed in it.

        Raises ``error``, PeerFailed if another process's batch failed, or Stopped, in all processes at once.
        """
        self.alive(self.step)
        if reason := self.group.agree(classify(error) if error else self.stop.reason):
            failed = self.group.all_to_all(None if error is None else f"{type(error).__name__}: {error}")
            if error:
                raise error
            if message := next(filter(None, failed), None):
                raise PeerFailed(reason, message)
            raise Stopped(reason)

    def write(self, state: str, **more: object) -> None:
        if self.attempt is None:
            return
        elapsed = time.monotonic() - self.first_time
        if self.first_step is not None and self.step > self.first_step and elapsed > 0:
            more["images_per_second"] = (self.step - self.first_step) * self.config.train.batch_size / elapsed
        more["peak_memory_bytes"] = peak_memory_bytes(self.device)
        more["processes"] = self.group.size
        # Every status has it, since an attempt that is killed for its memory cannot write one more.
        more["next_micro_batch"] = self.smaller
        more["device"] = self.device
        more |= self.timings
        if self.evaluations:
            more |= {"evaluation_seconds": self.evaluation_seconds, "evaluations": self.evaluations, "rfid": self.rfid}
        if self.started_from is not None:
            more["started_from"] = self.started_from
        self.attempt.write_status(state, self.step, self.config.train.steps, **more)
