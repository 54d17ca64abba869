from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import (
    AnalysisError,
    axis_panel,
    draw_panel,
    fit,
    rate_panel,
    reconstruction_figure,
    scaling_figure,
    step_figure,
    step_panel,
)
from analysis.drawing import round_ticks


def test_rate_panel_holds_the_points_and_the_law(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART))
    result = fit(frame, bootstrap=50)
    panel = rate_panel(frame, [result])
    assert panel.y_label == "rFID (efficientnet_lite0-0a1b2c, 2,000 images)"
    assert [one.label for one in panel.series] == ["f=4", "f=8"]
    assert sum(len(one.x) for one in panel.series) == 14
    (curve,) = panel.curves
    np.testing.assert_allclose(curve.central, result.predict({"bits_per_pixel": curve.x})[0])
    assert all(low <= middle <= high for low, middle, high in zip(curve.low, curve.central, curve.high, strict=True))
    assert "bits_per_pixel^(-0." in curve.formula


def test_axis_panel_has_one_series_for_each_setting_of_the_others(tables) -> None:
    cells = [(4, 16, g, v) for g in (1, 2) for v in (64, 256, 1024)] + [(8, 16, 1, 64)]
    frame = tables.load(tables.noisy(cells, seeds=2))
    panel = axis_panel(frame, "codebook_size", [fit(frame, bootstrap=20)])
    assert panel.x_values == (64.0, 256.0, 1024.0)
    joined = [one for one in panel.series if one.joined]
    assert [one.label for one in joined] == ["G=1", "G=2"], "f differs only at the single point"
    first = joined[0]
    assert first.fixed == {"downsample": 4.0, "groups": 1.0}
    assert len(first.x) == 6 and len(first.mean_x) == 3, "two seeds a cell, joined at their mean"
    assert first.mean_y[0] == pytest.approx(np.mean([y for x, y in zip(first.x, first.y, strict=True) if x == 64]))
    assert len(first.curves) == 1 and first.curves[0].x[0] == pytest.approx(64)
    assert first.curves[0].central[0] > first.curves[0].central[-1], "the rate is computed anew along the axis"
    (alone,) = [one for one in panel.series if not one.joined]
    assert alone.curves == ()


def test_panels_refuse_what_they_cannot_show(tables) -> None:
    frame = tables.load([tables.row((4, 8, 1, 64))])
    with pytest.raises(AnalysisError, match=r"groups takes one value in the measured rows \(1\)"):
        axis_panel(frame, "groups")
    with pytest.raises(AnalysisError, match="no panel for 'width'; columns: codebook_size"):
        axis_panel(frame, "width")


def test_legend_lies_below_the_axes_and_ticks_are_readable(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART))
    figure = Figure()
    axes = figure.subplots()
    draw_panel(axis_panel(frame, "codebook_size"), axes)
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["$2^{6}$", "$2^{8}$", "$2^{10}$"]
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0


@pytest.mark.parametrize(("low", "high"), [(0.35, 0.64), (1.0, 1.2), (0.03, 7.0), (3.9, 4.05), (1e-3, 1e5)])
def test_round_ticks(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 9 and all(low <= tick <= high for tick in ticks)


def test_scaling_figure_draws_the_axes_that_vary_and_saves_both_formats(tables, tmp_path: Path) -> None:
    frame = tables.load(tables.noisy([(4, 16, g, v) for g in (1, 2) for v in (64, 256, 1024)], seeds=2))
    backend = mpl.rcParams["backend"]
    figure = scaling_figure(frame, fit(frame, bootstrap=20), tmp_path / "out" / "figure.png")
    assert {axes.get_xlabel() for axes in figure.axes} == {"bits per pixel", "codebook size V", "groups G"}
    first = (tmp_path / "out" / "figure.svg").read_bytes()
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    scaling_figure(frame, fit(frame, bootstrap=20), tmp_path / "out" / "figure")
    assert (tmp_path / "out" / "figure.svg").read_bytes() == first, "the same table gives the same file"
    assert mpl.rcParams["backend"] == backend


def test_scaling_figure_without_fits_or_varying_axes(tables) -> None:
    figure = scaling_figure(tables.load([tables.row((4, 8, 1, 64), seed) for seed in range(3)]))
    assert [axes.get_xlabel() for axes in figure.axes] == ["bits per pixel"]


def test_both_laws_on_fig4(fig4) -> None:
    fits = [fit(fig4, law, bootstrap=20) for law in ("power_law_bpp", "paper_eq14")]
    panel = axis_panel(fig4, "latent_dim", fits)
    assert [curve.law for curve in panel.series[0].curves] == ["power_law_bpp", "paper_eq14"]
    assert len(rate_panel(fig4, fits).curves) == 1, "equation 14 is no function of the rate alone"


def test_reconstruction_figure_stacks_strips(tmp_path: Path) -> None:
    import matplotlib.image

    entries = []
    for number, shape in enumerate([(64, 256, 3), (64, 512, 3)]):
        path = tmp_path / f"{number}.png"
        matplotlib.image.imsave(path, np.random.default_rng(number).random(shape))
        entries.append((f"run {number}", path))
    figure = reconstruction_figure(entries, tmp_path / "out" / "reconstructions.png")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["run 0", "run 1"]
    assert (tmp_path / "out" / "reconstructions.png").is_file()


def test_reconstruction_figure_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="no pictures"):
        reconstruction_figure([], tmp_path / "out.png")
    with pytest.raises(AnalysisError, match=r"gone\.png: no such picture \(of 'a'\)"):
        reconstruction_figure([("a", tmp_path / "gone.png")], tmp_path / "out.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(AnalysisError, match=r"text\.png: not a readable PNG"):
        reconstruction_figure([("a", tmp_path / "text.png")], tmp_path / "out.png")


def test_steps_have_a_line_for_each_setting_and_one_behind_it_for_each_seed(tables, tmp_path: Path) -> None:
    rows = [
        tables.row((4, 16, g, 64), signature=f"{g}{s}", seed=s, step=step, usage=0.1 * g + 0.01 * s + step / 1000)
        for g in (1, 2)
        for s in (0, 1)
        for step in (200, 100)
    ]
    frame = tables.load(rows)
    panel = step_panel(frame, "usage", "groups")
    assert [one.label for one in panel.series] == ["G=1", "G=2"]
    assert panel.series[0].steps == (100, 200)
    assert panel.series[0].mean == pytest.approx((0.205, 0.305))
    assert panel.series[1].runs[1] == ((100, 200), pytest.approx((0.31, 0.41)))
    figure = step_figure(frame, ["usage", "rfid"], ["groups"], tmp_path / "steps.png")
    assert [len(axes.lines) for axes in figure.axes] == [6, 6]
    assert (tmp_path / "steps.png").stat().st_size > 1000 and (tmp_path / "steps.svg").is_file()
    with pytest.raises(AnalysisError, match="lpips"):
        step_panel(frame, "lpips", "groups")
