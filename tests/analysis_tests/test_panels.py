"""What panels show: the metric that a law predicts, and the laws that predict it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from gsq import analysis
from gsq.analysis import AnalysisError
from gsq.analysis.figures.panels import axis_panel, rate_panel

QUICK = {"bootstrap": 0, "starts": 4}


@pytest.fixture
def frame(tables, tmp_path: Path) -> pd.DataFrame:
    cells = [(4, 16, g, v) for g in (1, 2, 4) for v in (64, 256, 1024)]
    return analysis.load_results(tables.write(tmp_path / "t.parquet", [tables.row(cell) for cell in cells]))


def test_a_law_is_drawn_beside_what_it_predicts_alone(frame: pd.DataFrame) -> None:
    of_rfid = analysis.fit(frame, "power_law_bpp", **QUICK)
    of_psnr = analysis.fit(frame, "psnr_db = a + b * log2(bits_per_pixel)", **QUICK)
    assert [curve.law for curve in rate_panel(frame, (of_rfid, of_psnr)).curves] == ["power_law_bpp"]
    panel = rate_panel(frame, (of_rfid, of_psnr), metric="psnr_db")
    assert [curve.law for curve in panel.curves] == [of_psnr.law.name] and panel.y_label == "PSNR (dB)"
    assert {y for one in panel.series for y in one.y} == {*frame["psnr_db"]}
    figure = analysis.scaling_figure(frame, of_psnr)
    labels = [axes.get_ylabel() for part in figure.subfigs for axes in part.axes]
    assert labels[:2] == ["PSNR (dB)", "PSNR (dB)"]
    assert axis_panel(frame, "groups", (of_psnr,), "psnr_db").series[0].curves


def test_a_table_of_other_columns_is_told_which_figures_it_has() -> None:
    frame = pd.DataFrame({"N": [10.0, 20, 40, 80], "loss": [5.0, 4, 3.2, 2.6]})
    law = analysis.fit(frame, "loss = A * N^a", **QUICK)
    for draw in (lambda: analysis.scaling_figure(frame, law), lambda: analysis.collapse_figure(frame),
                 lambda: analysis.pareto_figure(frame), lambda: analysis.group_figure(frame, law)):  # fmt: skip
        with pytest.raises(AnalysisError, match=r"no column '(rfid|bits_per_pixel)'.*--kind card, or contours"):
            draw()


def test_many_arms_with_long_names_stay_readable() -> None:
    names = [f"a rather long name of an arm, number {k} of twelve" for k in range(12)]
    rows = [
        (name, x, (9 + k) * x**-0.8 * (1 + 0.01 * (x == 2))) for k, name in enumerate(names) for x in (1.0, 2, 4, 8)
    ]
    law = analysis.fit(
        pd.DataFrame(rows, columns=["model name", "bpp", "loss"]), "loss = A[`model name`] * bpp^a", **QUICK
    )
    arms = analysis.arms(law, "model name")
    assert arms.shared is not None, "a column that needs backticks is tested as any other"
    left, right = analysis.arms_figure(arms).axes
    assert left.get_legend() is None and len(right.get_xlabel()) < 60
    assert all(len(text.get_text()) <= 40 for text in right.get_yticklabels())
    card = analysis.card_figure(analysis.report_card(law))
    (intervals,) = [axes for axes in card.axes if len(axes.get_yticklabels()) == 13]
    card.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in intervals.get_yticklabels()), key=lambda box: box.y0)
    assert all(a.y1 <= b.y0 + 2 for a, b in pairwise(boxes))


def test_levels_of_negative_targets_are_round() -> None:
    frame = pd.DataFrame([(x, y, x - 3.3 * y) for x in (0.0, 1, 2) for y in (-1.0, 0, 1)], columns=["x", "y", "z"])
    frame["z"] += [0.1, 0, 0, 0, 0, 0, 0, 0, -0.1]
    law = analysis.fit(frame, "z = a + b * x + c * y", residuals="linear", **QUICK)
    shades = analysis.contour_figure(law).axes[-1]
    ticks = [text.get_text() for text in shades.get_yticklabels()]
    assert len(ticks) >= 4 and all(float(tick) == round(float(tick), 1) for tick in ticks), ticks
    assert "nan" not in analysis.report_card(law).text() and law.errors_text(3) == f"RMSE {law.rmse:.3g}"
