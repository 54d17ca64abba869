"""Progress of a submission in a notebook, redrawn in place."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gsq.html import html_table
from gsq.records.read import RunRecord
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.state.reconcile import OnUpdate, no_update, shown_state
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.sweeps.state.reconcile import Action

# Time between two drawings [s].
DRAW_SECONDS = 1.0


def progress_for(plan: Plan) -> OnUpdate:
    """Return what draws the progress of a plan in a notebook; outside of one, what draws nothing."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return Progress(plan) if type(shell).__name__ == "ZMQInteractiveShell" else no_update


class Progress:
    """A table of the running cells below the counts of all."""

    def __init__(self, plan: Plan) -> None:
        self.name = plan.name
        self.titles = {cell.signature: cell.title for cell in plan.cells}
        self.drawn = -DRAW_SECONDS
        self.text = ""
        self.handle: Any = None

    def __call__(self, actions: Sequence[Action], records: dict[str, RunRecord]) -> None:
        """Draw the state that ``submit`` reports: at most once a second, and whenever a cell begins or ends."""
        states = {a.cell.signature: shown_state(a.cell.state, a.cell.failure) for a in actions}
        text = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states.values()).items()))
        if text == self.text and time.monotonic() - self.drawn < DRAW_SECONDS:
            return
        self.text, self.drawn = text, time.monotonic()
        running = [records[s] for s, state in states.items() if state == "running"]
        rows = [
            (self.titles.get(one.signature, one.signature), f"{one.step}/{one.steps}", _rate(one)) for one in running
        ]
        head = f"{self.name}: {counted(len(states), 'cell')}, {text}"
        self._show(html_table(head, ("running", "step", "images/s"), rows))

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display

        if self.handle is None:
            self.handle = display(HTML(html), display_id=True)  # type: ignore[no-untyped-call]
        else:
            self.handle.update(HTML(html))  # type: ignore[no-untyped-call]


def _rate(record: RunRecord) -> str:
    return f"{record.images_per_second:.0f}" if record.images_per_second else "-"
