"""Progress on stderr of work that takes more than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE, REPEAT = 1.0, 60.0


def shown_after_a_second(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield the items. After a second, show a bar on a terminal, or a line every minute in a log.

    what: the work, such as "looking at the images of photos".
    """
    begun = time.monotonic()
    due, bar, done = PATIENCE, None, 0
    try:
        for done, item in enumerate(items):
            passed = time.monotonic() - begun
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)
            elif passed > due:
                if sys.stderr.isatty():
                    from rich.console import Console
                    from rich.progress import Progress

                    bar = Progress(console=Console(stderr=True), transient=True)
                    bar.add_task(what, total=total, completed=done)
                    bar.start()
                else:
                    print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)
                    due = passed + REPEAT
            yield item
    finally:
        if bar is not None:
            bar.stop()
