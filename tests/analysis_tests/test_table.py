from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsq import analysis
from gsq.analysis import AnalysisError, load_results, measured, results_table, select_protocol
from gsq.analysis.tables import table


def test_import_is_light() -> None:
    code = (
        "import sys; from gsq import analysis; import gsq.cli.fit\n"
        "assert analysis.AnalysisError.exit_code == 2\n"
        "print([m for m in ('numpy', 'pandas', 'scipy', 'matplotlib', 'pyarrow') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    assert all(getattr(analysis, name) is not None for name in analysis.__all__)
    assert callable(analysis.fit), "the function, not a submodule"
    with pytest.raises(AttributeError, match="nothing"):
        _ = analysis.nothing  # type: ignore[attr-defined]


def test_missing_file_names_the_tables_beside_it(tables, tmp_path: Path) -> None:
    tables.write(tmp_path / "other.parquet", [tables.row((4, 8, 1, 64))])
    with pytest.raises(AnalysisError, match=r"nope\.parquet: .*: other\.parquet"):
        load_results(tmp_path / "nope.parquet")


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.parquet"
    path.write_text("not parquet")
    with pytest.raises(AnalysisError, match="not a readable Parquet file"):
        load_results(path)


def test_measured_keeps_the_last_step_of_each_run(tables) -> None:
    cell = (4, 8, 1, 64)
    frame = tables.load([tables.row(cell, step=step, rfid=10.0 - step) for step in (3, 1, 2)])
    rows, excluded = measured(frame)
    assert rows["rfid"].tolist() == [7.0]
    assert (excluded.cells, excluded.used, excluded.text) == (1, 1, "")


def test_excluded_says_what_and_where(tables) -> None:
    frame = tables.load(
        [
            *(tables.row((4, 16, 1, v)) for v in (16, 64, 256)),
            tables.row((4, 16, 1, 8), rfid=float("nan")),
            tables.missing((4, 16, 1, 4096), "failed", "out_of_memory"),
            tables.missing((4, 16, 1, 8192), "failed", "out_of_memory"),
            tables.missing((4, 16, 1, 128), "queued"),
        ]
    )
    rows, excluded = measured(frame)
    assert len(rows) == 3
    assert excluded.text == ("4 of 7 cells have no value: 1 done but not evaluated, 2 failed (out_of_memory), 1 queued")
    (warning,) = excluded.warnings
    assert "all 2 failed cells have codebook_size above 64, bits_per_pixel above" in warning
    assert "latent_dim" not in warning


def test_failures_at_the_small_end_do_not_warn(tables) -> None:
    rows = [tables.row((4, 16, 1, v)) for v in (64, 256, 1024)]
    frame = tables.load([*rows, tables.missing((4, 16, 1, 16), "failed", "node_failure")])
    assert measured(frame)[1].warnings == ()


def test_mixed_protocols_are_refused_and_one_can_be_selected(tables) -> None:
    cells = [(4, 8, 1, v) for v in (64, 256, 1024)]
    rows = [tables.row(cell) for cell in cells] + [tables.row(cells[0], protocol="f00d", rfid=1.0)]
    frame = tables.load(rows)
    with pytest.raises(AnalysisError, match=r"mixes 2 .*p1a2b3 \(3 rows\); f00d \(1 row\).*--protocol"):
        measured(frame)
    assert measured(select_protocol(frame, "p1a2b3"))[1].used == 3
    kept, excluded = measured(tables.load(rows, protocol="f0"))
    assert kept["rfid"].tolist() == [1.0]
    assert excluded.text == "2 of 3 cells have no value: 2 done but not evaluated", "the others stay visible"
    with pytest.raises(AnalysisError, match=r"'nope' .*protocol"):
        tables.load(rows, protocol="nope")


def test_of_several_protocols_the_one_that_the_sweep_file_asks_for_is_taken(tables) -> None:
    cells = [(4, 8, 1, v) for v in (64, 256, 1024)]
    # More rows of the protocol that the file had before.
    rows = [tables.row(cell, asked=False, step=step) for cell in cells for step in (500, 1000)]
    rows += [tables.row(cell, protocol="f00d", rfid=1.0 + i, asked=True) for i, cell in enumerate(cells[:2])]
    frame = tables.load(rows)
    kept, excluded = measured(frame)
    assert kept["rfid"].tolist() == [1.0, 2.0] and excluded.counts == {"done but not evaluated": 1}
    assert results_table(frame)["rfid"].dropna().tolist() == [1.0, 2.0]
    assert set(select_protocol(frame, "p1a2b3")["rfid"]) == {row["rfid"] for row in rows[:6]}
    others = [tables.row(cell, protocol="c0de", asked=False) for cell in cells]
    assert measured(tables.load(rows + others))[0]["rfid"].tolist() == [1.0, 2.0]
    two = [{**row, "asked": row["protocol"] != "c0de"} for row in rows + others]
    with pytest.raises(AnalysisError, match=r"mixes 2 .*p1a2b3 \(6 rows\); f00d \(2 rows\)"):
        measured(tables.load(two))
    # Where the file asks for two (sizes, say) none is preferred; where it asks for none that is there, neither.
    for asked in (True, False):
        both = [{**row, "asked": asked} for row in rows]
        with pytest.raises(AnalysisError, match=r"mixes 2 .*--protocol"):
            measured(tables.load(both))


def test_feature_extractors_are_not_mixed_either() -> None:
    frame = pd.DataFrame({"rfid": [1.0, 2.0], "features": ["inception", "efficientnet"]})
    with pytest.raises(AnalysisError, match="mixes 2 evaluation protocols"):
        measured(frame)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame(), "the table has no rows"),
        (pd.DataFrame({"rfdi": [1.0]}), r"column 'rfid' is missing .* such as rfdi"),
        (pd.DataFrame({"rfid": [np.nan, -1.0]}), "none of the 2 cells has a value"),
        (pd.DataFrame({"rfid": ["high"]}), "column 'rfid' .*not a number"),
    ],
)
def test_unusable_tables(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        measured(frame)


def test_results_table_shows_what_varies(tables) -> None:
    rows = tables.noisy([(4, 16, 1, 64), (4, 16, 1, 256)])
    shown = results_table(tables.load([*rows, tables.missing((4, 16, 1, 1024), "failed", "diverged")]))
    assert list(shown.columns) == [
        *("codebook_size", "bits_per_pixel", "rfid", "psnr_db", "usage", "perplexity"),
        *("device_seconds", "state", "failure"),
    ]
    assert shown["codebook_size"].tolist() == [64, 256, 1024], "sorted by rate, the failed cell included"


def test_axes_without_a_column_of_the_schema_become_columns(tables) -> None:
    cell = (4, 16, 1, 64)
    rows = [
        tables.row(cell, signature=str(i), other_axes=f'{{"quantizer.init": "{init}"}}')
        for i, init in enumerate(("uniform", "spherical"))
    ]
    frame = tables.load(rows)
    assert list(frame["quantizer.init"]) == ["uniform", "spherical"]
    # They make configurations: without them these two would pass for seeds of one.
    assert "other_axes" in table.varying(frame)
    assert list(table.configuration_ids(frame)) == [0, 1]


def foreign(**more: object) -> pd.DataFrame:
    n = [1e6, 3e6, 1e7, 3e7, 1e8, 3e8]
    return pd.DataFrame({"N": n, "loss": [5.3, 4.3, 3.5, 3.0, 2.6, 2.3], **more})


@pytest.mark.parametrize(
    "more",
    [
        {"state": "finished"},
        {"state": ["failed", "running"] * 3, "failure": "x"},
        {"groups": ["A", "B"] * 3, "latent_dim": 0, "codebook_size": -1, "downsample": 4},
        {"signature": ["m1", "m2"] * 3, "step": [1, 1, 2, 2, 3, 3]},
        {"protocol": ["a", "b"] * 3, "features": [12, 24] * 3},
        {"repeat": [0, 1] * 3, "signature": "m"},
        {"data": [{"name": "x"}] * 6, "seed": pd.Categorical(list("abcabc"))},
        {"rank_deficient": "no", "num_images": "all", "step": "last"},
    ],
)
def test_columns_of_another_tool_are_its_own(more: dict[str, object]) -> None:
    frame = foreign(**more)
    assert not table.is_results(frame)
    rows, excluded = measured(frame, "loss", ["N"])
    assert len(rows) == 6 and not excluded.text
    found = analysis.fit(frame, "loss = A / N^a", bootstrap=0)
    assert found.n_rows == 6 and found.parameters["a"] == pytest.approx(0.147, abs=0.01)


def test_what_a_derived_axis_lacks_is_named() -> None:
    with pytest.raises(AnalysisError, match=r"'groups' .*not a number: 'A'"):
        analysis.fit(foreign(groups="A", codebook_size=4, downsample=4, rfid=1.0))
    with pytest.raises(AnalysisError, match=r"groups, codebook_size, downsample, .*lacks groups, dow"):
        analysis.fit(foreign(codebook_size=4, rfid=1.0))
    with pytest.raises(AnalysisError, match=r"Did you mean Loss\?"):
        analysis.fit(foreign().rename(columns={"loss": "Loss"}), "loss = A / N^a")


def test_a_part_of_a_results_table_is_still_one(tables) -> None:
    cell = (4, 8, 1, 64)
    frame = tables.load([tables.row(cell, step=step, rfid=10.0 - step) for step in (3, 1, 2)])
    assert measured(frame[["signature", "step", "rfid"]])[0]["rfid"].tolist() == [7.0]
    again = pd.concat([frame, frame.assign(sweep="other")])
    assert len(measured(again, "rfid", ["step"])[0]) == 3, "evaluations of a run that two sweeps share count once"


def test_of_two_rows_of_one_step_the_measured_one_counts(tables) -> None:
    frame = tables.load(
        [
            tables.row((4, 8, 1, 64), lpips=0.2),
            tables.row((4, 8, 1, 64), protocol="f00d", rfid=1.0),
        ]
    )
    assert measured(frame, "lpips")[0]["protocol"].tolist() == ["p1a2b3"]


def test_levels_are_whole_numbers_of_any_length() -> None:
    ids = [12345678901234567, 12345678901234568]
    frame = pd.DataFrame({"run": ids, "half": [0.5, 3.0], "flag": [True, False]})
    assert table.labels(frame, "run").tolist() == [str(one) for one in ids]
    assert table.labels(frame, "half").tolist() == ["0.5", "3"]
    assert table.labels(frame, "flag").tolist() == ["True", "False"]


def test_a_table_of_other_columns_is_shown_as_it_is() -> None:
    assert [*results_table(pd.DataFrame({"N": [1, 2], "loss": [3.0, 2.0]}))] == ["N", "loss"]
