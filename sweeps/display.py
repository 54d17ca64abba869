"""What the commands show: the live view of a running sweep, plan and status tables. Needs rich."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gsq.presets import paper_parameters
from gsq.record import RunRecord, runs_root
from gsq.words import counted
from sweeps.cost import Speed, estimate, speed
from sweeps.folder import SweepFolder
from sweeps.forecasting import Forecast
from sweeps.monitoring import CellStatus, SweepStatus, row, waiting_reasons
from sweeps.planning import Plan, derived, title
from sweeps.reconcile import CANCELLED, RESUMED_ON_SUBMIT, STOPPED, shown_state
from sweeps.space import OBJECTIVES

if TYPE_CHECKING:
    from sweeps.canary import Result
    from sweeps.listing import SweepLine
    from sweeps.reconcile import Action
    from sweeps.studies import SearchStatus

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "stopped": "yellow",
    "queued": "yellow",
    "planned": "dim",
    "pruned": "dim",
}
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


def _shown(cells: Iterable[CellStatus]) -> Iterator[str]:
    return (shown_state(cell.state, cell.failure) for cell in cells)


def counts_text(states: Iterable[str]) -> str:
    """``0 queued, 1 running, 3 done, 0 failed, 2 stopped``."""
    found = Counter(states)
    order = ("queued", "running", "done", "failed", STOPPED, "pruned")
    # To a user a cell that waits for a worker is queued, whether a scheduler knows it or not.
    found["queued"] += found.pop("planned", 0)
    return ", ".join(f"{found[s]} {s}" for s in order if s in ("queued", "running", "done", "failed") or found[s])


def _waiting(reason: str, count: int) -> str:
    """``2 cells wait: Priority``, ``1 cell will not start: PartitionDown (the partition is down)``."""
    cells = counted(count, "cell")
    if reason.startswith("will not start"):
        return f"{cells} {reason}"
    return f"{cells}: {reason}" if reason.startswith("not known") else f"{cells} wait{'s' * (count == 1)}: {reason}"


class LiveView:
    """Shows a running sweep: counts, a line for each running cell, total time left.

    On a terminal it is drawn in place; elsewhere a line is printed for each cell that ends, and one in between.
    """

    def __init__(
        self, plan: Plan, slots: int, device: str, console: Console | None = None, stops_cells: bool = True
    ) -> None:
        """stops_cells: Ctrl-C stops the running cells, and is acknowledged at once, for that may take a minute."""
        self.cells = {cell.signature: cell for cell in plan.cells}
        self.name, self.slots, self.device = plan.name, max(1, slots), device
        # Trials that a search has yet to end; their cells come while it runs.
        self.expected = _trials_left(plan)
        self.console = console or Console()
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
        cells = f"{counted(running, 'running cell')} {'ends its' if running == 1 else 'end their'}" if running else ""
        self._line(
            f"stopping: {cells} step and {'writes' if running == 1 else 'write'} a checkpoint" if cells else "stopping"
        )
        raise KeyboardInterrupt

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
            waiting = "; ".join(_waiting(reason, count) for reason, count in waiting_reasons(rows).items())
            parts = [counts_text(_shown(rows)), waiting, f"about {duration(left)} left", running]
            self._line(escape("; ".join(part for part in parts if part)))

    def _line(self, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False, soft_wrap=True)

    def _announce(self, rows: Sequence[CellStatus], resumed: set[str]) -> None:
        blocked = waiting_reasons(r for r in rows if r.blocked)
        for reason in blocked.keys() - self.blocked:
            self._line(f"[red]{escape(_waiting(reason, blocked[reason]))}[/red]")
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
        counts = Text(counts_text(_shown(rows)))
        body = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("running", "step", "images/s", "time left"):
            body.add_column(name, justify="left" if name == "running" else "right")
        for r in rows:
            if r.state == "running":
                rate = f"{r.images_per_second:.0f}" if r.images_per_second else "-"
                body.add_row(brief(r.title), f"{r.step}/{r.steps}", rate, duration(r.seconds_left))
        waiting = [Text(_waiting(reason, n), style="yellow") for reason, n in waiting_reasons(rows).items()]
        hint = Text("Ctrl-C stops cleanly; the same command goes on from there", style="dim")
        return Group(head, counts, *waiting, body, hint)


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


# Where a table is wider than the terminal, its heads are broken at spaces, and then at these places too.
SOFT = "\u00ad"
HEADS = {
    "downsample": f"down{SOFT}sample",
    "codebook_size": f"code{SOFT}book",
    "latent_dim": "latent dim",
    "bits_per_pixel": f"bits/{SOFT}pixel",
    "parameters": f"param{SOFT}eters",
    "perplexity": f"perp{SOFT}lexity",
    "rfid": "rFID",
    "psnr_db": "PSNR dB",
    "device_seconds": "seconds",
}
# What is left out first where a terminal is narrow.
SPARE = ("images", "train FLOPs", "memory", "param. in paper")


def head_of(column: str) -> str:
    """The head of a column of a table, with the places where it may be broken."""
    return HEADS.get(column, column.split(".")[-1].replace("_", " "))


def _broken(head: str, how: int) -> list[str]:
    """A head in pieces: 0 whole, 1 in words, 2 in parts of words."""
    if how == 2:
        head = head.replace(f"/{SOFT}", "/ ").replace(SOFT, "- ")
    head = head.replace(SOFT, "")
    return head.split(" ") if how else [head]


def fitting_table(
    console: Console, columns: Mapping[str, Sequence[str]], spare: Sequence[str] = (), left: Sequence[str] = ()
) -> Table:
    """The columns, by heads as ``head_of`` gives them. Heads are broken and ``spare`` columns left out only as far as
    the width of the console demands, and values are broken only where even that is too wide.

    ``left``: columns that are aligned to the left.
    """
    for how, without in [(0, 0), (1, 0), *((2, count) for count in range(len(spare) + 1))]:
        kept = {head: values for head, values in columns.items() if head not in spare[:without]}
        table = _table(kept, how, left)
        if console.measure(table, options=console.options.update_width(10_000)).maximum <= console.width:
            return table
    return table if spare else _table(kept, 2, left, fold=True)


def _table(columns: Mapping[str, Sequence[str]], how: int, left: Sequence[str], fold: bool = False) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for head, values in columns.items():
        pieces = _broken(head, how)
        least, width = max(map(len, pieces)), max(map(len, (*pieces, *values)))
        justify: Literal["left", "right"] = "left" if head in left else "right"
        table.add_column(
            escape("\n".join(pieces)),
            justify=justify,
            vertical="bottom",
            overflow="fold",
            min_width=least if fold else width,
            max_width=width,
        )
    for row_values in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, row_values))
    return table


def _plan_columns(plan: Plan, found: Forecast) -> dict[str, list[str]]:
    """Head to values, a value a cell: axes, derived quantities, cost."""
    axes = list(dict.fromkeys(name for cell in plan.cells for name in cell.axes))
    paper = {cell.signature: paper_parameters(cell.config) for cell in plan.cells}
    columns = {"signature": [cell.signature for cell in plan.cells]}
    columns |= {head_of(name): [_plain(c.axes.get(name, "")) for c in plan.cells] for name in axes}
    columns[head_of("bits_per_pixel")] = [f"{derived(c.config)['bits_per_pixel']:.3g}" for c in plan.cells]
    if any(paper.values()):
        columns[head_of("parameters")] = [_millions(c.cost.parameters) for c in plan.cells]
        columns["param. in paper"] = [_millions(paper[c.signature]) for c in plan.cells]
    else:
        columns[head_of("parameters")] = [_compact(c.cost.parameters) for c in plan.cells]
    columns["train FLOPs"] = [_compact(c.cost.train_flops) for c in plan.cells]
    columns["images"] = [_compact(c.cost.images) for c in plan.cells]
    wanted = [found.estimates[c.signature] for c in plan.cells]
    columns["time"] = [duration(w.seconds).replace(" min", "m").replace(" s", "s") for w in wanted]
    columns["memory"] = [size(w.memory_bytes).replace(" ", "") for w in wanted]
    return columns


def print_plan(console: Console, plan: Plan, found: Forecast, limit: int | None = 60) -> None:
    """Cells, what was left out and why, duplicates, totals against the budget."""
    shown = plan if limit is None else plan.cut(limit)
    console.print(fitting_table(console, _plan_columns(shown, found), SPARE, left=("signature",)), highlight=False)
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
    print_data(console, plan)
    print_forecast(console, found)


def print_data(console: Console, plan: Plan) -> None:
    """Files that were left out of the images, and what else should be known of the data."""
    for data in plan.data:
        for line in data.remarks():
            console.print(f"[yellow]{escape(line)}[/yellow]", highlight=False, soft_wrap=True)


def _device_time(seconds: float, device: str) -> str:
    """``2 h 05 min of cpu time``, ``1,861 A100 hours``."""
    return f"{seconds / 3600:,.0f} {device} hours" if seconds >= 86400 else f"{duration(seconds)} of {device} time"


def end_time(end: float, seconds: float) -> str:
    """When something ends that takes so many seconds from now: ``17:05``, ``Sat 05 Dec, 17:05``, and with the year
    where it is another one."""
    then, now = time.localtime(end), time.localtime(end - seconds)
    if then.tm_year != now.tm_year:
        return time.strftime("%a %d %b %Y, %H:%M", then)
    return time.strftime("%H:%M" if seconds < 43200 else "%a %d %b, %H:%M", then)


def print_forecast(console: Console, found: Forecast) -> None:
    """What is still to be run and what it takes, against the budget and the disk; and how good such numbers are."""
    left = len(found.left)
    lines = [f"[bold]{counted(found.cells, 'cell')}[/bold], {found.finished} already done, {left} to run"]
    if left:
        clock = end_time(found.end, found.wall_seconds)
        lines[0] += f": {_device_time(found.device_seconds, found.speed.device)}"
        lines += [
            f"with {found.parallel} at a time {duration(found.wall_seconds)}, until about {clock}",
            f"memory: {size(found.memory_bytes)} for the largest; "
            f"{counted(found.classes, 'resource class', 'resource classes')}",
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
            f"{counted(a.cells, 'finished cell')}"
        )
    for line in (*lines, *map(escape, found.notes)):
        console.print(line, highlight=False, soft_wrap=True)
    if found.disk_bytes > found.free_bytes:
        console.print(
            f"[yellow]the disk of the runs folder has {size(found.free_bytes)} free, and up to "
            f"{size(found.disk_bytes)} will be written: make room (gsq clean --dry-run), or set $GSQ_RUNS[/yellow]",
            highlight=False,
        )


def still_stopping(count: int, sweep: str) -> str:
    """What a submission says of cancelled cells whose jobs have not ended yet."""
    cells, are = counted(count, "cell"), "is" if count == 1 else "are"
    return (
        f"{cells} {are} still stopping after gsq cancel, and {are} not submitted yet; run the command again once gsq "
        f"status {sweep} shows {'them' if count != 1 else 'it'} as stopped"
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
    print_data(console, plan)
    low, high = duration(min(each)), duration(max(each))
    console.print(
        f"a trial takes {low if low == high else f'{low} to {high}'}, in the middle of the space "
        f"{duration(each[0])}; if none is pruned:",
        highlight=False,
    )
    print_forecast(console, found)


def trial_table(found: SearchStatus, limit: int = 20) -> Table:
    """The trials of a search, the best first."""
    names = list(dict.fromkeys(name for trial in found.trials for name in trial.axes))
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("trial", *map(head_of, names), *map(head_of, found.objectives), "state"):
        table.add_column(
            "\n".join(_broken(name, 1)),
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
    """Counts, a row a cell, failures by class with the line that says why."""
    cells = found.cells[:limit]
    # Columns that say nothing are left out, so that a row fits a terminal.
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
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("signature", "cell", "state", "step", *(name for name, shown in extra.items() if shown)):
        right = name in ("step", "rFID", "images/s", "left", "attempt", "restarts", "trial")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "signature")
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
    parts.append(Text(f"{found.name}: {counts_text(_shown(found.cells))}", style="bold"))
    if found.search is not None:
        from sweeps.studies import describe

        parts += map(Text, describe(found.search))
    blocked = {c.reason for c in found.cells if c.blocked}
    for reason, count in found.reasons.items():
        parts.append(Text(_waiting(reason, count), style="red" if reason in blocked else "yellow"))
    parts += _ends(found)
    if found.not_submitted:
        parts.append(_not_submitted(found))
    return Group(*parts)


def _ends(found: SweepStatus) -> list[Text]:
    """What failed and why, what was stopped, and the commands that help."""
    lines = []
    failures = {failure: count for failure, count in found.failures.items() if failure != CANCELLED}
    for failure, count in failures.items():
        why = next((c.message for c in found.cells if c.failure == failure and c.message), "no message")
        lines.append(Text(f"{count} failed as {failure}: {why}", style="red"))
    if failures:
        lines.append(Text(failed_advice(found.name, failures)))
    if stopped := found.failures.get(CANCELLED):
        goes_on = f"gsq retry {found.name} goes on from the last checkpoint, and so does gsq submit"
        lines.append(Text(f"{stopped} {STOPPED}: {goes_on}"))
    return lines


def failed_advice(sweep: str, failures: Iterable[str]) -> str:
    """The commands that help where cells of a sweep have failed as these classes."""
    again = all(failure in RESUMED_ON_SUBMIT for failure in failures)
    verb = "the next gsq submit takes them up again, and so does gsq retry" if again else "to try them again: gsq retry"
    return f"{verb} {sweep}; what a cell printed: gsq logs {sweep} SIGNATURE"


def _not_submitted(found: SweepStatus, most: int = 8) -> Text:
    count = len(found.not_submitted)
    named = ", ".join(map(brief, list(found.not_submitted.values())[:most]))
    more = f" and {count - most} more" if count > most else ""
    text = f"{counted(count, 'cell')} of {found.source} {'is' if count == 1 else 'are'} not submitted: {named}{more}; "
    return Text(f"{text}gsq submit {found.source}", style="yellow")


def overview_renderable(found: Sequence[SweepLine]) -> Group:
    """A line for each sweep, then the cells that run."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("sweep", "submitted", "cells"):
        table.add_column(name, overflow="fold", no_wrap=name == "submitted")
    for line in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(line.submitted))
        said = Text(line.problem, style="red") if line.problem else Text(counts_text(_spelled(line.counts)))
        table.add_row(escape(line.name), when, said)
    running = [(line.name, cell) for line in found for cell in line.running]
    cells = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("running", "cell", "step", "time left"):
        cells.add_column(name, overflow="fold", justify="left" if name in ("running", "cell") else "right")
    for name, cell in running:
        left = duration(cell.seconds_left)
        cells.add_row(f"{name} {cell.signature}", brief(cell.title), f"{cell.step}/{cell.steps}", left)
    parts: list[Table | Text] = [table, cells if running else Text("no cell runs", style="dim")]
    return Group(
        *parts, Text("gsq status SWEEP shows its cells, gsq logs SWEEP SIGNATURE what one prints", style="dim")
    )


def _spelled(counts: Mapping[str, int]) -> Iterator[str]:
    return (state for state, count in counts.items() for _ in range(count))
