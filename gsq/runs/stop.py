"""How a run is asked to stop, and the ways in which it ends early."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from gsq.errors import UserError


class Stopped(Exception):
    """Training stopped at the end of a step because it was asked to; a checkpoint of that step is on disk."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Busy(UserError):
    """Another process trains the same run."""


class Pruned(Exception):
    """Training was given up at an intermediate evaluation; a checkpoint of that step is on disk."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


class PeerFailed(Exception):
    """Another process of the run failed, or was killed; ``reason`` is the failure class of that."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def handled(numbers: Iterable[int], handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals while the block runs, and as before when it ends. Only the main thread can."""
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Set from a signal handler, read between steps. ``reason`` is the failure class to record."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signal: int | None = None

    @contextmanager
    def on_signals(self, reasons: dict[int, str], told: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Turn these signals into requests while the block runs; a second one acts as it did before, but for USR2.

        told: called at once, before the step has ended.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            self.reason, self.signal = reasons[number], number
            told()
            # A scheduler may say USR2 more than once.
            if number != signal.SIGUSR2:
                signal.signal(number, previous[number])

        previous = {number: signal.getsignal(number) for number in reasons}
        with handled(reasons, handle):
            yield
