"""Print plans, forecasts and canaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from gsq.config.presets import paper_parameters
from gsq.sweeps.costing.forecast import Forecast
from gsq.sweeps.planning.cells import Plan, derived, title
from gsq.words import counted, span

if TYPE_CHECKING:
    from gsq.sweeps.running.canary import Result

from gsq.cli.options import line
from gsq.cli.show_derived import derived_words
from gsq.cli.tables import SPARE, fitting_table, head_of, plain_table
from gsq.cli.wording import brief, compact, device_time, duration, end_time, millions, plain_value, size


def _plan_columns(plan: Plan, found: Forecast) -> dict[str, list[str]]:
    """Values of all cells by head: axes, derived quantities, cost."""
    axes = list(dict.fromkeys(name for cell in plan.cells for name in cell.axes))
    paper = {cell.signature: paper_parameters(cell.config) for cell in plan.cells}
    columns = {"signature": [cell.signature for cell in plan.cells]}
    columns |= {head_of(name): [plain_value(c.axes.get(name, "")) for c in plan.cells] for name in axes}
    columns |= _derived_columns(plan)
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


def _derived_columns(plan: Plan) -> dict[str, list[str]]:
    """Bits per pixel, or of a program of a user's own what its sweep derives by formula."""
    found = [derived(cell.config) for cell in plan.cells]
    names = [n for n in found[0] if n != "parameters"] if plan.cells[0].config.program else ["bits_per_pixel"]
    return {head_of(name): [f"{values[name]:.3g}" for values in found] for name in names}


def print_plan(console: Console, plan: Plan, found: Forecast, limit: int | None = 60) -> None:
    """Print the cells, those left out and why, duplicates, and totals against the budget."""
    shown = plan if limit is None else plan.cut(limit)
    console.print(fitting_table(console, _plan_columns(shown, found), SPARE, left=("signature",)), highlight=False)
    if len(shown.cells) < len(plan.cells):
        console.print(f"... and {len(plan.cells) - len(shown.cells)} more (--all shows them)")
    for constraint, count in Counter(text for _, text in plan.dropped).items():
        console.print(f"left out {count} by where: [bold]{escape(constraint)}[/bold]")
        left_out = [title(axes) for axes, text in plan.dropped if text == constraint]
        for text in left_out if limit is None else left_out[:4]:
            line(console, f"  {escape(text)}", "dim")
        if limit is not None and count > 4:
            console.print(f"  ... and {count - 4} more (--all shows them)", style="dim")
    for axes, signature in plan.merged:
        console.print(f"merged: {escape(title(axes))} is the same run as {signature}")
    for words in derived_words(plan):
        line(console, escape(words))
    print_data(console, plan)
    print_forecast(console, found)


def print_data(console: Console, plan: Plan) -> None:
    """Print which files were left out of the images, and other remarks on the data."""
    for data in plan.data:
        for text in data.remarks():
            line(console, f"[yellow]{escape(text)}[/yellow]")


def print_forecast(console: Console, found: Forecast) -> None:
    """Print what is still to run and its cost, against budget and disk, and the accuracy of past estimates."""
    left = len(found.left)
    lines = [f"[bold]{counted(found.cells, 'cell')}[/bold], {found.finished} already done, {left} to run"]
    if left:
        clock = end_time(found.end, found.wall_seconds)
        lines[0] += f": {device_time(found.device_seconds, found.speed.device)}"
        lines += [
            f"with {found.parallel} at a time {duration(found.wall_seconds)}, until about {clock}",
            *([f"jobs train up to {found.cells_in_turn} cells in turn"] if found.cells_in_turn > 1 else []),
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
    for text in (*lines, *map(escape, found.notes)):
        line(console, text)
    if found.disk_bytes > found.free_bytes:
        need, free = size(found.disk_bytes), size(found.free_bytes)
        text = f"the runs need up to {need}, but the disk of the runs folder has {free} free"
        line(console, f"[yellow]{text}: free some space (gsq clean --dry-run), or set $GSQ_RUNS[/yellow]")


def print_missing(console: Console, plan: Plan) -> None:
    """Print what this machine lacks for a submission."""
    for text in plan.missing:
        line(console, f"[yellow]missing:[/yellow] {escape(text)}")
    if plan.missing:
        change = "; it will change the signatures" if plan.provisional else ""
        line(console, f"gsq submit and gsq run refuse the sweep until this is present{change}")


def print_canaries(console: Console, results: Sequence[Result], found: Forecast) -> None:
    """Print expected -> measured values of the canaries. found: the forecast after them."""
    heads = ("for cells", "s/step", "memory", "cell takes")
    table = plain_table("canary", *heads, right=heads, gap=1)
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
            advice = escape(f"{brief(result.canary.cell.title)} {result.advice}")
            line(console, advice, "red" if result.failed else "yellow")


def print_search(console: Console, plan: Plan, found: Forecast) -> None:
    """Print the space of a search, and the cost of its trials, estimated from draws."""
    assert plan.search is not None and plan.search.search is not None
    search = plan.search.search
    table = plain_table("parameter", "values")
    for name, words in search.domains().items():
        table.add_row(name, words)
    console.print(table)
    for words in derived_words(plan):
        line(console, escape(words))
    goals = ", ".join(f"{way} {name}" for name, way in zip(search.objectives, search.directions, strict=True))
    pruned = f"; pruned by {search.pruner}" if search.pruner != "none" else ""
    line(console, f"{goals}, by {search.sampler}{pruned}")
    for constraint, count in Counter(text for _, text in plan.dropped).items():
        share = count / (count + len(plan.cells))
        line(console, f"repeated draws (about {share:.0%}), excluded by: [bold]{escape(constraint)}[/bold]")
    each = [found.estimates[cell.signature].seconds for cell in plan.cells]
    print_data(console, plan)
    takes = span(duration(min(each)), duration(max(each)))
    line(console, f"a trial takes {takes}, in the middle of the space {duration(each[0])}; if none is pruned:")
    print_forecast(console, found)
