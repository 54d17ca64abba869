"""The rFID that papers print: each with its source, drawn and never fitted with one's own."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsq.analysis import (
    AnalysisError,
    axis_panel,
    fit,
    load_published,
    load_results,
    measured,
    rate_panel,
    reference_rows,
)
from gsq.analysis.tables.left_out import without_protocol
from gsq.analysis.tables.published import COLUMNS, EXTRA, is_published, published_rows
from gsq.sweeps.schema.columns import write_table

HERE = Path(__file__).parents[2] / "results" / "reference"
IBQ = {1024: 2.24, 8192: 1.87, 16384: 1.37, 262144: 1.00}


def test_the_table_is_what_its_csv_says(tmp_path: Path) -> None:
    runpy.run_path(str(HERE / "build.py"))
    write_table(published_rows(HERE / "published.csv"), tmp_path / "again.parquet", EXTRA)
    committed, again = load_published(), load_results(tmp_path / "again.parquet")
    assert committed.equals(again) and (HERE / "published.parquet").is_symlink()
    with (HERE / "published.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(committed) == committed["signature"].nunique()


def test_every_number_has_a_source_that_can_be_looked_up() -> None:
    frame = load_published()
    assert frame["address"].str.startswith("https://").all() and frame["table"].str.len().min() > 3
    assert frame["rfid"].between(0.01, 10).all() and is_published(frame)
    # A position of 16 x 16 pixels and 1,024 codes: 10 bits.
    first = frame[frame["model"] == "IBQ"].sort_values("codebook_size").iloc[0]
    assert (first["bits_per_token"], first["bits_per_pixel"], first["tokens_per_image"]) == (10, 10 / 256, 256)
    # What a text does not say is empty.
    assert (
        frame["bits_per_pixel"].isna().any() and frame.loc[frame["codebook_size"].isna(), "bits_per_pixel"].isna().all()
    )


def test_models_without_a_known_protocol_are_named() -> None:
    frame = load_published()
    unknown = without_protocol(frame)
    assert "IBQ" in unknown and "SimVQ" not in unknown
    ibq = fit(frame[frame["model"] == "IBQ"], "rfid = c * codebook_size^(-a)", bootstrap=0)
    assert any("IBQ" in warning for warning in ibq.warnings)
    assert set(unknown) == set(frame.loc[frame["protocol_known"].isna(), "model"])


def test_sources_are_never_fitted_together() -> None:
    frame = load_published()
    with pytest.raises(AnalysisError, match=r"mixes .* evaluation protocols"):
        measured(frame)
    # One checkpoint at three sizes: three numbers, three protocols.
    llamagen = frame[frame["model"].str.startswith("LlamaGen vq_ds16")]
    assert len(llamagen) == 3 == llamagen["protocol"].nunique() and llamagen["rfid"].max() > 3 * llamagen["rfid"].min()


def test_ibqs_law_is_the_one_that_the_readme_prints() -> None:
    frame = load_published()
    ibq = frame[frame["model"] == "IBQ"]
    assert dict(zip(ibq["codebook_size"], ibq["rfid"], strict=True)) == IBQ and ibq["protocol"].nunique() == 1
    found = fit(ibq, "rfid = c * codebook_size^(-a)", bootstrap=0)
    slope, _ = np.polyfit(np.log(list(IBQ)), np.log(list(IBQ.values())), 1)
    assert found.parameters["a"] == pytest.approx(-slope, rel=1e-6)
    low, high = found.profile_intervals["a"]
    text = (HERE / "README.md").read_text()
    for value in (found.parameters["a"], low, high):
        assert f"{value:.2f}" in text
    bits = fit(ibq, "power_law_bpp", bootstrap=0)
    assert f"{bits.parameters['alpha']:.2f}" in text and low > 0


def test_published_numbers_are_a_grey_overlay_of_one_resolution(tables: Any) -> None:
    own = tables.load(tables.noisy([(16, 16, 1, v) for v in (64, 1024)]))
    frame = load_published()
    rows = reference_rows(frame)
    assert set(rows["resolution"]) == {256} and len(rows) > 20
    panel = axis_panel(own, "codebook_size", reference=frame)
    overlay = panel.overlay
    assert overlay is not None and not overlay.comparable and overlay.label.startswith("published: ")
    points = {(x, y) for one in overlay.series for x, y in zip(one.x, one.y, strict=True)}
    assert {(float(v), value) for v, value in IBQ.items()} <= points
    # Lines join the sizes of one model, never models.
    joined = [one for one in overlay.series if one.joined]
    assert {one.fixed["model"] for one in joined} <= set(rows["model"]) and joined
    assert any(
        dict(zip(one.mean_x, one.mean_y, strict=True)) == {float(v): r for v, r in IBQ.items()} for one in joined
    )
    rate = rate_panel(own, reference=frame).overlay
    assert rate is not None and sum(len(one.x) for one in rate.series) == rows["bits_per_pixel"].notna().sum()
    assert panel.series == axis_panel(own, "codebook_size").series
    assert fit(own, "rfid = c * bits_per_pixel^(-1)", bootstrap=0).n_rows == 2


LINE = dict.fromkeys(COLUMNS, "") | {"model": "M", "rfid": "1.5", "source": "https://x.org", "table": "Table 1"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rfid": "1,5"}, r"line 2: rfid '1,5' is not a number"),
        ({"rfid": ""}, "line 2: rfid is empty"),
        ({"source": " "}, "line 2: source is empty.*cited"),
        ({"table": ""}, "line 2: table is empty"),
        ({"codebook_size": "4k"}, "codebook_size '4k' is not a whole number"),
        ({"usage": "-1"}, "usage '-1'"),
    ],
)
def test_a_row_that_cannot_be_cited_is_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    path = tmp_path / "some.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow(LINE | change)
    with pytest.raises(AnalysisError, match=rf"some\.csv, {words}" if words.startswith("line") else words):
        published_rows(path)


def test_a_csv_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("model,rfid\nM,1\n")
    with pytest.raises(AnalysisError, match="'quantizer' is missing"):
        published_rows(tmp_path / "some.csv")
