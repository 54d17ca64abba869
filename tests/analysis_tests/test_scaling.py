from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gsq.analysis import (
    AnalysisError,
    Options,
    axis_panel,
    collapse_figure,
    collapse_panels,
    contour_figure,
    contour_panels,
    course_figure,
    curve_figure,
    draw_panel,
    fit,
    group_figure,
    make_report,
    pareto_figure,
    pareto_panel,
    rate_panel,
    reconstruction_figure,
    reference_rows,
    scaling_figure,
    step_figure,
    step_panel,
    usage_figure,
)
from gsq.analysis.figures.style import COLOURS, plain_number, round_ticks, save, saved_files, short_number


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
    with pytest.raises(AnalysisError, match=r"groups .*one value.*\(1\)"):
        axis_panel(frame, "groups")
    with pytest.raises(AnalysisError, match="no panel for 'width'; columns: codebook_size"):
        axis_panel(frame, "width")


def test_legend_lies_below_the_axes_and_ticks_are_readable(tables) -> None:
    frame = tables.load(tables.noisy(tables.QUICKSTART))
    figure = Figure()
    axes = figure.subplots()
    draw_panel(axis_panel(frame, "codebook_size"), axes)
    figure.draw_without_rendering()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2⁶", "2⁸", "2¹⁰"]
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 < axes.xaxis.label.get_window_extent().y0


@pytest.mark.parametrize(("low", "high"), [(0.35, 0.64), (1.0, 1.2), (0.03, 7.0), (3.9, 4.05), (1e-3, 1e5)])
def test_round_ticks(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 9 and all(low <= tick <= high for tick in ticks)


def test_numbers_of_figures_have_no_exponent_below_a_million() -> None:
    assert [short_number(value) for value in (0.12345, 86.6, 1184.0, 0.0)] == ["0.123", "86.6", "1180", "0"]
    assert plain_number(2e6) == "2·10⁶"


def test_ticks_of_values_that_lie_close_do_not_touch(tables) -> None:
    frame = tables.load(tables.noisy([(4, 16, 1, v) for v in (2, 3, 4, 2**16)]))
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    draw_panel(axis_panel(frame, "codebook_size"), axes)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 2 and not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_a_metric_that_is_the_same_everywhere_is_drawn(tables) -> None:
    frame = tables.load([tables.row((4, 16, g, v), rfid=312.9) for g in (1, 2, 4) for v in (64, 256)])
    for figure in (scaling_figure(frame), group_figure(frame)):
        figure.draw_without_rendering()
        assert any(axes.get_yticks().size for axes in figure.axes)


def test_a_caption_speaks_of_seeds_only_where_there_are_any(tables) -> None:
    cells = [(4, 16, g, v) for g in (1, 2) for v in (64, 1024)]
    one, two = tables.load(tables.noisy(cells)), tables.load(tables.noisy(cells, seeds=2))
    for draw in (scaling_figure, group_figure, usage_figure, collapse_figure, pareto_figure):
        assert "seeds" not in draw(one).get_supxlabel(), draw.__name__
        assert "means over seeds" in draw(two).get_supxlabel().lower().replace("\n", " "), draw.__name__
    alone = tables.load(tables.noisy([(4, 8, 1, 64), (8, 16, 2, 256)]))
    assert "Thin lines" not in scaling_figure(alone).get_supxlabel(), "no line is drawn"


def test_no_label_of_contours_hides_another_or_a_point(tables) -> None:
    cells = [(4, 16, g, v) for g in (1, 2, 4, 8) for v in (16, 64, 256, 1024)]
    rows = [one | {"rfid": 100 * float(one["rfid"])} for one in tables.noisy(cells)]
    figure = contour_figure(fit(tables.load(rows), bootstrap=0))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [text for text in axes.texts if text.get_text()]
    values = {text.get_text() for text in texts}
    assert {short_number(one["rfid"]) for one in rows} <= values and not any("e+" in text for text in values)
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) > len(rows), "lines are labelled, too"
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    points = axes.transData.transform([(one["codebook_size"], one["groups"]) for one in rows])
    assert not any(box.contains(*point) for box in boxes for point in points)


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
    figure = course_figure(frame)
    assert [axes.get_ylabel() for axes in figure.axes] == ["rFID", "codebook usage"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["G=1", "G=2"]
    with pytest.raises(AnalysisError, match=r"evaluation\.every"):
        course_figure(frame[frame["step"] == 100])
    many = [
        tables.row((4, 16, 1, 64), signature=str(n), learning_rate=0.001 * n, step=step)
        for n in range(1, 14)
        for step in (1, 2)
    ]
    with pytest.raises(AnalysisError, match="13 settings"):
        course_figure(tables.load(many))


def test_groups_are_drawn_at_fixed_channels_and_d_follows(tables) -> None:
    frame = tables.load(tables.noisy([(4, d, g, 256) for d in (8, 16) for g in (1, 2, 4)]))
    result = fit(frame, "saturating", bootstrap=0)
    panel = axis_panel(frame, "group_dim", [result])
    assert [one.label for one in panel.series] == ["D=8", "D=16"]
    assert panel.series[1].mean_x == (4, 8, 16)
    by_groups = axis_panel(frame, "groups", [result]).series[1]
    assert panel.series[1].mean_y == by_groups.mean_y[::-1]
    # The law moves groups with d, at the same D.
    curve = panel.series[1].curves[0]
    expected = result.predict({"downsample": 4, "codebook_size": 256, "groups": [4, 1], "group_dim": [4, 16]})[0]
    assert (curve.central[0], curve.central[-1]) == pytest.approx(tuple(expected))
    figure = group_figure(frame, result)
    assert [axes.get_xlabel() for axes in figure.axes] == ["groups G", "channels a group d"]
    with pytest.raises(AnalysisError, match=r"no two cells .*groups alone"):
        group_figure(tables.load(tables.noisy([(4, 8, 1, 64), (4, 16, 2, 64)])))


def test_usage_is_drawn_with_what_it_could_be(tables, paper) -> None:
    frame = tables.load(tables.noisy([(4, 16, g, v) for g in (1, 4) for v in (64, 1024)]))
    figure = usage_figure(frame)
    assert [axes.get_ylabel() for axes in figure.axes] == ["codebook usage", "", "codebook perplexity", ""]
    assert figure.axes[0].get_yscale() == "linear" and figure.axes[2].get_yscale() == "log"
    (bound,) = [line for line in figure.axes[2].lines if line.get_linestyle() == ":"]
    assert list(bound.get_ydata()) == list(bound.get_xdata()) == [64, 1024]
    small = usage_figure(paper[paper["sweep"] == "table13"])
    assert [axes.get_xlabel() for axes in small.axes] == ["channels a group d"] * 2, "no line could be drawn over V"
    assert small.axes[0].get_yscale() == "log"
    with pytest.raises(AnalysisError, match="no row has a usage"):
        usage_figure(paper[paper["sweep"] == "fig4"])
    with pytest.raises(AnalysisError, match=r"codebook size .*groups varies"):
        usage_figure(tables.load(tables.noisy([(4, 16, 1, 64), (8, 16, 1, 64)])))


def test_contours_are_the_law_and_know_where_it_was_measured(fig4, paper) -> None:
    result = fit(fig4, "channel_limit", bootstrap=0)
    (panel,) = contour_panels(result, size=21)
    assert (panel.x_column, panel.y_column, panel.label) == ("codebook_size", "latent_dim", "")
    assert panel.x[0] == 2**12 and panel.x[-1] == pytest.approx(2**20) and (panel.y[0], panel.y[-1]) == (4, 128)
    expected = result.predict({"codebook_size": panel.x, "latent_dim": panel.y[7]})[0]
    np.testing.assert_allclose(panel.value[7], expected)
    inside = np.array(panel.inside)
    x, y = np.array(panel.x), np.array(panel.y)[:, None]
    measured = (x >= 2**13 - 1) & (x <= 2**19 + 1) & (y >= 8 - 1e-9) & (y <= 64 + 1e-9)
    assert (inside == measured).all() and inside.any() and not inside.all()
    assert len(panel.points) == 20 and (8192, 8, 0.488) in panel.points
    figure = contour_figure(result)
    assert figure.axes[0].get_xlabel() == "codebook size V" and "hatch" not in figure.axes[0].get_title()
    turned = contour_panels(result, "latent_dim", "codebook_size", size=9)[0]
    assert (turned.x_column, turned.y_column) == ("latent_dim", "codebook_size")
    with pytest.raises(AnalysisError, match=r"no contours over groups: .*varies with codebook_size"):
        contour_panels(result, "groups")
    table13 = paper[(paper["sweep"] == "table13") & paper["other_axes"].isna()]
    with pytest.raises(AnalysisError, match="spread both in"):
        contour_panels(fit(table13, "saturating", bootstrap=0))
    with pytest.raises(AnalysisError, match="contours need two axes"):
        contour_panels(fit(fig4[fig4["latent_dim"] == 8], "inverse_bpp", bootstrap=0))


def test_contours_of_a_rate_have_a_panel_for_each_setting_of_the_rest(tables) -> None:
    cells = [(f, 16, g, v) for f in (4, 8) for g in (1, 2, 4) for v in (64, 1024)]
    result = fit(tables.load(tables.noisy(cells)), bootstrap=0)
    panels = contour_panels(result, size=5)
    assert {(one.x_column, one.y_column) for one in panels} == {("codebook_size", "groups")}
    assert [one.label for one in panels] == ["f=4", "f=8"] and all(len(one.points) == 6 for one in panels)
    assert panels[0].y[0] == 1, "there is no half group"
    corner = result.predict({"groups": panels[1].y[0], "codebook_size": panels[1].x[-1], "downsample": 8})[0]
    assert panels[1].value[0][-1] == pytest.approx(corner[0])


def test_collapse_is_one_line_and_what_it_misses(joint, tables) -> None:
    bits = np.minimum(np.log2(joint["codebook_size"].astype(float)), 3.2 * joint["group_dim"].astype(float))
    frame = joint.assign(carried=joint["groups"] * bits / joint["downsample"] ** 2)
    carried, plain = collapse_panels(frame, ["bits_per_pixel", "carried"])
    assert carried.found.derived == "carried" and carried.found.absorbs and not plain.found.absorbs
    for panel in (carried, plain):
        assert len(panel.x) == 41
        assert np.sqrt(np.mean(np.log(panel.ratio) ** 2)) == pytest.approx(panel.found.log_rmse)
    figure = collapse_figure(frame, ["carried"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["rFID", "rFID / line"]
    with pytest.raises(AnalysisError, match="bits_per_pixel takes one value"):
        collapse_figure(tables.load([tables.row((4, 16, 1, 64)), tables.row((4, 8, 1, 64))]))


def test_the_front_holds_the_cells_that_none_beats(tables) -> None:
    costs = {1.0: 9.0, 2.0: 5.0, 3.0: 6.0, 4.0: 4.0, 5.0: 4.0}
    rows = [
        tables.row((4, 16, int(cost), 64), seed, rfid=rfid + (0.5 if seed else -0.5), train_flops=cost)
        for cost, rfid in costs.items()
        for seed in (0, 1)
    ]
    panel = pareto_panel(tables.load(rows), "train_flops")
    assert panel.front_points == ((1, 9), (2, 5), (4, 4)), "means over seeds; equal rFID for more cost is beaten"
    assert [label for label, best in zip(panel.labels, panel.front, strict=True) if best] == ["G=1", "G=2", "G=4"]
    figure = pareto_figure(tables.load(rows))
    assert [axes.get_xlabel() for axes in figure.axes] == ["bits per pixel", "training FLOPs"]
    with pytest.raises(AnalysisError, match="'lpips' is empty"):
        pareto_panel(tables.load(rows), "lpips")
    near = tables.load([tables.row((4, 16, g, 64), train_flops=1e12 * (1 + 0.001 * g)) for g in (1, 2, 4)])
    assert [axes.get_xlabel() for axes in pareto_figure(near).axes] == ["bits per pixel"]
    with pytest.raises(AnalysisError, match=r"train_flops .* 0\.3% .* 10%"):
        pareto_figure(near, ["train_flops"])
    with pytest.raises(AnalysisError, match="no cost varies"):
        pareto_figure(tables.load([tables.row((4, 16, 1, 64), seed) for seed in (0, 1)]))


def test_the_papers_points_are_an_overlay_that_names_both_protocols(tables, paper) -> None:
    frame = tables.load(tables.noisy([(8, 16, 1, v) for v in (64, 1024)]))
    rows = reference_rows(paper)
    assert len(rows) == 41 and set(rows["protocol"]) == {"gsq-paper-256"} and rows["other_axes"].isna().all()
    plain, panel = axis_panel(frame, "codebook_size"), axis_panel(frame, "codebook_size", reference=paper)
    assert plain.overlay is None and panel.series == plain.series
    overlay = panel.overlay
    assert overlay is not None and not overlay.comparable and overlay.label == "paper: fig4, table13, fig1b"
    assert overlay.protocol == "inception_v3 as the paper used it, 50,000 images, protocol gsq-paper-256"
    assert overlay.own_protocol == "efficientnet_lite0-0a1b2c, 2,000 images, protocol p1a2b3"
    assert sum(len(one.x) for one in overlay.series) == 41 and panel.x_values[-1] == 524288
    # Fits never see it.
    result = fit(frame, "rfid = c * bits_per_pixel^(-1)", bootstrap=0)
    assert result.n_rows == 2
    figure = scaling_figure(frame, result, reference=paper)
    words = " ".join(figure.get_supxlabel().split())
    assert overlay.protocol in words and overlay.own_protocol in words and "not fitted" in words
    left, right = figure.axes[:2] if figure.axes[0].get_ylabel() else figure.axes[1::-1]
    assert "paper" in right.get_ylabel(), "a scale of its own, of as many decades"
    assert np.ptp(np.log(left.get_ylim())) == pytest.approx(np.ptp(np.log(right.get_ylim())))
    same = axis_panel(paper[paper["sweep"] == "fig4"], "codebook_size", reference=paper).overlay
    assert same is not None and same.comparable


def test_training_curves_are_coloured_by_an_axis(tables) -> None:
    frame = tables.load(tables.noisy([(4, 16, g, 64) for g in (1, 2)]))
    steps = range(1, 1001)
    curves = [pd.DataFrame({"signature": name, "step": steps, "loss": 1.0}) for name in frame["signature"]]
    figure = curve_figure(pd.concat(curves), frame, "loss")
    (axes,) = figure.axes
    assert [line.get_color() for line in axes.lines] == [COLOURS[0], COLOURS[1]]
    assert all(len(line.get_xdata()) == 200 for line in axes.lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["G=1", "G=2"]


def test_a_pdf_is_saved_alone_and_the_style_file_is_matplotlibs(tables, tmp_path: Path) -> None:
    import matplotlib.style

    frame = tables.load(tables.noisy([(4, 16, g, v) for g in (1, 2) for v in (64, 1024)]))
    pareto_figure(frame, ["bits_per_pixel"], tmp_path / "front.pdf")
    assert [file.name for file in tmp_path.glob("front*")] == ["front.pdf"] == [saved_files("front.pdf")[0].name]
    assert (tmp_path / "front.pdf").read_bytes().startswith(b"%PDF")
    with matplotlib.style.context("gsq.analysis.figures.gsq"):
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)


def test_a_metric_that_is_the_same_everywhere_is_drawn_or_refused_in_words(tables, tmp_path: Path) -> None:
    cells = [(4, 16, g, v) for g in (1, 2, 4) for v in (64, 256)]
    rows = [tables.row(cell, rfid=312.9, usage=1.0, perplexity=30.0) for cell in cells]
    frame = tables.load([one | {"step": step} for one in rows for step in (500, 1000)])
    drawn = {
        "scaling": scaling_figure(frame),
        "groups": group_figure(frame),
        "usage": usage_figure(frame),
        "steps": course_figure(frame, ["rfid", "usage"]),
        "pareto": pareto_figure(frame),
    }
    for name, figure in drawn.items():
        save(figure, tmp_path / name)
        for axes in figure.axes:
            if "rFID" in axes.get_ylabel() and axes.get_yscale() == "log":
                low, high = axes.get_ylim()
                assert low < 312 < 314 < high and len(axes.get_yticks()) >= 1, name
    with pytest.raises(AnalysisError, match=r"rfid .*all 6 rows, 312\.9"):
        collapse_figure(frame)
    report = make_report(frame, "flat", options=Options(bootstrap=0))
    assert "the same" in report.not_drawn["Collapse on bits per pixel"]
