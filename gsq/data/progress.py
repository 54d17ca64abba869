"""Progress on stderr of work that takes more than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

T = TypeVar("T")
PATIENCE, REPEAT = 1.0, 60.0


class Shown:
    """Progress of some work: after a second a bar on a terminal, or a line every minute in a log."""

    def __init__(self, what: str, total: int | None = None, patience: float | None = None) -> None:
        """what: the work, such as "looking at the images of photos". total: None if it is not known. patience: seconds
        before anything is shown, by default PATIENCE."""
        self.what, self.total, self.done = what, total, 0
        self.begun, self.due = time.monotonic(), PATIENCE if patience is None else patience
        self.bar: Any = None

    def __call__(self, done: int, note: str = "") -> None:
        """Tell how much is done, and what is being done just now."""
        passed = time.monotonic() - self.begun
        self.done = done
        what = f"{self.what} ({note})" if note else self.what
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, description=what)
        elif passed > self.due:
            if sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

                text = TextColumn("{task.description}", markup=False)
                columns = (text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
                self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
                self.bar.add_task(what, total=self.total, completed=done)
                self.bar.start()
            else:
                of = "" if self.total is None else f" of {self.total:,}"
                print(f"{what}: {done:,}{of}", file=sys.stderr, flush=True)
                self.due = passed + REPEAT

    def advance(self, count: int) -> None:
        """Tell how much more is done."""
        self(self.done + count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def shown_after_a_second(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and show the progress as ``Shown`` does."""
    with Shown(what, total) as shown:
        for done, item in enumerate(items):
            shown(done)
            yield item
