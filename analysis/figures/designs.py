"""Figures of designs: what is expected against what it costs, and a replay against random orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gsq.analysis.designing.proposal import Design
from gsq.analysis.designing.replay import Replay
from gsq.analysis.figures.style import COLOURS, DARK, GREY, round_ticks, save, style

PERCENT = FuncFormatter(lambda v, _: f"{100 * v:.3g} %")
_FLOOR = 0.002  # of the errors that a figure shows; the last is zero


def design_figure(design: Design, path: str | Path | None = None) -> Figure:
    """Expected value of the target against the cost so far; further seeds hollow.

    ``path``: where given, PNG (150 dpi) and SVG are saved beside each other under its stem.
    """
    costs, values = (np.array(one) for one in design.curve)
    shown = np.array([design.as_shown(value) for value in values])
    if design.open_before:  # what is undetermined has no width
        shown[0] = np.nan
    again = np.array([False, *(one.runs_before > 0 for one in design.proposals)])
    with style():
        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.step(costs, shown, where="post", color=COLOURS[0], linewidth=1.0, alpha=0.6)
        axes.plot(costs[~again], shown[~again], "o", color=COLOURS[0], label="a new cell")
        if again.any():
            axes.plot(
                costs[again], shown[again], "o", color=COLOURS[0], markerfacecolor="white", label="a further seed"
            )
            axes.legend(loc="upper right")
        if design.until is not None:
            axes.axhline(design.until, color=GREY, linewidth=0.9, linestyle="--")
            axes.annotate("wanted", (1, design.until), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                          color=GREY, fontsize=8)  # fmt: skip
        axes.set_xlabel(f"cost ({design.unit})")
        axes.set_ylabel(design.value_name)
        relative = design.relative or design.target.kind == "discriminate"
        _plain_log(axes, [*shown, *([design.until] if design.until else [])], percent=relative)
        axes.set_xlim(left=min(0.0, -0.02 * costs[-1]))
        axes.set_title(_title(design), loc="left", fontsize=9)
        return save(figure, path)


def _title(design: Design) -> str:
    text = (
        f"Expected for {design.target.text}" if design.target.kind != "discriminate" else "Expected: which law is right"
    )
    at = text.find(" at ")
    return text if at < 0 or len(text) < 60 else text[:at] + "\n" + text[at + 1 :]


def replay_figure(replays: Replay | Sequence[Replay], path: str | Path | None = None, cost: str = "cost") -> Figure:
    """Largest deviation from the fit to all rows against the cost after the start (``cost``: its name): the designed
    order over the median and the middle 90 % of random orders. A panel for each replay.

    ``path``: as for :func:`design_figure`.
    """
    replays = [replays] if isinstance(replays, Replay) else list(replays)
    with style():
        size = (max(5.2, 4.4 * len(replays)), 4.0)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.08))
        panels = figure.subplots(1, len(replays), squeeze=False, sharey=True)[0]
        for one, axes in zip(replays, panels, strict=True):
            _draw_replay(one, axes)
            axes.set_xlabel(f"{cost} after the start, share of that of all rows")
        panels[0].set_ylabel("largest deviation of a prediction\nfrom the fit to all rows")
        panels[0].set_yscale("log")
        top = max(max(one.error[0], np.quantile(one.random_error, 0.95)) for one in replays)
        panels[0].set_ylim(_FLOOR, 1.3 * top)
        panels[0].yaxis.set_major_locator(FixedLocator([_FLOOR, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]))
        panels[0].yaxis.set_minor_locator(NullLocator())
        panels[0].yaxis.set_major_formatter(PERCENT)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return save(figure, path)


def _draw_replay(one: Replay, axes: Axes) -> None:
    whole = one.cost[-1]
    grid = np.linspace(0, whole, 300)
    at = np.stack([
        error[np.searchsorted(cost, grid * (1 + 1e-9), side="right") - 1]
        for cost, error in zip(one.random_cost, one.random_error, strict=True)
    ])  # fmt: skip
    low, middle, high = (np.maximum(q, _FLOOR / 10) for q in np.quantile(at, [0.05, 0.5, 0.95], axis=0))
    share = grid / whole
    axes.fill_between(share, low, high, color=GREY, alpha=0.2, linewidth=0, label="middle 90 % of random orders")
    axes.plot(share, middle, color=GREY, linewidth=1.2, label=f"median of {len(one.random_cost)} random orders")
    error = np.maximum(one.error, _FLOOR / 10)
    axes.step(one.cost / whole, error, where="post", color=COLOURS[0], label="designed order")
    axes.axhline(one.tolerance, color="black", linewidth=0.8, linestyle="--")
    mine, other = one.reached(), float(np.median(one.random_reached()))
    for cost, colour in ((mine, COLOURS[0]), (other, DARK)):
        axes.plot(cost / whole, one.tolerance, "v", color=colour, markersize=7, zorder=4)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PERCENT)
    axes.set_title(
        f"{one.full.law.name}, {len(one.full.parameters)} parameters: within {one.tolerance:.0%} for good\n"
        f"(triangles) at {one.ratio():.2f} of the median random order's cost",
        loc="left",
        fontsize=9,
    )


def _plain_log(axes: Axes, values: list[float], *, percent: bool) -> None:
    """A logarithmic axis with round numbers where the values span a factor of two, else a linear one."""
    axis = axes.yaxis
    good = [value for value in values if np.isfinite(value) and value > 0]
    if good and max(good) > 2 * min(good):
        axes.set_yscale("log")
        axis.set_major_locator(FixedLocator(list(round_ticks(min(good) / 1.1, max(good) * 1.1))))
        axis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.08 * max(good, default=1.0))
    axis.set_major_formatter(PERCENT if percent else FuncFormatter(lambda v, _: f"{v:g}"))
