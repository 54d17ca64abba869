"""The style file, colours and markers, readable ticks, legends and saving, which all figures share.

Figures do without pyplot, so that importing this room or saving a file changes no global state. A notebook with
%matplotlib inline shows the returned Figure.
"""

from __future__ import annotations

import textwrap
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from gsq.analysis.figures.settings import power_of_two, power_text, setting
from gsq.analysis.tables.table import Array, varying
from gsq.config.axes import POWERS, TOKENIZER
from gsq.files import whole

STYLE = Path(__file__).with_name("gsq.mplstyle")
# The colours of the style file.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#888888"
DARK = "#555555"
# Figures whose labels were placed, so that nothing in them moves any more.
_laid_out: weakref.WeakSet[Figure] = weakref.WeakSet()


def style() -> AbstractContextManager[None]:
    """Apply the style file within the context."""
    return mpl.rc_context(fname=STYLE)


def saved_files(path: str | Path) -> tuple[Path, ...]:
    """Files of a figure saved to ``path``: one PDF where it ends in .pdf, else a PNG (first) and an SVG."""
    path = Path(path)
    if path.suffix == ".pdf":
        return (path,)
    stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    return stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")


def save(figure: Figure, path: str | Path | None) -> Figure:
    """Write :func:`saved_files` (PNG at 150 dpi), each whole, unless ``path`` is None; folders are made. The same
    figure gives the same SVG and PDF. Returns the figure."""
    if path is None:
        return figure
    first, *others = saved_files(path)
    _save(figure, first, first.suffix[1:], 150)
    # Laid out once: the second file has the axes where the first has them.
    with _as_it_is(figure):
        for file in others:
            _save(figure, file, file.suffix[1:], 150)
    return figure


@contextmanager
def _as_it_is(figure: Figure) -> Iterator[None]:
    """Inside, drawing leaves the axes of a figure where its layout has put them."""
    layout = figure.get_layout_engine()
    if layout is None:
        yield
        return
    figure.set_layout_engine("none")
    try:
        _settle(figure)
        yield
    finally:
        figure.set_layout_engine(layout)


def _settle(figure: Figure) -> None:
    """Round where the axes are: the last digits of a layout differ between processes, and SVG names clip paths by
    them."""
    for axes in figure.axes:
        took_part = axes.get_in_layout()
        left, bottom, width, height = (round(float(value), 6) for value in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height), which="active")
        axes.set_in_layout(took_part)  # which setting a position ends


def save_picture(figure: Figure, path: str | Path | None) -> Figure:
    """Write one PNG (200 dpi) to ``path``, whole, unless it is None; folders are made. Returns the figure."""
    if path is not None:
        _save(figure, Path(path), "png", 200)
    return figure


def _save(figure: Figure, file: Path, kind: str, dpi: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file, sync=False) as partial, partial.open("wb") as out:
        write(figure, out, kind, dpi)


def write(figure: Figure, file: IO[bytes], kind: str, dpi: float | None = None) -> None:
    """Write svg, png or pdf; ``dpi``: the figure's own if absent. The file is that of ``savefig``, which draws a figure
    twice: once to lay it out, although drawing does that, and although it may be laid out already."""
    if kind == "pdf":
        figure.savefig(file, format=kind, dpi=dpi or "figure", metadata={"CreationDate": None})
        return
    canvas, own = figure.canvas, figure.dpi
    try:
        figure.dpi = dpi or own
        if kind == "svg":
            with _as_it_is(figure) if figure in _laid_out else nullcontext():
                FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
        else:
            FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]
    finally:
        figure.dpi = own
        figure.set_canvas(canvas)


def caption(figure: Figure, parts: Iterable[str], width: float) -> None:
    """Write small grey lines below a figure of ``width`` inches; a part that ends in a newline ends its line."""
    lines: list[str] = []
    for block in " ".join(part for part in parts if part).split("\n"):
        lines += textwrap.wrap(block, int(15 * width))
    figure.supxlabel("\n".join(lines), fontsize=7.5, color=DARK)


def brief(text: str, most: int) -> str:
    """``text``, cut to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def raster_where_many(axes: Axes, points: int) -> None:
    """Draw the inside of the axes as an image where it has more than 1,000 points, which would take megabytes in SVG
    and PDF. Text, ticks and legends stay vectors."""
    if points > 1000:
        axes.set_rasterization_zorder(4.5)


def log_axis(axis: Axis, limits: tuple[float, float]) -> None:
    """Put ticks of a logarithmic axis at round numbers; an axis with a single value reaches a tenth around it."""
    low, high = limits
    if high / low < 1.0001:
        low, high = low / 1.1, high * 1.1
        axis.set_view_interval(low, high, ignore=True)
    ticks = round_ticks(low, high)
    # Powers of ten take more room.
    set_ticks(axis, ticks[:: -(-len(ticks) // (4 if ticks[-1] >= 1e6 else 8))], plain_number)


def plain_number(value: float) -> str:
    """ "0.3", "10000", "2.5·10¹²"."""
    if abs(value) >= 1e6:
        exponent = int(np.floor(np.log10(abs(value))))
        mantissa = f"{value / 10.0**exponent:.4g}"
        return power_text(10, exponent) if mantissa == "1" else f"{mantissa}·{power_text(10, exponent)}"
    return f"{value:g}"


def short_number(value: float) -> str:
    """Three significant digits, without an exponent below a million: "0.125", "86.6", "1180"."""
    return plain_number(float(f"{value:.3g}"))


def octave_axis(
    axis: Axis, limits: tuple[float, float], column: str, values: Sequence[float] = (), most: int = 6
) -> None:
    """Put ticks of a logarithmic axis to base 2 at the ``values`` that occur, or else at powers of two."""
    low, high = limits
    ticks = [value for value in values if low <= value <= high]
    if not ticks:
        ticks = [2.0**e for e in range(int(np.ceil(np.log2(low))), int(np.floor(np.log2(high))) + 1)]
    if len(ticks) < 2:
        ticks = list(round_ticks(low, high))
    powers = column in POWERS or ticks[-1] >= 2**14
    ticks = _apart(ticks[:: -(-len(ticks) // most)], limits, 1.6 * most)
    set_ticks(axis, ticks, lambda value: power_of_two(value) if powers else f"{value:.3g}")


def _apart(ticks: Sequence[float], limits: tuple[float, float], most: float) -> list[float]:
    """Drop ticks that are closer than ``1 / most`` of a logarithmic axis to the next one; the last stays."""
    least = np.log(limits[1] / limits[0]) / most
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or np.log(kept[-1] / tick) >= least:
            kept.append(tick)
    return kept[::-1]


def set_ticks(axis: Axis, ticks: Sequence[float], text: object) -> None:
    """Put these ticks and no others, each labelled by ``text``."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))  # type: ignore[operator]
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def round_ticks(low: float, high: float) -> tuple[float, ...]:
    """Three to eight round numbers within [low, high], for a logarithmic axis; low > 0. One, where they are equal.

    Powers of ten where there are enough, else more and more multiples of them, else equal steps, so that an axis of
    less than a decade still has readable ticks.
    """
    decades = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    ticks: tuple[float, ...] = ()
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        inside = [float(f"{step * 10.0**e:.3g}") for e in decades for step in steps]
        ticks = tuple(tick for tick in inside if low <= tick <= high)
        if len(ticks) >= 3:
            break
    if len(ticks) < 3:
        found = MaxNLocator(6, min_n_ticks=3).tick_values(low, high)
        ticks = tuple(float(f"{tick:.6g}") for tick in found if low <= tick <= high)
    if not ticks:  # a range narrower than the digits that are shown
        ticks = (float(f"{np.sqrt(low * high):.6g}"),)
    return ticks[:: -(-len(ticks) // 8)]


class Marks:
    """Colours and markers of the rows of a table: colours for one axis that varies, markers for a second one."""

    def __init__(self, rows: pd.DataFrame) -> None:
        names = [name for name in dict.fromkeys([*TOKENIZER, *varying(rows)]) if name in varying(rows)]
        self.axes = [name for name in names if rows[name].nunique() <= len(COLOURS)][:2]
        self._levels = [list(np.sort(rows[name].dropna().unique())) for name in self.axes]
        self._unknown = bool(self.axes) and bool(rows[self.axes[0]].isna().any())

    @property
    def colours(self) -> int:
        """How many values have a colour."""
        return len(self._levels[0]) if self._levels else 0

    def of(self, row: pd.Series) -> tuple[str, str]:
        """Colour and marker of a row; grey where it has no value of the first axis."""
        at = [
            levels.index(row[name]) if not pd.isna(row[name]) and row[name] in levels else None
            for name, levels in zip(self.axes, self._levels, strict=True)
        ]
        colour = COLOURS[0] if not at else GREY if at[0] is None else COLOURS[at[0]]
        return colour, MARKERS[(at[1] or 0) if len(at) > 1 else 0]

    def handles(self) -> list[Line2D]:
        """Handles for a legend."""
        handles = []
        for number, (name, levels) in enumerate(zip(self.axes, self._levels, strict=True)):
            for i, level in enumerate(levels):
                shown = setting(name, level if isinstance(level, str) else float(level))
                colour, marker = (COLOURS[i], "o") if number == 0 else (DARK, MARKERS[i])
                handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", label=shown))
        if self._unknown:
            handles.append(Line2D([], [], color=GREY, marker="o", linestyle="none", label=f"no {self.axes[0]}"))
        return handles


def legend_outside(
    figure: Figure, handles: Sequence[Line2D], width: float, where: Literal["upper", "lower"] = "upper"
) -> None:
    """Put a legend above the axes (or below, ``where`` = lower), in as many columns as ``width`` inches hold."""
    if not handles:
        return
    letters = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(width / (0.065 * letters + 0.45))))
    place: Literal["outside upper center", "outside lower center"]
    place = "outside upper center" if where == "upper" else "outside lower center"
    figure.legend(handles=list(handles), loc=place, ncols=columns, columnspacing=1.2, handletextpad=0.3)


_PLACES = ((6, 5, "left"), (6, -11, "left"), (-6, 5, "right"), (-6, -11, "right"), (6, 14, "left"), (-6, -20, "right"))
_PLATE = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    others: Sequence[tuple[float, float]],
    places: Sequence[tuple[float, float, str]] = _PLACES,
    settled: bool = False,
) -> list[Bbox]:
    """Write each label beside its point where it hides neither another one nor any of the ``others``; where no place is
    free, none is written. ``places``: offsets in points and alignment, the best first. Returns the boxes of the labels,
    in pixels. Call it last: it looks at the axes as they are. ``settled``: labels were placed in other axes of this
    figure just before, so that it need not be laid out again.
    """
    figure = axes.figure
    while figure is not None and figure.figure is not figure:  # get_figure(root=True) of matplotlib 3.10
        figure = figure.figure
    assert isinstance(figure, Figure)
    if type(figure.canvas) is FigureCanvasBase:
        FigureCanvasAgg(figure)  # type: ignore[no-untyped-call]  # keeps a renderer, else made anew for each text
    if not settled:
        # Lay it out without drawing it (draw_without_rendering does both).
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
            _laid_out.add(figure)
    marks = axes.transData.transform(np.array(others)) if len(others) else np.zeros((0, 2))
    taken: list[Bbox] = []
    for (x, y), label in zip(points, labels, strict=True):
        for dx, dy, side in places:
            text = axes.annotate(
                label,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=side,  # type: ignore[arg-type]
                fontsize=7.5,
                color="#333333",
                zorder=5,
                bbox=_PLATE,
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            if fits_in(box, axes, taken, marks):
                taken.append(box)
                break
            text.remove()
    return taken


def fits_in(box: Bbox, axes: Axes, taken: Sequence[Bbox], marks: Array) -> bool:
    """Whether a label's box lies within the axes and hides no other box and none of the marks, (n, 2) in pixels."""
    inside = axes.get_window_extent()
    return (
        inside.x0 <= box.x0
        and box.x1 <= inside.x1 + 10
        and inside.y0 <= box.y0
        and box.y1 <= inside.y1 + 10
        and not any(box.overlaps(other) for other in taken)
        and not any(box.padded(3).contains(*mark) for mark in marks)
    )
