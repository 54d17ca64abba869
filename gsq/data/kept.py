"""A cache limited by bytes, shared by threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The most recently used values, as many as ``limit`` bytes hold, and at least one."""

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self.limit, self.size = limit, size
        self.kept: OrderedDict[Hashable, T] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()

    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of this key, made if it is not kept. Two threads can make the same value at the same time."""
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        made = make()
        with self.lock:
            if key not in self.kept:
                self.kept[key] = made
                self.bytes += self.size(made)
                while self.bytes > self.limit and len(self.kept) > 1:
                    self.bytes -= self.size(self.kept.popitem(last=False)[1])
        return made

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self.kept.clear()
            self.bytes = 0
