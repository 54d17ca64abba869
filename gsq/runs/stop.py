"""Requests to stop a run, and the exceptions that end it early."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from gsq.errors import UserError


class Stopped(Exception):
    """Training stopped on request at the end of a step, with a checkpoint. ``reason`` is the failure class."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Busy(UserError):
    """Another process trains the same run."""


class Pruned(Exception):
    """Training was pruned at an intermediate evaluation, with a checkpoint. ``by``: who pruned it."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


class PeerFailed(Exception):
    """Another process of the run failed or was killed. ``reason`` is its failure class."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def handled(numbers: Iterable[int], handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals while the block runs, then restore the earlier handlers. For the main thread only."""
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """A request that a signal handler sets and training reads between steps. ``reason`` is the failure class."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signal: int | None = None

    @contextmanager
    def on_signals(self, reasons: dict[int, str], told: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Turn these signals into requests while the block runs. A second signal acts as it did before, except USR2.

        told: called at once, before the step ends.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            self.reason, self.signal = reasons[number], number
            told()
            # A scheduler can send USR2 more than once.
            if number != signal.SIGUSR2:
                signal.signal(number, previous[number])

        previous = {number: signal.getsignal(number) for number in reasons}
        with handled(reasons, handle):
            yield
