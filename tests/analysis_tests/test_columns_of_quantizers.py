"""Derived axes of every quantizer: the table's column, the figure's axis and the law's input are the same number."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gsq.analysis import AnalysisError, Fit, design, fit, held_out, residual_trends, with_derived
from gsq.analysis.figures.contours import contour_panels
from gsq.analysis.figures.panels import axis_panel, rate_panel
from gsq.config.overrides import override
from gsq.config.presets import preset
from gsq.sweeps.planning.cells import axis_columns

UNEVEN = [8, 8, 4, 4, 4, 4, 4, 4]
KINDS: dict[str, dict[str, Any]] = {
    "gsq": {"quantizer": "gsq", "groups": 4, "codebook_size": 1000},
    "vq": {"quantizer": "vq", "groups": 1, "codebook_size": 1024},
    "rvq": {"quantizer": "rvq", "groups": 1, "codebook_size": 1000, "depth": 4},
    "fsq": {"quantizer": "fsq", "groups": 8, "codebook_size": 5},
    "uneven fsq": {"quantizer": "fsq", "groups": 8, "codebook_size": 8, "quantizer.levels": UNEVEN},
    "lfq": {"quantizer": "lfq", "groups": 8, "codebook_size": 2},
    "bsq": {"quantizer": "bsq", "groups": 8, "codebook_size": 2},
}
BITS = {
    "gsq": 4 * math.log2(1000), "vq": 10, "rvq": 4 * math.log2(1000), "fsq": 8 * math.log2(5), "uneven fsq": 18,
    "lfq": 8, "bsq": 8,
}  # fmt: skip
DERIVED = ("group_dim", "bits_per_token", "bits_per_pixel", "compression_ratio", "tokens_per_image")


def table_of(tables: SimpleNamespace, cells: list[dict[str, Any]]) -> pd.DataFrame:
    """A results table of the cells, whose rFID is 9 bpp^-0.8."""
    rows = []
    for number, cell in enumerate(cells):
        config = override(preset("cpu-tiny"), {"latent_dim": 8, **cell}, "axes")
        axes = axis_columns(config, "photos")
        rfid = 9 * axes["bits_per_pixel"] ** -0.8
        rows.append(tables.row((4, 8, 1, 2), **axes, signature=f"{number:012x}", rfid=rfid))
    return tables.load(rows)


def law_of(frame: pd.DataFrame) -> Fit:
    return fit(frame, "power_law_bpp", bootstrap=0)


@pytest.mark.parametrize("kind", KINDS)
def test_table_figure_and_law_have_the_same_number(tables: SimpleNamespace, kind: str) -> None:
    frame = table_of(tables, [{**KINDS[kind], "downsample": f} for f in (2, 4, 8)])
    assert frame["bits_per_token"].tolist() == [BITS[kind]] * 3
    rate = frame["bits_per_pixel"].tolist()
    assert rate == [BITS[kind] / f**2 for f in (2, 4, 8)]
    # What is computed afresh for hypothetical cells, and from a table without these columns.
    for other in (with_derived(frame, fresh=True), with_derived(frame.drop(columns=list(DERIVED)))):
        for name in DERIVED:
            assert other[name].tolist() == frame[name].tolist(), name
    assert [x for one in rate_panel(frame).series for x in one.x] == rate
    law = law_of(frame)
    assert np.array_equal(law.law.values(frame.drop(columns=list(DERIVED))), law.law.values(frame))
    (series,) = axis_panel(frame, "downsample", [law]).series
    assert series.joined
    assert [series.curves[0].central[end] for end in (0, -1)] == pytest.approx([series.mean_y[0], series.mean_y[-1]])


def test_law_curves_of_rvq_go_through_its_points_at_every_depth(tables: SimpleNamespace) -> None:
    cells = [{**KINDS["rvq"], "depth": n, "codebook_size": v} for n in (2, 4) for v in (16, 64, 256)]
    frame = table_of(tables, cells)
    series = axis_panel(frame, "codebook_size", [law_of(frame)]).series
    assert [one.fixed["depth"] for one in series] == [2, 4]
    for one in series:
        assert [one.curves[0].central[end] for end in (0, -1)] == pytest.approx([one.mean_y[0], one.mean_y[-1]])
    assert series[0].curves[0].central[0] > 1.5 * series[1].curves[0].central[0]


def test_a_law_of_the_rate_is_not_said_to_lack_a_term_for_depth(tables: SimpleNamespace) -> None:
    cells = [{**KINDS["rvq"], "depth": n, "codebook_size": v} for n in (2, 4) for v in (16, 64, 256)]
    frame = table_of(tables, cells)
    assert not any("depth" in one for one in law_of(frame).warnings)
    blind = fit(frame, "rfid = A / log2(codebook_size)^a", bootstrap=0)
    assert any("depth" in one and "no term" in one for one in blind.warnings)
    assert "depth" in [one.column for one in residual_trends(blind)] and "depth" in held_out(blind).largest


def test_contours_of_rvq_take_its_depth_into_account(tables: SimpleNamespace) -> None:
    cells = [{**KINDS["rvq"], "codebook_size": v, "downsample": f} for v in (16, 64, 256) for f in (2, 4)]
    (panel,) = contour_panels(law_of(table_of(tables, cells)), "codebook_size", "downsample", size=8)
    want = [[9 * (4 * math.log2(v) / f**2) ** -0.8 for v in panel.x] for f in panel.y]
    assert np.array(panel.value) == pytest.approx(np.array(want))


def test_a_prediction_takes_the_depth_of_the_measured_rows(tables: SimpleNamespace) -> None:
    rvq = [{**KINDS["rvq"], "codebook_size": v} for v in (16, 64, 256)]
    where = {"groups": 1, "codebook_size": 1024, "downsample": 4}
    law = law_of(table_of(tables, rvq))
    assert law.predict(where)[0] == pytest.approx([9 * (40 / 16) ** -0.8])
    assert law.predict({**where, "depth": 2})[0] == pytest.approx([9 * (20 / 16) ** -0.8])
    both = law_of(table_of(tables, [*rvq, *({**cell, "depth": 2} for cell in rvq)]))
    with pytest.raises(AnalysisError, match=r"depends on depth.* 4, 2.*the cell its depth"):
        both.predict(where)
    assert both.predict({**where, "depth": 2})[0] == pytest.approx([9 * (20 / 16) ** -0.8])
    assert both.predict({"bits_per_pixel": 2.5})[0] == pytest.approx([9 * 2.5**-0.8])
    with pytest.raises(AnalysisError, match="bits_per_pixel"):
        both.predict({"codebook_size": 1024})
    assert law.predict({**where, "quantizer": "vq"})[0] == pytest.approx([9 * (10 / 16) ** -0.8])
    # Groups tell it from a quantizer of one codebook.
    mixed = law_of(table_of(tables, [*rvq, KINDS["gsq"]]))
    assert mixed.predict({**where, "groups": 4})[0] == pytest.approx([9 * (40 / 16) ** -0.8])


def test_a_prediction_takes_the_levels_of_the_measured_rows_like_it(tables: SimpleNamespace) -> None:
    law = law_of(table_of(tables, [{**KINDS["uneven fsq"], "downsample": f} for f in (2, 4, 8)]))
    where = {"groups": 8, "codebook_size": 8, "downsample": 4}
    assert law.predict(where)[0] == pytest.approx([9 * (18 / 16) ** -0.8])
    assert law.predict({**where, "codebook_size": 16})[0] == pytest.approx([9 * (32 / 16) ** -0.8])
    assert law.predict({**where, "levels": "8x8x8x8x8x8x8x8"})[0] == pytest.approx([9 * (24 / 16) ** -0.8])


def test_levels_that_are_all_alike_are_as_good_as_none(tables: SimpleNamespace) -> None:
    alike = [
        {"groups": 8, "codebook_size": 8, "downsample": f, "quantizer": kind} for f in (2, 4) for kind in ("gsq", "fsq")
    ]
    where = {"groups": 8, "codebook_size": 8, "downsample": 4}
    assert law_of(table_of(tables, alike)).predict(where)[0] == pytest.approx([9 * (24 / 16) ** -0.8])
    mixed = law_of(table_of(tables, [*alike, KINDS["uneven fsq"]]))
    with pytest.raises(AnalysisError, match="depends on levels"):
        mixed.predict(where)
    assert mixed.predict({**where, "quantizer": "gsq"})[0] == pytest.approx([9 * (24 / 16) ** -0.8])


def test_a_design_knows_the_depth_of_its_target_and_candidates(tables: SimpleNamespace) -> None:
    cells = [{**KINDS["rvq"], "depth": n, "codebook_size": v} for n in (2, 4) for v in (16, 64, 256)]
    frame = table_of(tables, cells)
    frame["rfid"] *= np.exp(0.02 * np.cos(np.arange(len(frame))))
    candidates = pd.DataFrame({"groups": 1, "codebook_size": [1024], "downsample": 4, "cost": 1.0, "depth": 4})
    target = "predict groups=1, codebook_size=1024, downsample=4"
    with pytest.raises(AnalysisError, match="depends on depth"):
        design(law_of(frame), candidates, 2.0, target)
    with pytest.raises(AnalysisError, match="depends on depth"):
        design(law_of(frame), candidates.drop(columns="depth"), 2.0, f"{target}, depth=4")
    (expected,) = design(law_of(frame), candidates, 2.0, f"{target}, depth=4", noise=0.02).expectations
    assert expected.central == pytest.approx(9 * (40 / 16) ** -0.8, rel=0.1)


def test_columns_of_a_table_of_ones_own_keep_their_meaning() -> None:
    own = pd.DataFrame({"groups": [2, 2], "codebook_size": [16, 16], "depth": ["deep", "flat"], "levels": [3, 3]})
    assert with_derived(own)["bits_per_token"].tolist() == [8, 8]
    assert with_derived(own.assign(depth=[1, 3], levels=["16x4", None]))["bits_per_token"].tolist() == [6, 24]


def test_levels_that_cannot_be_read_are_an_error_in_a_results_table(tables: SimpleNamespace) -> None:
    frame = table_of(tables, [KINDS["fsq"]]).drop(columns=["bits_per_pixel", "bits_per_token"])
    with pytest.raises(AnalysisError, match=r"'levels' must hold .*; got '8,8'"):
        with_derived(frame.assign(levels="8,8"))
