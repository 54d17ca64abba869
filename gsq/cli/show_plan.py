"""Plans, forecasts and canaries as gsq prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gsq.config.presets import paper_parameters
from gsq.sweeps.costing.forecast import Forecast
from gsq.sweeps.planning.cells import Plan, derived, title
from gsq.words import counted

if TYPE_CHECKING:
    from gsq.sweeps.running.canary import Result

from gsq.cli.tables import SPARE, fitting_table, head_of
from gsq.cli.wording import brief, compact, device_time, duration, end_time, millions, plain_value, size


def _plan_columns(plan: Plan, found: Forecast) -> dict[str, list[str]]:
    """Head to values, a value a cell: axes, derived quantities, cost."""
    axes = list(dict.fromkeys(name for cell in plan.cells for name in cell.axes))
    paper = {cell.signature: paper_parameters(cell.config) for cell in plan.cells}
    columns = {"signature": [cell.signature for cell in plan.cells]}
    columns |= {head_of(name): [plain_value(c.axes.get(name, "")) for c in plan.cells] for name in axes}
    columns[head_of("bits_per_pixel")] = [f"{derived(c.config)['bits_per_pixel']:.3g}" for c in plan.cells]
    if any(paper.values()):
        columns[head_of("parameters")] = [millions(c.cost.parameters) for c in plan.cells]
        columns["param. in paper"] = [millions(paper[c.signature]) for c in plan.cells]
    else:
        columns[head_of("parameters")] = [compact(c.cost.parameters) for c in plan.cells]
    columns["train FLOPs"] = [compact(c.cost.train_flops) for c in plan.cells]
    columns["images"] = [compact(c.cost.images) for c in plan.cells]
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


def print_forecast(console: Console, found: Forecast) -> None:
    """What is still to be run and what it takes, against the budget and the disk; and how good such numbers are."""
    left = len(found.left)
    lines = [f"[bold]{counted(found.cells, 'cell')}[/bold], {found.finished} already done, {left} to run"]
    if left:
        clock = end_time(found.end, found.wall_seconds)
        lines[0] += f": {device_time(found.device_seconds, found.speed.device)}"
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
