"""What the commands show: the live view of a running sweep, plan and status tables. Needs rich."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gsq.presets import paper_parameters
from gsq.record import RunRecord, runs_root
from sweeps.cost import Speed, estimate, speed
from sweeps.folder import SweepFolder
from sweeps.forecasting import Forecast
from sweeps.monitoring import CellStatus, SweepStatus, row
from sweeps.planning import Plan, derived, title
from sweeps.space import OBJECTIVES

if TYPE_CHECKING:
    from sweeps.canary import Result
    from sweeps.reconcile import Action
    from sweeps.studies import SearchStatus

STYLES = {"done": "green", "running": "cyan", "failed": "red", "queued": "yellow", "planned": "dim", "pruned": "dim"}
# Without a terminal, a line of progress every so many seconds.
LINE_SECONDS = 20.0
# How often the time left is estimated from new measurements.
SPEED_SECONDS = 10.0


def duration(seconds: float | None) -> str:
    """``2 h 05 min``, ``3 min 20 s``, ``12 s``."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def size(count: float, unit: str = "B", base: int = 1000) -> str:
    """``1.2 GB``, ``340 kFLOPs``."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(count) < base:
            return f"{count:.3g} {prefix}{unit}"
        count /= base
    return f"{count:.3g} Z{unit}"


# The paper's letters, as in the figures.
SYMBOLS = {"downsample": "f", "latent_dim": "D", "groups": "G", "codebook_size": "V"}


def brief(cell: str) -> str:
    """A cell's title in the paper's letters: ``f=4 D=16 G=1 V=1024``."""
    words = [word.split("=", 1) for word in cell.split(" ")]
    return " ".join("=".join([SYMBOLS.get(word[0], word[0]), *word[1:]]) for word in words)


def _counts(states: Iterable[str]) -> str:
    counted = Counter(states)
    order = ("queued", "planned", "running", "done", "failed", "pruned")
    # To a user a cell that waits for a worker is queued, whether a scheduler knows it or not.
    counted["queued"] += counted.pop("planned", 0)
    return ", ".join(f"{counted[s]} {s}" for s in order if s in ("queued", "running", "done", "failed") or counted[s])


class LiveView:
    """Shows a running sweep: counts, a line for each running cell, total time left.

    On a terminal it is drawn in place; elsewhere a line is printed for each cell that ends, and one in between.
    """

    def __init__(self, plan: Plan, slots: int, device: str, console: Console | None = None) -> None:
        self.cells = {cell.signature: cell for cell in plan.cells}
        self.name, self.slots, self.device = plan.name, max(1, slots), device
        # Trials that a search has yet to end; their cells come while it runs.
        self.expected = _trials_left(plan)
        self.console = console or Console()
        self.live = (
            Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        )
        self.states: dict[str, str] = {}
        self.printed = time.monotonic()
        self.speed: Speed | None = None
        self.speed_read = 0.0

    def __enter__(self) -> LiveView:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def update(self, actions: Sequence[Action], records: dict[str, RunRecord]) -> None:
        """Called with what reconcile says of every cell and what the run folders hold."""
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
            self._line(f"{_counts(r.state for r in rows)}; about {duration(left)} left; {running}")

    def _line(self, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False, soft_wrap=True)

    def _announce(self, rows: Sequence[CellStatus], resumed: set[str]) -> None:
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
        counts = Text(_counts(r.state for r in rows))
        body = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("running", "step", "images/s", "time left"):
            body.add_column(name, justify="left" if name == "running" else "right")
        for r in rows:
            if r.state == "running":
                rate = f"{r.images_per_second:.0f}" if r.images_per_second else "-"
                body.add_row(brief(r.title), f"{r.step}/{r.steps}", rate, duration(r.seconds_left))
        hint = Text("Ctrl-C stops cleanly; the same command goes on from there", style="dim")
        return Group(head, counts, body, hint)


def _trials_left(plan: Plan) -> int:
    if plan.search is None or plan.search.search is None:
        return 0
    from sweeps.studies import search_status

    found = search_status(SweepFolder(runs_root(), plan.name))
    ended = sum(trial.state != "running" for trial in found.trials) if found else 0
    return max(0, plan.search.search.trials - ended)


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _compact(count: float | None) -> str:
    return "-" if count is None else size(count).rstrip("B").replace(" ", "")


def _millions(count: float | None) -> str:
    """With the digits that the paper prints."""
    return "-" if count is None else f"{count / 1e6:.2f}M"


# Heads on two lines keep a row within 80 columns.
HEADS = {"downsample": "down- sample", "codebook_size": "code- book", "latent_dim": "latent dim"}
# What is left out first where a terminal is narrow.
SPARE = ("images", "train FLOPs", "memory", "param. in paper")


def _head(axis: str) -> str:
    return HEADS.get(axis, axis.split(".")[-1].replace("_", " "))


def plan_table(plan: Plan, found: Forecast, without: Sequence[str] = ()) -> Table:
    """A row a cell: axes, derived quantities, cost. ``without``: heads of SPARE to leave out."""
    axes = list(dict.fromkeys(name for cell in plan.cells for name in cell.axes))
    paper = {cell.signature: paper_parameters(cell.config) for cell in plan.cells}
    columns: dict[str, list[str]] = {_head(name): [_plain(c.axes.get(name, "")) for c in plan.cells] for name in axes}
    columns["bits/ pixel"] = [f"{derived(c.config)['bits_per_pixel']:.3g}" for c in plan.cells]
    if any(paper.values()):
        columns["param- eters"] = [_millions(c.cost.parameters) for c in plan.cells]
        columns["param. in paper"] = [_millions(paper[c.signature]) for c in plan.cells]
    else:
        columns["param- eters"] = [_compact(c.cost.parameters) for c in plan.cells]
    columns["train FLOPs"] = [_compact(c.cost.train_flops) for c in plan.cells]
    columns["images"] = [_compact(c.cost.images) for c in plan.cells]
    wanted = [found.estimates[c.signature] for c in plan.cells]
    columns["time"] = [duration(w.seconds).replace(" min", "m").replace(" s", "s") for w in wanted]
    columns["memory"] = [size(w.memory_bytes).replace(" ", "") for w in wanted]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("signature", no_wrap=True, vertical="bottom")
    kept = {head: values for head, values in columns.items() if head not in without}
    for head, values in kept.items():
        # Heads break between words, values not at all.
        width = max(map(len, (*head.split(), *values)))
        table.add_column(head, justify="right", vertical="bottom", min_width=width, max_width=width)
    for cell, row_values in zip(plan.cells, zip(*kept.values(), strict=True), strict=True):
        table.add_row(f"[dim]{cell.signature}[/dim]", *row_values)
    return table


def _fitting_table(console: Console, plan: Plan, found: Forecast) -> Table:
    for count in range(len(SPARE) + 1):
        table = plan_table(plan, found, SPARE[:count])
        if console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width:
            break
    return table


def print_plan(console: Console, plan: Plan, found: Forecast, limit: int | None = 60) -> None:
    """Cells, what was left out and why, duplicates, totals against the budget."""
    shown = plan if limit is None else plan.cut(limit)
    console.print(_fitting_table(console, shown, found))
    if len(shown.cells) < len(plan.cells):
        console.print(f"... and {len(plan.cells) - len(shown.cells)} more (--all shows them)")
    for constraint, count in Counter(text for _, text in plan.dropped).items():
        console.print(f"left out {count} by where: [bold]{escape(constraint)}[/bold]")
        left_out = [title(axes) for axes, text in plan.dropped if text == constraint]
        for line in left_out if limit is None else left_out[:4]:
            console.print(f"  {escape(line)}", style="dim", highlight=False)
        if limit is not None and count > 4:
            console.print(f"  ... and {count - 4} more (--all shows them)", style="dim")
    for axes, signature in plan.merged:
        console.print(f"merged: {escape(title(axes))} is the same run as {signature}")
    for name in plan.broken_images[:10]:
        console.print(f"[yellow]broken image left out:[/yellow] {escape(name)}")
    if len(plan.broken_images) > 10:
        console.print(f"[yellow]... and {len(plan.broken_images) - 10} more broken images[/yellow]")
    print_forecast(console, found)


def _device_time(seconds: float, device: str) -> str:
    """``2 h 05 min of cpu time``, ``1,861 A100 hours``."""
    return f"{seconds / 3600:,.0f} {device} hours" if seconds >= 86400 else f"{duration(seconds)} of {device} time"


def print_forecast(console: Console, found: Forecast) -> None:
    """What is still to be run and what it takes, against the budget and the disk; and how good such numbers are."""
    left = len(found.left)
    lines = [f"[bold]{found.cells} cells[/bold], {found.finished} already done, {left} to run"]
    if left:
        # A week ahead, the minute says nothing.
        clock = time.strftime("%H:%M" if found.wall_seconds < 43200 else "%a %d %b, %H:%M", time.localtime(found.end))
        lines[0] += f": {_device_time(found.device_seconds, found.speed.device)}"
        lines += [
            f"with {found.parallel} at a time {duration(found.wall_seconds)}, until about {clock}",
            f"memory: {size(found.memory_bytes)} for the largest; "
            f"{found.classes} resource class{'es' * (found.classes != 1)}",
            f"disk: {size(found.disk_bytes)} while running, {size(found.disk_bytes_after)} after; "
            f"{size(found.free_bytes)} free",
        ]
        over = found.over()
        limits = [
            f"[{'red' if name in over else 'default'}]{name} {needed:.3g} of {limit:g}[/]"
            for name, (needed, limit) in found.spent.items()
        ]
        lines += [f"budget: {', '.join(limits)}"] * bool(limits)
        lines.append(f"time: {found.speed.basis}")
    if found.accuracy:
        a = found.accuracy
        lines.append(
            f"past estimates: median error x{a.median_factor:.2f}, 90 % within x{a.ninety_percent_factor:.2f} over "
            f"{a.cells} finished cell{'s' * (a.cells != 1)}"
        )
    for line in (*lines, *map(escape, found.notes)):
        console.print(line, highlight=False, soft_wrap=True)
    if found.disk_bytes > found.free_bytes:
        console.print(
            f"[yellow]the disk of the runs folder has {size(found.free_bytes)} free, and up to "
            f"{size(found.disk_bytes)} will be written: make room (gsq clean --dry-run), or set $GSQ_RUNS[/yellow]",
            highlight=False,
        )


def print_missing(console: Console, plan: Plan) -> None:
    """What must be on this machine before the plan can be submitted."""
    for text in plan.missing:
        console.print(f"[yellow]missing:[/yellow] {escape(text)}", highlight=False, soft_wrap=True)
    if plan.missing:
        console.print(
            "gsq submit and gsq run refuse the sweep until that is there"
            + ("; signatures will be others then" if plan.provisional else ""),
            highlight=False,
            soft_wrap=True,
        )


def print_canaries(console: Console, results: Sequence[Result], found: Forecast) -> None:
    """What was expected -> what the canaries measured. found: the forecast after them."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for head in ("canary", "for cells", "s/step", "memory", "cell takes"):
        table.add_column(head, justify="left" if head == "canary" else "right")
    for result in results:
        canary, record = result.canary, result.record
        now = found.estimates[canary.cell.signature]
        seconds, memory = record.step_seconds, record.peak_memory_bytes
        table.add_row(
            escape(brief(canary.cell.title)),
            str(canary.members),
            f"{canary.step_seconds:.3g} -> {seconds:.3g}" if seconds is not None else "-",
            f"{size(canary.expected.memory_bytes)} -> {size(memory)}" if memory else "-",
            "-" if result.failed else f"{duration(canary.expected.seconds)} -> {duration(now.seconds)}",
        )
    console.print(table)
    for result in results:
        if result.advice:
            style = "red" if result.failed else "yellow"
            text = f"{brief(result.canary.cell.title)} {result.advice}"
            console.print(Text(text, style=style), soft_wrap=True)


def print_search(console: Console, plan: Plan, found: Forecast) -> None:
    """The space of a search, and what its trials will cost, from draws of the space."""
    assert plan.search is not None and plan.search.search is not None
    search = plan.search.search
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("parameter", "values"):
        table.add_column(name, overflow="fold")
    for name, words in search.domains().items():
        table.add_row(name, words)
    console.print(table)
    goals = ", ".join(f"{way} {name}" for name, way in zip(search.objectives, search.directions, strict=True))
    pruned = f"; pruned by {search.pruner}" if search.pruner != "none" else ""
    console.print(f"{goals}, by {search.sampler}{pruned}", highlight=False)
    for constraint, count in Counter(text for _, text in plan.dropped).items():
        share = count / (count + len(plan.cells))
        console.print(f"draws are repeated where (about {share:.0%}): [bold]{escape(constraint)}[/bold]")
    each = [found.estimates[cell.signature].seconds for cell in plan.cells]
    console.print(
        f"a trial takes {duration(min(each))} to {duration(max(each))}, in the middle of the space "
        f"{duration(each[0])}; if none is pruned:",
        highlight=False,
    )
    print_forecast(console, found)


def trial_table(found: SearchStatus, limit: int = 20) -> Table:
    """The trials of a search, the best first."""
    names = list(dict.fromkeys(name for trial in found.trials for name in trial.axes))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("trial", *map(_head, names), *found.objectives, "state"):
        table.add_column(name, justify="left" if name == "state" else "right", overflow="fold", vertical="bottom")
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
    """Counts, a row a cell, failures by class with the line that says why."""
    cells = found.cells[:limit]
    # Columns that say nothing are left out, so that a row fits a terminal.
    extra = {
        "rFID": any(c.rfid is not None for c in cells),
        "images/s": any(c.images_per_second for c in cells),
        "left": any(c.seconds_left is not None for c in cells),
        "attempt": any(c.attempts > 1 for c in cells),
        "trial": any(c.trials for c in cells),
        "node": len({c.node for c in cells}) > 1,
        "job": any(c.job for c in cells),
    }
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("signature", "cell", "state", "step", *(name for name, shown in extra.items() if shown)):
        right = name in ("step", "rFID", "images/s", "left", "attempt", "trial")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "signature")
    for c in cells:
        values = {
            "rFID": f"{c.rfid:.4g}" if c.rfid is not None else "",
            "images/s": f"{c.images_per_second:.0f}" if c.images_per_second else "",
            "left": duration(c.seconds_left) if c.seconds_left is not None else "",
            "attempt": str(c.attempts),
            "trial": ", ".join(map(str, c.trials)),
            "node": c.node,
            "job": c.job,
        }
        state = Text(f"failed ({c.failure})" if c.failure else c.state, style=STYLES[c.state])
        shown = [text for name, text in values.items() if extra[name]]
        table.add_row(c.signature, brief(c.title), state, f"{c.step}/{c.steps}", *shown)
    parts: list[Table | Text] = [table]
    if limit is not None and len(found.cells) > limit:
        parts.append(Text(f"... and {len(found.cells) - limit} more (--all shows them)"))
    parts.append(Text(f"{found.name}: {_counts(c.state for c in found.cells)}", style="bold"))
    if found.search is not None:
        from sweeps.studies import describe

        parts += map(Text, describe(found.search))
    for failure, count in found.failures.items():
        reason = next((c.message for c in found.cells if c.failure == failure and c.message), "no message")
        parts.append(Text(f"{count} failed as {failure}: {reason}", style="red"))
    return Group(*parts)
