"""Print a fit: the law with its numbers, an interval for each parameter, and what limits it."""

from __future__ import annotations

from collections.abc import Sequence

from gsq import analysis


def print_fit(one: analysis.Fit, derived: Sequence[analysis.Derived] = ()) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from gsq.analysis.fitting.result import interval_text

    console = Console(emoji=False)
    console.print(f"[bold]{escape(one.law.name)}[/bold]  {escape(one.formula())}", highlight=False)
    console.print(escape(one.at_best()), highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("parameter", "value", f"{one.confidence:.0%} interval", ""):
        table.add_column(name)
    for name, value in one.parameters.items():
        why = one.undetermined.get(name)
        note = f"not determined by these data ({why})" if why else ""
        table.add_row(escape(name), f"{value:.4g}", interval_text(one.intervals[name], " to "), escape(note))
    for more in derived:
        note = f"not determined by these data ({more.why_not})" if more.why_not else ""
        table.add_row(escape(more.name), f"{more.value:.4g}", interval_text(more.interval, " to "), note)
    console.print(table)
    console.print(one.quality(), highlight=False, style="dim")
    for warning in one.warnings:
        console.print(f"[yellow]Warning:[/yellow] {escape(warning)}.", highlight=False)
    console.print()
