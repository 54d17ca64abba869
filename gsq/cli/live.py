"""The display of a running sweep, redrawn on a terminal and printed as lines elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gsq.records.folder import runs_root
from gsq.records.read import RunRecord
from gsq.sweeps.costing.cost import Speed, estimate, speed
from gsq.sweeps.planning.cells import Plan
from gsq.sweeps.planning.folder import SweepFolder
from gsq.sweeps.spec.states import CANCELLED
from gsq.sweeps.state.status import CellStatus, row, waiting_reasons
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.sweeps.state.reconcile import Action

from gsq.cli.options import line
from gsq.cli.wording import brief, counts_text, duration, shown_cells, waiting_text

# Interval between lines of progress without a terminal [s].
LINE_SECONDS = 20.0
# Interval between estimates of the time left [s].
SPEED_SECONDS = 10.0


class LiveView:
    """Shows a running sweep: counts, a line for each running cell, and the total time left.

    A terminal is redrawn in place. Elsewhere each cell that ends adds a line, with lines of progress in between.
    """

    def __init__(
        self, plan: Plan, slots: int, device: str, console: Console | None = None, stops_cells: bool = True
    ) -> None:
        """stops_cells: Ctrl-C stops the running cells; acknowledge it at once, since this may take a minute."""
        self.cells = {cell.signature: cell for cell in plan.cells}
        self.name, self.slots, self.device = plan.name, max(1, slots), device
        # Trials that a search has not ended yet; their cells appear while it runs.
        self.expected = _trials_left(plan)
        self.console = console or Console(emoji=False)
        self.stops_cells = stops_cells
        self.before: Any = None
        self.live = (
            Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        )
        self.states: dict[str, str] = {}
        self.blocked: set[str] = set()
        self.printed = time.monotonic()
        self.speed: Speed | None = None
        self.speed_read = 0.0

    def __enter__(self) -> LiveView:
        main = threading.current_thread() is threading.main_thread()
        if self.stops_cells and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.before = signal.signal(signal.SIGINT, self._stopping)
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None
        if self.live:
            self.live.stop()

    def _stopping(self, number: int, frame: FrameType | None) -> None:
        running = sum(state == "running" for state in self.states.values())
        ends = "ends its step and writes" if running == 1 else "end their step and write"
        self._line(f"stopping: {counted(running, 'running cell')} {ends} a checkpoint" if running else "stopping")
        raise KeyboardInterrupt

    def update(self, actions: Sequence[Action], records: dict[str, RunRecord]) -> None:
        """Show the actions of reconcile and the records of the run folders."""
        if any(a.cell.signature not in self.cells for a in actions):
            drawn = SweepFolder(runs_root(), self.name).read_plan().cells
            self.cells |= {cell.signature: cell for cell in drawn}
        rows = [row(self.cells[a.cell.signature], a.cell, records[a.cell.signature]) for a in actions]
        left = self._seconds_left(rows, records)
        self._announce(rows, {a.cell.signature for a in actions if a.kind == "submit"})
        if self.live:
            self.live.update(self._render(rows, left))
        elif time.monotonic() - self.printed > LINE_SECONDS:
            self.printed = time.monotonic()
            running = "; ".join(f"{brief(r.title)}: step {r.step}/{r.steps}" for r in rows if r.state == "running")
            waiting = "; ".join(waiting_text(reason, count) for reason, count in waiting_reasons(rows).items())
            parts = [counts_text(shown_cells(rows)), waiting, f"about {duration(left)} left", running]
            self._line(escape("; ".join(part for part in parts if part)))

    def _line(self, text: str) -> None:
        line(self.console, f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}")

    def _announce(self, rows: Sequence[CellStatus], resumed: set[str]) -> None:
        blocked = waiting_reasons(r for r in rows if r.blocked)
        for reason in blocked.keys() - self.blocked:
            self._line(f"[red]{escape(waiting_text(reason, blocked[reason]))}[/red]")
        self.blocked = set(blocked)
        for r in rows:
            before = self.states.get(r.signature)
            self.states[r.signature] = r.state
            if r.state == before or r.state not in ("done", "failed", "pruned"):
                continue
            if before is None and r.state == "done":
                continue
            if r.state == "done":
                self._line(f"[green]done[/green]   {escape(brief(r.title))}")
            elif r.state == "pruned":
                self._line(f"pruned {escape(brief(r.title))} at step {r.step}")
            elif r.failure == CANCELLED:
                self._line(f"stopped {escape(brief(r.title))} at step {r.step}")
            elif r.signature not in resumed:
                reason = f"{brief(r.title)}: {r.failure}: {r.message or ''}"
                self._line(f"[red]failed[/red] {escape(reason)}")

    def _seconds_left(self, rows: Sequence[CellStatus], records: dict[str, RunRecord]) -> float:
        now = time.monotonic()
        if self.speed is None or now - self.speed_read > SPEED_SECONDS:
            self.speed_read = now
            folder = SweepFolder(runs_root(), self.name)
            self.speed = speed(self.cells.values(), records, self.device, folder)
        rate = self.speed
        total, longest = 0.0, 0.0
        for r in rows:
            if r.state in ("done", "failed", "pruned"):
                continue
            whole = estimate(self.cells[r.signature], rate, self.device).seconds
            left = whole * (1 - r.step / r.steps)
            if r.seconds_left is not None:
                left = r.seconds_left + 0.1 * whole
            total, longest = total + left, max(longest, left)
        if self.expected > len(rows):
            each = [estimate(cell, rate, self.device).seconds for cell in self.cells.values()]
            total += (self.expected - len(rows)) * sum(each) / len(each)
        return max(total / self.slots, longest)

    def _render(self, rows: Sequence[CellStatus], left: float) -> Group:
        finished, count = sum(r.state in ("done", "failed", "pruned") for r in rows), max(len(rows), self.expected)
        share = sum(1.0 if r.state in ("done", "failed", "pruned") else r.step / r.steps for r in rows)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.name, style="bold"),
            ProgressBar(total=count, completed=share, width=24),
            f"{finished}/{count} {'trials' if self.expected else 'cells'}",
            f"about {duration(left)} left",
        )
        counts = Text(counts_text(shown_cells(rows)))
        body = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("running", "step", "images/s", "time left"):
            body.add_column(name, justify="left" if name == "running" else "right")
        for r in rows:
            if r.state == "running":
                rate = f"{r.images_per_second:.0f}" if r.images_per_second else "-"
                body.add_row(brief(r.title), f"{r.step}/{r.steps}", rate, duration(r.seconds_left))
        waiting = [Text(waiting_text(reason, n), style="yellow") for reason, n in waiting_reasons(rows).items()]
        hint = Text("Ctrl-C stops cleanly; the same command resumes", style="dim")
        return Group(head, counts, *waiting, body, hint)


def _trials_left(plan: Plan) -> int:
    if plan.search is None or plan.search.search is None:
        return 0
    from gsq.sweeps.state.study import search_status

    found = search_status(SweepFolder(runs_root(), plan.name))
    ended = sum(trial.state != "running" for trial in found.trials) if found else 0
    return max(0, plan.search.search.trials - ended)
