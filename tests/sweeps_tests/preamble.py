"""What many tests of sweeps share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gsq.records.folder import RunFolder
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.state.journal import Entry

PlanOf = Callable[..., Plan]
WriteRun = Callable[..., RunFolder]
HandedOver = Callable[..., Entry]


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return what ``condition`` does once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found
