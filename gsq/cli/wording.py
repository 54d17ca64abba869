"""Durations, sizes and counts as gsq prints them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from gsq.config.axes import SYMBOLS
from gsq.sweeps.spec.states import RESUMED_ON_SUBMIT
from gsq.sweeps.state.reconcile import STOPPED, shown_state
from gsq.sweeps.state.status import CellStatus
from gsq.words import counted


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


def brief(cell: str) -> str:
    """Shorten a cell's title with the paper's symbols: ``f=4 D=16 G=1 V=1024``."""
    words = [word.split("=", 1) for word in cell.split(" ")]
    return " ".join("=".join([SYMBOLS.get(word[0], word[0]), *word[1:]]) for word in words)


def shown_cells(cells: Iterable[CellStatus]) -> Iterator[str]:
    return (shown_state(cell.state, cell.failure) for cell in cells)


def counts_text(states: Iterable[str]) -> str:
    """``0 queued, 1 running, 3 done, 0 failed, 2 stopped``."""
    found = Counter(states)
    order = ("queued", "running", "done", "failed", STOPPED, "pruned")
    # Users see a cell that waits for a worker as queued, whether or not a scheduler knows it.
    found["queued"] += found.pop("planned", 0)
    return ", ".join(f"{found[s]} {s}" for s in order if s in ("queued", "running", "done", "failed") or found[s])


def waiting_text(reason: str, count: int) -> str:
    """``2 cells wait: Priority``, ``1 cell will not start: PartitionDown (the partition is down)``."""
    cells = counted(count, "cell")
    if reason.startswith("will not start"):
        return f"{cells} {reason}"
    return f"{cells}: {reason}" if reason.startswith("not known") else f"{cells} wait{'s' * (count == 1)}: {reason}"


def plain_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def compact(count: float | None) -> str:
    return "-" if count is None else size(count).rstrip("B").replace(" ", "")


def millions(count: float | None) -> str:
    """Format a count with as many digits as the paper."""
    return "-" if count is None else f"{count / 1e6:.2f}M"


def device_time(seconds: float, device: str) -> str:
    """``2 h 05 min of cpu time``, ``1,861 A100 hours``."""
    return f"{seconds / 3600:,.0f} {device} hours" if seconds >= 86400 else f"{duration(seconds)} of {device} time"


def end_time(end: float, seconds: float) -> str:
    """Format a time that lies ``seconds`` ahead: ``17:05`` or ``Sat 05 Dec, 17:05``, with the year if it is another."""
    then, now = time.localtime(end), time.localtime(end - seconds)
    if then.tm_year != now.tm_year:
        return time.strftime("%a %d %b %Y, %H:%M", then)
    return time.strftime("%H:%M" if seconds < 43200 else "%a %d %b, %H:%M", then)


def still_stopping(count: int, sweep: str) -> str:
    """Explain that cancelled cells were not submitted because their jobs have not ended yet."""
    cells, are = counted(count, "cell"), "is" if count == 1 else "are"
    them = "it" if count == 1 else "them"
    return (
        f"{cells} {are} still stopping after gsq cancel, and {are} not submitted yet; run the command again once gsq "
        f"status {sweep} shows {them} as stopped"
    )


def failed_advice(sweep: str, failures: Iterable[str]) -> str:
    """Name the commands that help with failed cells of these failure classes."""
    again = all(failure in RESUMED_ON_SUBMIT for failure in failures)
    verb = "the next gsq submit resumes them, and so does gsq retry" if again else "to retry them: gsq retry"
    return f"{verb} {sweep}; what a cell printed: gsq logs {sweep} SIGNATURE"


def spelled(counts: Mapping[str, int]) -> Iterator[str]:
    return (state for state, count in counts.items() for _ in range(count))
