"""How figures are written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from gsq.analysis import AnalysisError, collapse, contour_panels, fit, make_report, pareto_figure, scaling_figure
from gsq.analysis.figures.style import COLOURS, GREY, place_labels, save, style, write


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_figure_is_drawn_once_and_is_that_of_savefig(tables, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = tables.load(tables.noisy([(4, 16, g, v) for g in (1, 2) for v in (64, 256, 1024)], seeds=2))
    wanted, found, draws = io.BytesIO(), io.BytesIO(), []
    with style():
        metadata = {"Date": None} if kind == "svg" else None
        scaling_figure(frame).savefig(wanted, format=kind, dpi=150, metadata=metadata)
        figure = scaling_figure(frame)
        canvas, dpi = figure.canvas, figure.dpi
        draw = Figure.draw
        monkeypatch.setattr(Figure, "draw", lambda self, renderer: (draws.append(1), draw(self, renderer))[1])
        write(figure, found, kind, 150)
    assert found.getvalue() == wanted.getvalue() and len(draws) == 1
    assert (figure.canvas, figure.dpi) == (canvas, dpi)


def test_two_files_of_a_figure_share_one_layout(tmp_path: Path) -> None:
    figure, laid_out = Figure(layout="constrained"), []
    figure.subplots().set_xlabel("x")
    engine: Any = figure.get_layout_engine()
    execute = engine.execute
    engine.execute = lambda figure: (laid_out.append(1), execute(figure))[1]
    assert save(figure, tmp_path / "a") is figure and len(laid_out) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.svg"}
    assert figure.get_layout_engine() is engine


def test_labels_and_page_share_one_layout() -> None:
    figure, laid_out = Figure(layout="constrained"), []
    axes = figure.subplots()
    axes.plot([1, 2, 3], [1, 2, 3])
    axes.set_ylabel("a label that takes room")
    engine: Any = figure.get_layout_engine()
    execute = engine.execute
    engine.execute = lambda figure: (laid_out.append(1), execute(figure))[1]
    taken = place_labels(axes, [(2, 2)], ["two"], [(1, 1), (2, 2), (3, 3)])
    placed = axes.get_position().bounds
    with style():
        write(figure, io.BytesIO(), "svg")
    assert len(taken) == len(laid_out) == 1 and figure.get_layout_engine() is engine
    assert axes.get_position().bounds == pytest.approx(placed, abs=1e-6) and placed[0] > 0.05


def test_rows_without_an_axis_are_drawn_in_grey_and_named(tables) -> None:
    """A tokenizer trained elsewhere may have no f or D that anybody knows."""
    frame = tables.load(tables.noisy([(f, 16, g, v) for f in (4, 8) for g in (1, 2) for v in (64, 1024)]))
    axes = ["downsample", "groups", "latent_dim"]
    frame = frame.assign(**{name: frame[name].astype("Int64") for name in axes})
    frame.loc[0, axes] = pd.NA
    figure = pareto_figure(frame)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "no downsample"
    assert {line.get_color() for line in figure.axes[0].lines} >= {COLOURS[0], COLOURS[1], GREY}
    assert not any("NA" in text.get_text() or "nan" in text.get_text() for one in figure.axes for text in one.texts)
    panels = contour_panels(fit(frame, "power_law_bpp", bootstrap=0), "codebook_size", "groups", size=5)
    assert sum(len(panel.points) for panel in panels) == 7
    with pytest.raises(AnalysisError, match=r"'downsample' has no value in 1 row of 8; .*--where \"downsample > 0\""):
        collapse(frame)
    report = make_report(frame, "elsewhere")
    assert "Pareto front" not in report.not_drawn and "Collapse on bits per pixel" in report.not_drawn
