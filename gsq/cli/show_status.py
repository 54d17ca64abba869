"""Tables of cells, trials and sweeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gsq import sweeps
from gsq.sweeps.planning.cells import title
from gsq.sweeps.spec.search_space import OBJECTIVES
from gsq.sweeps.spec.states import CANCELLED
from gsq.sweeps.state.reconcile import STOPPED, shown_state
from gsq.sweeps.state.status import SweepStatus
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.sweeps.state.status import SweepLine

from gsq.cli.tables import broken_head, head_of, plain_table
from gsq.cli.wording import brief, counts_text, duration, failed_advice, shown_cells, spelled, waiting_text

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "stopped": "yellow",
    "queued": "yellow",
    "planned": "dim",
    "pruned": "dim",
}


def trial_table(found: sweeps.SearchStatus, limit: int = 20) -> Table:
    """Return the trials of a search, the best first."""
    names = list(dict.fromkeys(name for trial in found.trials for name in trial.axes))
    table = plain_table(gap=1)
    for name in ("trial", *map(head_of, names), *map(head_of, found.objectives), "state"):
        table.add_column(
            "\n".join(broken_head(name, 1)),
            justify="left" if name == "state" else "right",
            overflow="fold",
            vertical="bottom",
        )
    sign = -1.0 if OBJECTIVES[found.objectives[0]] == "maximize" else 1.0
    order = {"complete": 0, "pruned": 1}
    ranked = sorted(found.trials, key=lambda t: (order.get(t.state, 2), [sign * v for v in t.values], t.number))
    for trial in ranked[:limit]:
        values = [f"{value:.4g}" for value in trial.values] or ["-"] * len(found.objectives)
        state = f"{trial.state} ({trial.ended})" if trial.ended else trial.state
        shown = [title({name: trial.axes[name]}).partition("=")[2] for name in names]
        style = "bold" if trial.number in found.best else ""
        table.add_row(str(trial.number), *shown, *values, escape(state), style=style)
    return table


def status_renderable(found: SweepStatus, limit: int | None = 60) -> Group:
    """Return a row for each cell, counts, and failures by class with the reason."""
    cells = found.cells[:limit]
    # Leave out empty columns, so that a row fits a terminal.
    extra = {
        "rFID": any(c.rfid is not None for c in cells),
        "images/s": any(c.images_per_second for c in cells),
        "left": any(c.seconds_left is not None for c in cells),
        "attempt": any(c.attempts > 1 for c in cells),
        "restarts": any(c.restarts for c in cells),
        "trial": any(c.trials for c in cells),
        "node": len({c.node for c in cells}) > 1,
        "job": any(c.job for c in cells),
    }
    heads = ("signature", "cell", "state", "step", *(name for name, shown in extra.items() if shown))
    right = ("step", "rFID", "images/s", "left", "attempt", "restarts", "trial")
    table = plain_table(*heads, right=right, no_wrap=("signature",), gap=1)
    for c in cells:
        values = {
            "rFID": f"{c.rfid:.4g}" if c.rfid is not None else "",
            "images/s": f"{c.images_per_second:.0f}" if c.images_per_second else "",
            "left": duration(c.seconds_left) if c.seconds_left is not None else "",
            "attempt": str(c.attempts),
            "restarts": str(c.restarts),
            "trial": ", ".join(map(str, c.trials)),
            "node": c.node,
            "job": c.job,
        }
        state = shown_state(c.state, c.failure)
        text = Text(f"failed ({c.failure})" if c.failure and state != STOPPED else state, style=STYLES[state])
        shown = [text for name, text in values.items() if extra[name]]
        table.add_row(c.signature, brief(c.title), text, f"{c.step}/{c.steps}", *shown)
    parts: list[Table | Text] = [table]
    if limit is not None and len(found.cells) > limit:
        parts.append(Text(f"... and {len(found.cells) - limit} more (--all shows them)"))
    parts.append(Text(f"{found.name}: {counts_text(shown_cells(found.cells))}", style="bold"))
    if found.search is not None:
        from gsq.sweeps.state.study import describe

        parts += map(Text, describe(found.search))
    blocked = {c.reason for c in found.cells if c.blocked}
    for reason, count in found.reasons.items():
        parts.append(Text(waiting_text(reason, count), style="red" if reason in blocked else "yellow"))
    parts += _ends(found)
    if found.not_submitted:
        parts.append(_not_submitted(found))
    return Group(*parts)


def _ends(found: SweepStatus) -> list[Text]:
    """Show what failed and why, what was stopped, and the commands that help."""
    lines = []
    failures = {failure: count for failure, count in found.failures.items() if failure != CANCELLED}
    for failure, count in failures.items():
        why = next((c.message for c in found.cells if c.failure == failure and c.message), "no message")
        lines.append(Text(f"{count} failed as {failure}: {why}", style="red"))
    if failures:
        lines.append(Text(failed_advice(found.name, failures)))
    if stopped := found.failures.get(CANCELLED):
        lines.append(
            Text(f"{stopped} {STOPPED}: gsq submit or gsq retry {found.name} resumes from the last checkpoint")
        )
    return lines


def _not_submitted(found: SweepStatus, most: int = 8) -> Text:
    count = len(found.not_submitted)
    named = ", ".join(map(brief, list(found.not_submitted.values())[:most]))
    more = f" and {count - most} more" if count > most else ""
    text = f"{counted(count, 'cell')} of {found.source} {'is' if count == 1 else 'are'} not submitted: {named}{more}; "
    return Text(f"{text}gsq submit {found.source}", style="yellow")


def overview_renderable(found: Sequence[SweepLine]) -> Group:
    """Return a line for each sweep, then the running cells."""
    table = plain_table("sweep", "submitted", "cells", no_wrap=("submitted",))
    for line in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.submitted))
        said = Text(line.problem, style="red") if line.problem else Text(counts_text(spelled(line.counts)))
        table.add_row(escape(line.name), when, said)
    running = [(line.name, cell) for line in found for cell in line.running]
    cells = plain_table("running", "cell", "step", "time left", right=("step", "time left"))
    for name, cell in running:
        left = duration(cell.seconds_left)
        cells.add_row(f"{name} {cell.signature}", brief(cell.title), f"{cell.step}/{cell.steps}", left)
    hint = "gsq status SWEEP shows its cells, gsq logs SWEEP SIGNATURE shows a cell's log"
    return Group(table, cells if running else Text("no cell is running", style="dim"), Text(hint, style="dim"))
