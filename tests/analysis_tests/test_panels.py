"""What panels show: the metric that a law predicts, and the laws that predict it."""

from __future__ import annotations

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
