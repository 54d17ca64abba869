"""For all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# A shell without a terminal ignores SIGINT for what it starts in the background, nohup ignores SIGHUP, and programs
# inherit it: none that a test starts would hear Ctrl-C or that its terminal was closed.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Files that start processes or train come first, so that no worker of pytest-xdist ends alone with one of them.
ORDER = ("integration_tests", "sweeps_tests", "gsq_tests", "analysis_tests")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(HERE).parts[0]
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    items.sort(key=place)
