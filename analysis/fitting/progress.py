"""What a long fit is at. A library says nothing; the command line shows it (:func:`show_stages`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Shown(Protocol):
    def advance(self, count: int) -> None:
        """Show that so many more are done."""


Show = Callable[[str, int], AbstractContextManager[Shown]]
_show: list[Show] = []
_now: list[Shown] = []


def show_stages(show: Show) -> None:
    """Show every stage of this process's fits. show: of what a stage does and how many steps it has."""
    _show[:] = [show]


@contextmanager
def stage(what: str, total: int) -> Iterator[None]:
    """Show what happens in the block, which calls :func:`advance`."""
    if not _show:
        yield
        return
    with _show[0](what, total) as shown:
        _now.append(shown)
        try:
            yield
        finally:
            _now.pop()


def advance(count: int = 1) -> None:
    """Tell that so many more steps of the present stage are done."""
    if _now:
        _now[-1].advance(count)
